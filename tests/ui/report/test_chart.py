"""Charts: where things stand, by hand and for any numbers."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.ui.report import chart, number_formats
from shepherd.ui.report.chart import Series

finite = st.floats(-1e300, 1e300)


@given(finite, finite, st.integers(2, 8))
def test_ticks_are_few_round_and_around_all(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    found = chart.ticks(low, high, most)
    assert 1 <= len(found) <= most + 3
    assert found == sorted(found)
    slack = 1e-6 * max(abs(low), abs(high), high - low)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack or high - low < 1e-290


@given(st.integers(0, 10_000), st.integers(1, 5_000))
def test_ticks_of_rounds_are_whole_and_inside(low: int, more: int) -> None:
    found = chart.ticks(low, low + more, 6, whole=True)
    assert all(tick == int(tick) and low <= tick <= low + more for tick in found)
    assert 1 <= len(found) <= 8


@given(st.lists(st.floats(0, 500), min_size=1, max_size=12))
def test_names_keep_apart_in_order_and_inside(wanted: list[float]) -> None:
    found = chart.spread(wanted, 16, 0, 500)
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    places = [found[k] for k in order]
    assert all(after - before >= 16 - 1e-6 for before, after in itertools.pairwise(places))
    assert min(places) >= -1e-6
    assert max(places) <= 500 + 1e-6
    assert chart.spread([10, 300], 16, 0, 500) == [10, 300]


def test_a_line_goes_through_its_points() -> None:
    drawn = chart.line_chart(
        [Series("a", [(0, 4.0), (5, 3.0), (10, 2.0)])],
        ident="x",
        title="t",
        form=number_formats.rate,
        height=138,
    )
    # 100 px of plot between 12 above and 26 below; ticks from 2 to 4
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    assert points == "0.0,12.0 500.0,62.0 1000.0,112.0"
    assert "a, round 5: 3" in drawn
    assert 'class="name"' not in drawn  # one line needs no name


def test_several_lines_differ_by_more_than_colour_and_are_named() -> None:
    lines = [Series(f"line {k}", [(0, k), (1, k + 1.0)]) for k in range(9)]
    drawn = chart.line_chart(lines, ident="x", title="t", form=number_formats.rate)
    groups = re.findall(r'<g class="(s\d)"><svg viewBox.*?stroke-dasharray="([^"]*)"', drawn)
    assert len(set(groups)) == 9
    assert sorted(re.findall(r'class="name".*?>(.*?)<', drawn)) == [f"line {k}" for k in range(9)]
    ElementTree.fromstring(drawn)  # well-formed


def test_few_markers_on_long_lines_and_always_the_last() -> None:
    drawn = chart.line_chart(
        [Series("a", [(k, math.sin(k)) for k in range(1000)])], ident="x", title="t", form=number_formats.rate
    )
    marks = re.findall(r'class="mark" x="([^"]*)"', drawn)
    assert len(marks) <= 26
    assert marks[-1] == "100.00%"


@pytest.mark.parametrize(
    "points", [[(0, 1.0)], [(0, 0.0), (1, 0.0)], [(3, 1e300), (4, -1e300)], [(0, 5e-324)]]
)
def test_odd_lines_are_drawn(points: list[tuple[float, float]]) -> None:
    drawn = chart.line_chart(
        [Series("<&>", points)], ident="x", title="a < b", form=number_formats.rate, zero=True
    )
    assert "nan" not in drawn
    assert "inf" not in drawn
    ElementTree.fromstring(drawn)


def test_no_points_no_chart() -> None:
    assert chart.line_chart([Series("a", [])], ident="x", title="t", form=number_formats.rate) == ""


def test_an_interval_stands_where_it_should() -> None:
    drawn = chart.track({"value": 0.5, "low": 0.25, "high": 0.75}, (0.0, 1.0), kind="local", reference=0.9)
    assert '<line x1="25.00%" x2="75.00%"' in drawn
    assert 'class="mark" x="50.00%"' in drawn
    assert 'class="reference" x1="90.00%"' in drawn
    alone = chart.track({"value": 0.5, "low": None, "high": None}, (0.0, 1.0), kind="base", reference=None)
    assert "<line" not in alone
    opened = chart.track({"value": 0.5, "low": 0.25, "high": None}, (0.0, 1.0), kind="base", reference=None)
    assert '<line x1="25.00%" x2="100.00%"' in opened
