"""Scores on held-out examples, and statistics of them."""
