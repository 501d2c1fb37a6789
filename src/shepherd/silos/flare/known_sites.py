"""The sites that a server knows, there or not: those it was made with, and whoever connected since.

Made where the federation is, kept in the server's kit, and written by the server's own process; an order that
names any other site is refused.
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
    """The names in a server's kit; none where there is no list, or a damaged one, which fills anew."""
    try:
        found = json.loads((kit / FILE).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return frozenset()
    return (
        frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()
    )


def add(kit: Path, names: Iterable[str]) -> None:
    """Have a server know these sites too.

    Raises:
        FolderError: the disk is full, or the kit cannot be written.
    """
    path = kit / FILE
    with disk_errors(kit):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, json.dumps(sorted({*read(kit), *names}), indent=1) + "\n").chmod(0o600)


class Acquainted:
    """Writes down each site that connects, once."""

    def __init__(self, kit: Path) -> None:
        self._kit, self._names = kit, set(read(kit))

    def meet(self, name: str) -> None:
        """A site has shown its certificate."""
        if name in self._names:
            return
        try:
            add(self._kit, [name])
            self._names.add(name)
        except FolderError as error:  # it may connect all the same, and is written down the next time
            _log.error("%s", error)
