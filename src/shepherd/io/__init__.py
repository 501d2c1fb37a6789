"""Files, locks, paths and progress, for the whole package."""
