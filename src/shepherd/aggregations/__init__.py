"""One file, one rule that makes one update of a cohort's: `Config` and `build(config) -> Aggregation`.

Every key has a default, so that the tests in `tests/contracts` can build each file they find here.
"""
