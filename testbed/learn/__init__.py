"""Trainers learned off the network, by processes at a time."""
