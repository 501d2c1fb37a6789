"""Algorithms, one file each: the client half of a method, as `Config` and `build(config) -> Algorithm`.

Every key has a default, so that the tests in `tests/contracts` can build each file in this folder.
"""
