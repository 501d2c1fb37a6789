"""What the commands print: the data before a run, its progress, and its results. Imports rich."""
