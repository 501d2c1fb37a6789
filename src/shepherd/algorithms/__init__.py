"""One file, one published method: `Config` (its keys) and `build(config) -> Algorithm`.

Every key has a default, so that the tests in `tests/contracts` can build each file they find here. A
method that must hold a whole cohort's updates says `STREAMS = False`.
"""
