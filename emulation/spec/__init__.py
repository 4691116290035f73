"""What a network is asked to be, and how it changes in time: pure data."""
