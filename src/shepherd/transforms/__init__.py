"""Transforms, one file each: `Config` (its keys) and `build(config) -> Transform`.

Every key has a default, so that the tests in `tests/contracts` can build each file in this folder.
"""
