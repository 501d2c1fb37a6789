"""Differential privacy: how much budget is spent, and how much a released model gives away."""
