"""The folder of a run: its name, its lock, what decides its results, its progress."""
