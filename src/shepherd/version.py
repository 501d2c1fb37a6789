"""Version of the running code, from the metadata of its distribution."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "shepherd-fit-core"
"""Distribution with all of the code; `shepherd-fit` only depends on it and on what training needs."""


def version() -> str:
    """Version of the code, such as "0.1.0"; "unknown" if it is not installed."""
    from importlib import metadata  # a fifth of the time that `shepherd --help` takes

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def install(extra: str) -> str:
    """The command that installs an extra, such as "chat", into this environment.

    It installs from where the package came from: a checkout, a file, or a package index.
    """
    from importlib import metadata

    pip = "pip"
    if os.path.dirname(shutil.which("pip") or "") != os.path.dirname(sys.executable):
        pip = f"{shlex.quote(sys.executable)} -m pip"  # the environment is not activated
    try:
        origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {"url": _CHECKOUT.as_uri(), "dir_info": {"editable": True}}
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    url = urlsplit(str(origin.get("url", "")))
    place = url2pathname(url.path) if url.scheme == "file" else ""
    source = place if place and os.path.exists(place) else DISTRIBUTION
    return f"{pip} install {editable * (source == place)}{shlex.quote(f'{source}[{extra}]')}"


_CHECKOUT = Path(__file__).parents[2]
"""Root of the checkout, if the code is used from there without being installed."""
