"""Metrics of answers, one per file: `Config` and `build(config) -> Metric`.

The tests in `tests/contracts` build every file in this folder.
"""
