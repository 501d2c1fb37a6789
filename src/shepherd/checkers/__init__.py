"""Plug-ins that decide whether an answer is right: {"kind": "exact", ...} as `check` of a row is `exact.py`.

Each file holds `Config`, the other keys of such a check, and `build(config) -> Checker`.
"""
