"""One file, one way to give examples to clients: `Config` and `build(config) -> Split`.

The tests in `tests/contracts` build each file that they find here.
"""
