"""One file, one thing done to an update: `Config` (its keys) and `build(config) -> Transform`."""
