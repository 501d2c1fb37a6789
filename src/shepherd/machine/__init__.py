"""How this machine runs what was asked."""
