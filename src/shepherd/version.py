"""Version of the code that runs, from the metadata of its distribution."""

from __future__ import annotations

DISTRIBUTION = "shepherd-fit-core"
"""Holds all of the code; `shepherd-fit` holds none, and asks for this one with what training needs."""


def version() -> str:
    """Version of the code, such as "0.1.0"; "unknown" where it is not installed."""
    from importlib import metadata  # a fifth of the time that `shepherd --help` takes

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
