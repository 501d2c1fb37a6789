"""Sites that a server knows, connected or not: those of its creation, and those that connected since.

The list is made with the federation, kept in the server's kit, and extended by the server's process. An order
that names any other site is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from shepherd.errors import FolderError
from shepherd.io.atomic import disk_errors, write_atomic

FILE = "shepherd/sites.json"
_log = logging.getLogger("shepherd.door")


def read(kit: Path) -> frozenset[str]:
    """Names of the sites in a server's list; empty if the list is missing or damaged."""
    try:
        found = json.loads((kit / FILE).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return frozenset()
    return (
        frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()
    )


def add(kit: Path, names: Iterable[str]) -> None:
    """Add sites to a server's list.

    Raises:
        FolderError: the disk is full, or the kit cannot be written.
    """
    path = kit / FILE
    with disk_errors(kit):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, json.dumps(sorted({*read(kit), *names}), indent=1) + "\n").chmod(0o600)


class SiteRecorder:
    """Adds each site that connects to the server's list, once."""

    def __init__(self, kit: Path) -> None:
        self._kit, self._names = kit, set(read(kit))

    def record(self, name: str) -> None:
        """Add a site that has shown its certificate."""
        if name in self._names:
            return
        try:
            add(self._kit, [name])
            self._names.add(name)
        except FolderError as error:  # it may connect all the same, and is added the next time
            _log.error("%s", error)
