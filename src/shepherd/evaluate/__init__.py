"""Scores on held-out examples."""
