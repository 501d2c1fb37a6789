"""Terminal output of the commands: the data before a run, its progress, and its results. Imports rich."""
