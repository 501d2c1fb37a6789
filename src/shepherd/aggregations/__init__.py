"""Aggregations, one file each: a rule that combines updates, as `Config` and `build(config) -> Aggregation`.

Every key has a default, so that the tests in `tests/contracts` can build each file in this folder.
"""
