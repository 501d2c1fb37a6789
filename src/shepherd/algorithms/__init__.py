"""One file, one published method's client: `Config` (its keys) and `build(config) -> Algorithm`.

Every key has a default, so that the tests in `tests/contracts` can build each file they find here.
"""
