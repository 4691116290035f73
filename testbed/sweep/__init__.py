"""A question asked over a grid: every arm on every network, resumable; `testbed sweep FILE.toml`. docs/sweeps.md.

grid.py      what stands in the file; the points of its grid
cells.py     what has to be learned and what has to be timed, each under the hash of what decides it
"""
