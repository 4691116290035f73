"""What links are found to be, and whether that is what was asked."""
