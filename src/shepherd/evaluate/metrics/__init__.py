"""One file, one number for an answer: `Config` and `build(config) -> Metric`.

The tests in `tests/contracts` build each file that they find here.
"""
