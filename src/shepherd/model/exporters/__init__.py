"""Exporters, one file each: a format for a trained adapter, as `Config` and `build(config) -> Exporter`.

The tests in `tests/contracts` build each file in this folder.
"""
