"""Heat map of examples by client and category."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.data.examples import Example, by_category
from shepherd.drawing import heat_map
from shepherd.errors import DataError

MARK = "Shepherd: who holds what"
"""Title in the picture's metadata, so that only a picture of ours is ever replaced."""


def holdings(
    examples: Sequence[Example], clients: Mapping[str, ArrayLike]
) -> tuple[list[str], NDArray[np.int64]]:
    """Category names, and counts of examples of shape (clients, categories) in the order of `clients`."""
    names = list(by_category(examples))
    column = {name: place for place, name in enumerate(names)}
    table = np.zeros((len(clients), len(names)), dtype=np.int64)
    for row, indices in enumerate(clients.values()):
        for index in np.asarray(indices, dtype=np.int64):
            table[row, column[examples[int(index)].category]] += 1
    return names, table


def draw(
    examples: Sequence[Example],
    clients: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Draw the heat map of `holdings` as a PNG, written atomically.

    Raises:
        DataError: `path` holds a file that this function did not write, and `overwrite` is false; or it
            cannot be written.
    """
    try:
        return _drawn(examples, clients, Path(path), overwrite)
    except OSError as error:
        raise DataError(f"picture {path} cannot be written ({error.strerror}); name another file") from error


def _drawn(
    examples: Sequence[Example], clients: Mapping[str, ArrayLike], path: Path, overwrite: bool
) -> Path:
    if path.exists() and not overwrite and not _ours(path):
        raise DataError(
            f"{path} exists and is not a picture that Shepherd drew; remove it or name another file"
        )
    names, table = holdings(examples, clients)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        title = f"{table.sum():,} examples, {len(clients)} clients"
        with fresh.open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of glyphs that no font has, which the log names
            figure = heat_map(list(clients), names, table, title=title, label="examples")
            figure.savefig(file, format="png", metadata={"Title": MARK})
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return path


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(4096)
