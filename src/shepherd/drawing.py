"""Line charts and heat maps as matplotlib figures. Only this file imports `matplotlib`.

A figure belongs to no window: show it in a notebook, or write it with its `savefig`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
MAX_ANNOTATED_ROWS = 24
"""Most rows for which each cell of a heat map shows its number."""
MAX_NAMED_ROWS = 60
"""More rows of dots than this are sorted, and only some of them named."""
NAMED_OF_MANY = 30
DPI = 120
_COLOURS = ("#0b5c7a", "#b5551d", "#4a7c2c", "#7b4b94", "#8a6d00", "#555e67")
_MARKERS = "os^Dvx"
_MAX_MARKERS = 26

Points = Sequence[tuple[float, float]]
Panel = tuple[str, Mapping[str, Points]]
"""The label of a panel's y axis, with its lines by name."""


@contextmanager
def fonts_for(text: str, what: str) -> Iterator[None]:
    """Draw with installed fonts that have the glyphs of a text; those that none has are logged.

    Args:
        what: the picture, for the log line.
    """
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties, findfont

    usual = findfont(FontProperties())
    wanted = {character for character in text if character.isprintable()} - _glyphs(usual)
    families, lacking = chosen_fonts(wanted, _installed()) if wanted else ((), "")
    if lacking:
        log.warning(
            "%s: no installed font has the glyphs of %s, which are drawn as boxes; install one, such"
            " as Noto Sans CJK",
            what, lacking,
        )  # fmt: skip
    with rc_context({"font.family": ["DejaVu Sans", *families]}):
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


def lines(panels: Sequence[Panel], title: str) -> Figure:
    """Draw lines over rounds, one panel below the other.

    Args:
        panels: those with lines of (round, value).
        title: of the whole figure.
    """
    from matplotlib.ticker import MaxNLocator

    with fonts_for("".join((title, *(name for _, series in panels for name in series))), title):
        figure = _empty(7.0, 0.6 + 2.8 * len(panels))
        figure.suptitle(_plain(title))
        for place, (label, series) in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, place + 1)
            for style, (name, points) in enumerate(series.items()):
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    label=_short(name),
                    color=_COLOURS[style % len(_COLOURS)],
                    marker=_MARKERS[style % len(_MARKERS)],
                    markevery=max(1, len(points) // _MAX_MARKERS),
                    markersize=4,
                )
            axes.set_ylabel(_plain(label))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            if len(series) > 1:
                _add_legend(axes, series)
        axes.set_xlabel("round")
        return figure


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: NDArray[Any], *, title: str, label: str
) -> Figure:
    """Draw a table of counts (rows, columns) as a heat map; the cells of a small one show their numbers.

    Args:
        label: what is counted, beside the scale.
    """
    with fonts_for("".join((title, *rows, *columns)), title):
        height = min(max(2.0, 0.36 * len(rows)), 5.0 + 0.12 * len(rows), 40.0)  # inches
        figure = _empty(min(3.4 + 0.95 * len(columns), 40.0), 1.6 + height)
        axes = figure.add_subplot()
        image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
        shown = range(0, len(columns), 1 + len(columns) // 60)
        axes.set_xticks(shown, [_short(columns[k]) or "no category" for k in shown], rotation=30, ha="right")
        kept = range(0, len(rows), 1 + len(rows) // 300)  # no label on the next one's place
        few = len(rows) <= MAX_ANNOTATED_ROWS
        labels = [f"{_short(rows[k])}  ({values[k].sum():,})" for k in kept]
        axes.set_yticks(kept, labels, fontsize=9 if few else 6)
        axes.set_title(_plain(title))
        figure.colorbar(image, ax=axes, label=_plain(label), shrink=0.6)
        if few:
            _annotate(axes, values)
        return figure


def dots(
    rows: Sequence[str],
    columns: Mapping[str, Sequence[float | None]],
    *,
    title: str,
    label: str,
    what: str = "rows",
    by: str = "",
) -> Figure:
    """Draw a value of each row under several columns, as dots on one scale; None is left out.

    More rows than `MAX_NAMED_ROWS` are sorted, the highest first, so that the figure shows how the values are
    spread; some are named, evenly over the order.

    Args:
        columns: the values of the rows, in their order, by the column's name.
        label: of the scale.
        what: what the rows are, where they are too many to be named.
        by: the column that many rows are sorted by; the last by default.
    """
    many = len(rows) > MAX_NAMED_ROWS
    by = by or [*columns][-1]
    order = (
        sorted(range(len(rows)), key=lambda place: _falling(columns[by][place]))
        if many
        else [*range(len(rows))]
    )
    named = range(0, len(rows), math.ceil(len(rows) / NAMED_OF_MANY) if many else 1)
    with fonts_for("".join((title, *(rows[order[place]] for place in named), *columns)), title):
        figure = _empty(7.0, 10.0 if many else 1.6 + 0.3 * len(rows))
        axes = figure.add_subplot()
        for style, (name, values) in enumerate(columns.items()):
            known = [(x, place) for place, row in enumerate(order) if (x := values[row]) is not None]
            axes.plot(
                [x for x, _ in known],
                [place for _, place in known],
                label=_short(name),
                color=_COLOURS[style % len(_COLOURS)],
                marker=_MARKERS[style % len(_MARKERS)],
                markersize=2 if many else None,
                linestyle="none",
            )
        axes.set_yticks(named, [_short(rows[order[place]]) for place in named])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if many:
            axes.set_ylabel(f"{len(rows):,} {_plain(what)}, {len(named)} of them named, by {_short(by)}")
        axes.set_xlabel(_plain(label))
        axes.set_title(_plain(title))
        axes.grid(alpha=0.3)
        _add_legend(axes, columns, "lower right" if many else "best")  # which is slow over many dots
        return figure


def _falling(value: float | None) -> tuple[bool, float]:
    """Sort key: the highest first, and what is not known last."""
    return (value is None, -(value or 0.0))


def _empty(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _short(name: str) -> str:
    return _plain(name if len(name) <= 28 else f"{name[:27]}…")


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: between two dollar signs it would read mathematics."""
    return text.replace("$", r"\$")


def _add_legend(axes: Any, names: Iterable[str], place: str = "best") -> None:
    """A legend of the lines, in order; matplotlib leaves out lines whose own label begins with `_`."""
    lines = axes.get_lines()
    legend = axes.legend(lines, [str(number) for number in range(len(lines))], loc=place)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(_short(name))


def _annotate(axes: Any, values: NDArray[Any]) -> None:
    for (row, column), number in np.ndenumerate(values):
        if number:
            colour = "white" if number > 0.6 * values.max() else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=8)
