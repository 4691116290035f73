"""What is made of a run: composed times, relations between arms, tables, figures, a summary in words.

Reads only what a run wrote to disk (comparison.json, summary.json); imports neither torch nor the network.
"""
