"""The display in both modes: live on a terminal, plain lines elsewhere."""

import io
import logging
import os
from typing import Any

import pytest
from rich.console import Console

from shepherd.io import progress
from shepherd.io.progress import Progress
from shepherd.ui.terminal.console import PlainConsole
from shepherd.ui.terminal.running import LiveDisplay, PlainDisplay, display, plain_lines
from tests.ui.terminal.golden import require_golden

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


PROGRESS = Progress(round=3, rounds=4, clients_done=1, clients=2, tokens=3000, loss=2.125, seconds=2.0)


def logged(stage: object, level: int = logging.DEBUG) -> None:
    """Log a stage as `shepherd.io.progress` does."""
    progress.log.log(level, "%s", stage)


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with display(stream) as shown:
        assert isinstance(shown, PlainDisplay)
        shown.echo("reading world")
        shown.begin("runs/one", 3, [])
        shown.row(BASE)
        shown.row(BASE)  # known already
        logged(PROGRESS)
        logged("round 1/3: client 1 of 2, 26 s so far", logging.INFO)
        logging.getLogger("shepherd.run.run").info("%d clients", 2)
        shown.row(row(1, failures={"b": "late"}))
    logging.getLogger("shepherd.run.run").info("nobody listens any more")
    require_golden("display_plain", stream.getvalue())


def test_the_panel_says_what_is_spent_of_clients_and_of_examples() -> None:
    live = LiveDisplay(PlainConsole(io.StringIO()))
    each = {"privacy": {"epsilon": 1.0, "delta": 1e-5}, "example_privacy": {"epsilon": 0.5, "delta": 1e-4}}
    live.row({"round": 1, **each})
    assert [text for label, text, _ in live._lines() if label == "spent"] == [
        "epsilon 1 at delta 1e-05 for each client",
        "epsilon 0.5 at delta 0.0001 for each example",
    ]
    live.row({"round": 2, "example_privacy": each["example_privacy"]})
    assert [label for label, *_ in live._lines()].count("spent") == 1


def test_of_two_displays_the_inner_one_shows_what_is_logged() -> None:
    outer, inner, log = io.StringIO(), io.StringIO(), logging.getLogger("shepherd.compare")
    with plain_lines(outer):
        log.info("one")
        with display(inner):
            log.info("two")
        log.info("three")
    assert (outer.getvalue(), inner.getvalue()) == ("one\nthree\n", "two\n")


def test_a_closed_pipe_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf8") as stream, display(stream) as shown:
        shown.echo("nobody reads this")
        shown.echo("nor this")
        stream.write("nor what waits in the buffer")


def test_a_terminal_that_has_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("dumb", "xterm"):
        monkeypatch.setenv("TERM", kind)
        ours, theirs = os.openpty()
        with open(theirs, "w", encoding="utf8") as stream, display(stream) as shown:
            shown.begin("a run", 2, [])
            os.close(ours)
            shown.echo("nobody reads this")
            seconds = {"round": 1.0, "tuning": 1.0}
            shown.row({"round": 1, "loss": 1.0, "cohort": [], "tokens": {"seen": 9}, "seconds": seconds})


def test_a_table_that_nobody_reads_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf8") as stream:
        console = PlainConsole(stream)
        console.print("nobody reads this")
        console.print("nor this")


def test_a_fault_of_writing_that_is_not_a_readers_is_raised() -> None:
    with open("/dev/full", "w", encoding="utf8") as stream:
        with pytest.raises(OSError, match="No space left"):
            PlainConsole(stream).print("a line")
        with pytest.raises(OSError, match="No space left"), plain_lines(stream) as shown:
            shown.echo("a line")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # what waits in the buffer
        os.close(null)


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
        shown.echo("[not markup]")
        logged("scoring 200 held-out examples")
    assert "scoring 200 held-out examples" in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back
    assert "no usable update from b (late)" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    with display(Terminal()) as shown:
        assert isinstance(shown, PlainDisplay)


def drawn(encoding: str = "utf-8") -> str:
    """What the live display shows in round 3, without styles."""
    file = Terminal()
    file.encoding = encoding
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    live = LiveDisplay(console)
    live.begin("runs/one: " + "long " * 30, 4, [BASE, row(1), row(2)])
    live.stop()
    live.on_progress(logging.LogRecord("", logging.DEBUG, "", 0, "%s", (PROGRESS,), None))
    with console.capture() as capture:
        console.print(live.draw())
    assert all(len(line) <= 80 for line in capture.get().splitlines())
    return capture.get()


def test_the_live_display_at_eighty_columns() -> None:
    require_golden("display_live", drawn())


def test_no_bars_if_the_terminal_cannot_write_them() -> None:
    text = drawn("ascii")
    assert text.replace("…", "").isascii()
    require_golden("display_live_ascii", text)


def test_the_live_display_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=Terminal(), force_terminal=True, width=80, color_system="truecolor", no_color=None)
    live = LiveDisplay(console)
    live.begin("runs/one", 4, [BASE, row(1), row(2)])
    live.stop()
    with console.capture() as capture:
        console.print(live.draw())
    assert "\x1b[1m" in capture.get()  # bold
    assert "\x1b[3" not in capture.get()  # no colour
