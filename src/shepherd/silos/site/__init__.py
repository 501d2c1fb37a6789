"""A site of a federation over silos: its own settings, its policy, its audit log, and its trainer."""
