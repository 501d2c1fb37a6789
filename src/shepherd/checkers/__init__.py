"""Checkers, one file each: a row whose `check` is {"kind": "exact", ...} is checked by `exact.py`.

Each file defines `Config`, the other keys of such a check, and `build(config) -> Checker`.
"""
