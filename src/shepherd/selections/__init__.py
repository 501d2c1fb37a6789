"""Selections, one file each: the clients of a round, as `Config` and `build(config) -> Selection`.

The tests in `tests/contracts` build each file in this folder. numpy only.
"""
