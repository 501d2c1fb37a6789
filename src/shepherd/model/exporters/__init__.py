"""One file, one form that a trained adapter can be written in: `Config` and `build(config) -> Exporter`.

The tests in `tests/contracts` build each file that they find here.
"""
