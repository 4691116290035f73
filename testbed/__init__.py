"""Training over slow links: context-parallel trainers, what they send, and what is made of it."""
