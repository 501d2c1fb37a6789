"""One file, one thing done to an update: `Config` (its keys) and `build(config) -> Transform`.

Every key has a default, so that the tests in `tests/contracts` can build each file they find here.
"""
