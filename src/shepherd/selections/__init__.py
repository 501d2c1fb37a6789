"""One file, one way to choose the clients of a round: `Config` and `build(config) -> Selection`.

The tests in `tests/contracts` build each file that they find here. numpy only.
"""
