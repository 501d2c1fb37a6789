"""The licence files of a base, which go along with its weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from transformers.utils import cached_file

from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.model.base import Base

NAMES = (
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "NOTICE", "NOTICE.txt"),
    *("NOTICE.md", "COPYING", "COPYING.txt", "USE_POLICY.md", "USE_POLICY.txt"),
)
"""Names of files that say what may be done with a model."""


def copy(base: Base, folder: Path) -> list[str]:
    """Copy the licence files that the base's folder or repository has; returns their names.

    Raises:
        FolderError: the folder cannot be written.
    """
    found = []
    for name in NAMES:
        if (path := _path(base, name)) is not None:
            with disk_errors(path):
                content = path.read_bytes()
            write_atomic(folder / name, content)
            found.append(name)
    return found


def _path(base: Base, name: str) -> Path | None:
    where = Path(base.table.base)
    if where.is_dir():
        return where / name if (where / name).is_file() else None
    with suppress(OSError, ValueError):  # the hub is not reached
        found = cached_file(
            base.table.base,
            name,
            revision=base.table.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(found) if found else None
    return None
