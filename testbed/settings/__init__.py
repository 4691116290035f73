"""What a run is asked to be: flags and files, parsed once."""
