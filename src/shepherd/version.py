"""Version of the running code, from the metadata of its distribution."""

from __future__ import annotations

DISTRIBUTION = "shepherd-fit-core"
"""Distribution with all of the code; `shepherd-fit` only depends on it and on what training needs."""


def version() -> str:
    """Version of the code, such as "0.1.0"; "unknown" if it is not installed."""
    from importlib import metadata  # a fifth of the time that `shepherd --help` takes

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
