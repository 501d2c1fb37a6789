"""One file, one way to move the server's adapter: `Config` and `build(config) -> ServerOptimiser`.

Every key has a default, so that the tests in `tests/contracts` can build each file they find here.
"""
