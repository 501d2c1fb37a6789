"""Drills: what each aggregation stands when a share of the clients is bad."""
