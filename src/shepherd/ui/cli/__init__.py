"""The command `shepherd`."""
