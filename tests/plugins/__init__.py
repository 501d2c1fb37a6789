"""Reference plug-ins that run through the contract tests, so that the types stay open to their kinds."""
