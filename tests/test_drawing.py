"""Figures have the numbers that they were given."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from shepherd import drawing


def test_fewest_fonts_that_have_the_most_characters() -> None:
    fonts = [("All", {"a", "b", "c"}), ("Some", {"a"}), ("Other", {"d"})]
    assert drawing.chosen_fonts({"a", "b", "d", "e"}, fonts) == (("All", "Other"), "e")
    assert drawing.chosen_fonts({"e"}, fonts) == ((), "e")


def test_lines_go_through_their_points_on_panels_of_their_own() -> None:
    first, second = [(0, 3.0), (2, 1.0)], [(1, 0.5)]
    figure = drawing.lines([("nats", {"a": first, "b": second}), ("share", {"c": second})], "A title")
    upper, lower = figure.axes
    assert [line.get_xydata().tolist() for line in upper.get_lines()] == [[[0, 3.0], [2, 1.0]], [[1, 0.5]]]
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["a", "b"]
    assert [line.get_xydata().tolist() for line in lower.get_lines()] == [[[1, 0.5]]]
    assert lower.get_legend() is None
    assert (upper.get_ylabel(), lower.get_xlabel()) == ("nats", "round")
    assert figure.get_suptitle() == "A title"


def test_a_heat_map_has_the_counts_and_their_sums() -> None:
    counts = np.array([[1, 0], [2, 3]])
    figure = drawing.heat_map(["one", "two"], ["a", ""], counts, title="T", label="examples")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == counts.tolist()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one  (1)", "two  (5)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "no category"]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3"]


def test_dots_leave_out_what_is_not_known() -> None:
    figure = drawing.dots(["one", "two"], {"a": [1.0, None], "b": [2.0, 3.0]}, title="T", label="nats")
    found = [line.get_xydata().tolist() for line in figure.axes[0].get_lines()]
    assert found == [[[1.0, 0.0]], [[2.0, 0.0], [3.0, 1.0]]]


@pytest.mark.parametrize("count", [10, 60, 61, 150, 1_000, 10_000])
def test_names_of_rows_never_touch_each_other(count: int) -> None:
    """Of few rows each is named; many are sorted, and those that are named lie evenly between them."""
    rng = np.random.default_rng(0)
    rows, values = [f"client-{n}" for n in range(count)], rng.uniform(1, 3, count).tolist()
    figure = drawing.dots(
        rows, {"base": [4.0] * count, "own": values}, title="T", label="nats", what="clients"
    )
    axes = figure.axes[0]
    _require_apart(figure, axes.get_yticklabels())
    names = [label.get_text() for label in axes.get_yticklabels()]
    drawn = axes.get_lines()[1].get_xdata().tolist()
    if count <= 60:
        assert (names, drawn, axes.get_ylabel()) == (rows, values, "")
        return
    assert drawn == sorted(values, reverse=True)
    assert axes.get_ylabel() == f"{count:,} clients, {len(names)} of them named, by own"
    assert 15 <= len(names) <= 30
    for place, name in zip(axes.get_yticks(), names, strict=True):  # each stands at its own dot
        assert drawn[int(place)] == values[rows.index(name)]


def test_many_rows_that_are_not_known_come_last() -> None:
    values = [None, *(float(n) for n in range(80)), None]
    figure = drawing.dots(
        [str(n) for n in range(82)], {"a": values, "b": [1.0] * 82}, title="T", label="x", by="a"
    )
    a, b = (line.get_xydata().tolist() for line in figure.axes[0].get_lines())
    assert a == [[float(79 - n), float(n)] for n in range(80)]
    assert len(b) == 82


@pytest.mark.parametrize("count", [10, 150, 1_000, 10_000])
def test_names_beside_a_heat_map_never_touch_each_other(count: int) -> None:
    counts = np.ones((count, 3), dtype=np.int64)
    figure = drawing.heat_map(
        [f"client-{n}" for n in range(count)], ["a", "b", "c"], counts, title="T", label="x"
    )
    _require_apart(figure, figure.axes[0].get_yticklabels())


def _require_apart(figure: Figure, labels: Sequence[Text]) -> None:
    figure.canvas.draw()
    boxes = sorted((box.y0, box.y1) for box in (label.get_window_extent() for label in labels))
    assert all(below[1] <= above[0] for below, above in pairwise(boxes))


@pytest.mark.parametrize("name", ["a $_$ b", "$", "$x$", "_hidden", r"\$1 to $2", "__"])
def test_names_of_others_are_drawn_as_they_are(name: str) -> None:
    """Two dollar signs would be mathematics, or an error; a legend leaves out what begins with _."""
    assert _drawn(drawing._plain(name)) == name
    counts = np.array([[1, 2], [3, 4]])
    for figure in (
        drawing.lines([("nats", {name: [(0, 1.0)], "b": [(0, 2.0)]})], f"run {name}"),
        drawing.heat_map([name, "b"], [name, "d"], counts, title=name, label=name),
        drawing.dots([name, "b"], {name: [1.0, 2.0], "d": [3.0, 4.0]}, title=name, label=name),
    ):
        figure.savefig(io.BytesIO(), format="png")
        legend = figure.axes[0].get_legend()
        if legend is not None:
            assert _drawn(legend.get_texts()[0].get_text()) == name
            assert legend.get_texts()[0].get_window_extent().width > 1


def _drawn(text: str) -> str:
    """What matplotlib makes of a text, which must not be mathematics."""
    found, is_math = Text(0, 0, text)._preprocess_math(text)
    assert not is_math
    return found
