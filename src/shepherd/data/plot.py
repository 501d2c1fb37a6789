"""Heat map of examples by client and category. Only this file imports `matplotlib`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.data.examples import Example, by_category
from shepherd.errors import DataError

log = logging.getLogger(__name__)
MARK = "Shepherd: who holds what"
"""Title in the picture's metadata, so that only a picture of ours is ever replaced."""

MAX_ANNOTATED_CLIENTS = 24
"""Most clients for which each cell of the heat map shows its number."""


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
        with fresh.open("wb") as file, _fonts_for("".join((*names, *clients)), path):
            _figure(names, list(clients), table).savefig(file, format="png", metadata={"Title": MARK})
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def _fonts_for(text: str, path: Path) -> Iterator[None]:
    """Draw with installed fonts that have the glyphs of a text; those that none has are logged."""
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties, findfont

    usual = findfont(FontProperties())
    wanted = {character for character in text if character.isprintable()} - _glyphs(usual)
    families, lacking = chosen_fonts(wanted, _installed()) if wanted else ((), "")
    if lacking:
        log.warning(
            "picture %s: no installed font has the glyphs of %s, which are drawn as boxes; install one, such"
            " as Noto Sans CJK",
            path, lacking,
        )  # fmt: skip
    with rc_context({"font.family": ["DejaVu Sans", *families]}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same in matplotlib's words
        yield


def chosen_fonts(wanted: Set[str], fonts: Iterable[tuple[str, Set[str]]]) -> tuple[tuple[str, ...], str]:
    """Choose the fonts that have most of the wanted characters, one after another.

    Args:
        fonts: the name of each, with the characters that it has.

    Returns:
        Names of fonts, and the characters that none has, in order.

    >>> chosen_fonts({"東", "ก"}, [("Thai", {"ก"}), ("Latin", {"a"})])
    (('Thai',), '東')
    """
    left, chosen = set(wanted), list[str]()
    having = [(name, found) for name, held in fonts if (found := set(held) & left)]
    while left and having:
        name, found = max(having, key=lambda font: (len(font[1] & left), font[0]))
        if not found & left:
            break
        chosen.append(name)
        left -= found
    return tuple(chosen), "".join(sorted(left))


def _installed() -> Iterator[tuple[str, Set[str]]]:
    from matplotlib.font_manager import fontManager

    paths = {font.name: font.fname for font in reversed(fontManager.ttflist)}
    for name, path in sorted(paths.items()):
        try:
            yield name, _glyphs(path)
        except (
            OSError,
            RuntimeError,
        ):  # removed since matplotlib listed it, or of a kind that it cannot read
            continue


def _glyphs(path: str) -> Set[str]:
    from matplotlib.font_manager import get_font

    return {chr(code) for code in get_font(path).get_charmap()}


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(4096)


def _figure(names: Sequence[str], clients: Sequence[str], table: NDArray[np.int64]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = min(max(2.0, 0.36 * len(clients)), 5.0 + 0.12 * len(clients), 40.0)  # inches
    figure = Figure(figsize=(min(3.4 + 0.95 * len(names), 40.0), 1.6 + height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(table, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    columns = range(0, len(names), 1 + len(names) // 60)
    axes.set_xticks(columns, [_short(names[k]) or "no category" for k in columns], rotation=30, ha="right")
    rows = range(0, len(clients), 1 + len(clients) // 300)  # no label on the next one's place
    labels = [f"{_short(clients[k])}  ({table[k].sum():,})" for k in rows]
    axes.set_yticks(rows, labels, fontsize=9 if len(clients) <= MAX_ANNOTATED_CLIENTS else 6)
    axes.set_title(f"{table.sum():,} examples, {len(clients)} clients")
    figure.colorbar(image, ax=axes, label="examples", shrink=0.6)
    if len(clients) <= MAX_ANNOTATED_CLIENTS:
        _annotate(axes, table)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _annotate(axes: Any, table: NDArray[np.int64]) -> None:
    for (row, column), number in np.ndenumerate(table):
        if number:
            colour = "white" if number > 0.6 * table.max() else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=8)
