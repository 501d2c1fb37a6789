"""Server optimisers, one file each: `Config` and `build(config) -> ServerOptimiser`.

Every key has a default, so that the tests in `tests/contracts` can build each file in this folder.
"""
