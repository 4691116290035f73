"""How one sequence is trained on by several nodes: attention over blocks, exchanges, weight synchronisation."""
