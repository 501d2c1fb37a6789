"""One file, one published method: `Config` (its keys) and `build(config) -> Algorithm`."""
