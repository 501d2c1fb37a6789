"""Tables in narrow terminals, in wide ones, and in a pipe: no number is ever cut."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich import box
from rich.table import Table

from shepherd.ui.terminal.console import PlainConsole

NAMES = ["local_training_set", "St. Mary's, London", "東京大学病院"]
HEADS = ["information extraction", "creative_writing", "brainstorming", "closed qa", "open qa", "all"]


def table(numbers: list[list[str]]) -> Table:
    made = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    made.add_column("client", overflow="fold")
    for head in HEADS[: len(numbers[0])]:
        made.add_column(head, justify="right", overflow="fold")
    for name, row in zip(NAMES, numbers, strict=False):
        made.add_row(name, *row)
    return made


def printed(made: Table, width: int | None, monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    stream = io.StringIO()
    console = PlainConsole(stream)
    if width is not None:
        console._force_terminal, console.width, console.no_color = True, width, True
    console.print_table(made)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


@given(
    width=st.integers(4, 200),
    numbers=st.lists(st.lists(st.integers(0, 10**9), min_size=6, max_size=6), min_size=1, max_size=3),
)
def test_every_number_is_whole_at_any_width(width: int, numbers: list[list[int]]) -> None:
    cells = [[f"{number:,}" for number in row] for row in numbers]
    text = printed(table(cells), width)
    found = re.findall(r"(?<![\w,])[\d,]+(?![\w,])", text)
    assert sorted(found) == sorted(cell for row in cells for cell in row)


def test_off_a_terminal_a_table_is_as_wide_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    text = printed(table([["1,234,567"] * 6] * 3), None)
    assert all(head in text for head in HEADS)
    assert "…" not in text
    assert len({len(line) for line in text.splitlines() if "1,234,567" in line}) <= 2  # wide characters


def test_names_are_wrapped_and_heads_cut_with_a_mark_before_rows_become_lists() -> None:
    text = printed(table([["678", "1,339"]] * 3), 30)
    assert "…" in text
    assert "1,339" in text
    assert all(len(line) <= 30 for line in text.splitlines())
    lists = printed(table([["1,234,567"] * 6]), 40)
    assert "  brainstorming: 1,234,567\n" in lists
