"""The display in both modes: a picture on a terminal, plain lines elsewhere."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from shepherd.show.running import LiveDisplay, PlainDisplay, display

BASE = {"round": 0, "heldout": {"loss": 3.0}}


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "round": number,
        "cohort": ["a", "b"],
        "loss": 3.0 - number / 4,
        "heldout": {"loss": 3.25 - number / 4},
        "seconds": {"round": 10.0, "tuning": 8.0},
        "tokens": {"seen": 40000, "trained": 900},
        **more,
    }


PROGRESS: Any = SimpleNamespace(round=3, clients_done=1, clients=2, tokens=3000, loss=2.125, seconds=2.0)


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with display(stream) as shown:
        assert isinstance(shown, PlainDisplay)
        shown.say("reading world")
        shown.begin("runs/one", 3, [])
        shown.row(BASE)
        shown.row(BASE)  # known already
        shown.progress(PROGRESS)
        shown.row(row(1, failures={"b": "late"}))
    assert stream.getvalue().splitlines() == [
        "reading world",
        "runs/one",
        "before training  held out 3.0000",
        "round 1: no usable update from b (late)",
        "round 1/3  clients 2  loss 2.7500  held out 3.0000  5 000 tokens/s  10 s  left 20 s",
    ]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_live_display_unless_it_is_dumb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with display(stream) as shown:
        assert isinstance(shown, LiveDisplay)
        shown.begin("runs/one", 3, [BASE])
        shown.row(row(1, failures={"b": "late"}))
        shown.say("[not markup]")
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back
    assert "no usable update from b (late)" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    with display(Terminal()) as shown:
        assert isinstance(shown, PlainDisplay)


def drawn(live: LiveDisplay, console: Console) -> list[str]:
    with console.capture() as capture:
        console.print(live.draw())
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_picture_at_eighty_columns_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=Terminal(), force_terminal=True, width=80, color_system="truecolor", no_color=None)
    live = LiveDisplay(console)
    live.begin("runs/one: " + "long " * 30, 4, [BASE, row(1), row(2)])
    live.stop()
    live.progress(PROGRESS)
    lines = drawn(live, console)
    assert all(len(line) <= 80 + 20 for line in lines)  # bold and dim are still escapes
    words = " ".join(lines)
    for part in ("3 of 4", "1 of 2", "2.1250", "2.7500", "█▁", "1 500 tokens/s", "18 s"):
        assert part in words
    assert "\x1b[3" not in words  # no colour


def test_no_bars_where_the_terminal_cannot_write_them() -> None:
    class Ascii(Terminal):
        encoding = "ascii"

    console = Console(file=Ascii(), force_terminal=True, width=80)
    live = LiveDisplay(console)
    live.begin("runs/one", 4, [BASE, row(1), row(2)])
    live.stop()
    assert all(line.isascii() for line in drawn(live, console))
