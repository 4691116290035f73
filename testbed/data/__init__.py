"""Corpora, and the recall task mixed into them. The order of the data depends on (seed, step) only."""
