"""Files, locks, paths and progress: what every room needs of the operating system."""
