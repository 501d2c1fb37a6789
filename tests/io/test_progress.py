"""Lines within a long piece of work, by a clock that the test turns."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shepherd.io import progress
from shepherd.io.progress import Progress, Stage, beat, stage

HALF_A_MINUTE = 30.0


class Clock:
    """Time passes only while somebody waits."""

    def __init__(self, until: float) -> None:
        self.now, self.until = 0.0, until

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.now > self.until

    def read(self) -> float:
        return self.now


def beats(under_way: Stage, until: float, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.INFO)
    clock = Clock(until)
    beat([under_way], clock.wait, clock.read)
    return list(caplog.messages)


def far(**more: Any) -> Progress:
    given = {"round": 2, "rounds": 20, "clients_done": 2, "clients": 10, "tokens": 13100, "loss": 2.534}
    return Progress(**{**given, "seconds": 10.0, **more})


def test_whatever_goes_on_says_so_at_least_every_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    said = beats(Stage(name="loading base", began=0.0), 200.0, caplog)
    assert len(said) >= 200 // HALF_A_MINUTE
    assert progress.EVERY_S <= HALF_A_MINUTE
    assert said[:2] == ["loading base: 25 s so far", "loading base: 50 s so far"]


def test_what_is_counted_says_how_far_it_is_and_what_is_left() -> None:
    scoring = Stage(name="scoring 2,000 held-out examples", total=2000, began=100.0)
    assert scoring.line(130.0) == "scoring 2,000 held-out examples: 0 of 2,000, 30 s so far"
    scoring.advance(500)
    assert scoring.line(160.0) == (
        "scoring 2,000 held-out examples: 500 of 2,000, about 3 min left, 1 min 00 s so far"
    )


def test_a_round_names_its_clients_step_speed_loss_and_time_left() -> None:
    whole = far(first=3, last=5, step=4, steps=12, round_tokens=52400)
    # a quarter of round 2 took 10 s: 40 s for each of 19 rounds, less these 10 s
    left = "about 12 min left"
    assert str(whole) == f"round 2/20: clients 3-5 of 10, step 4 of 12, 1,310 tokens/s, loss 2.53, {left}"
    assert str(far(first=3, last=3, tokens=0, round_tokens=99)) == "round 2/20: client 3 of 10, 10 s so far"
    assert str(far(clients_done=5, tokens=0)) == "round 2/20: 5 of 10 clients done, about 6 min left"


def test_a_round_that_hears_nothing_new_still_counts_its_seconds(caplog: pytest.LogCaptureFixture) -> None:
    under_way = Stage(name="round 2/20", began=0.0)
    under_way.at(far(first=1, last=1, tokens=0, round_tokens=99, seconds=0.0))
    assert beats(under_way, 60.0, caplog) == [
        "round 2/20: client 1 of 10, 25 s so far",
        "round 2/20: client 1 of 10, 50 s so far",
    ]


def test_a_stage_beats_while_its_block_runs_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.005)
    caplog.set_level(logging.INFO)
    with stage("proving"):
        while not caplog.messages:
            pass
    with pytest.raises(ZeroDivisionError), stage("failing"):
        raise ZeroDivisionError
    said = len(caplog.messages)
    time.sleep(0.05)
    assert len(caplog.messages) == said
    assert caplog.messages[0].startswith("proving: ")


def test_a_stage_that_was_given_up_does_not_silence_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def updates() -> Iterator[int]:
        with stage("tuning"):
            yield 1
            yield 2

    with stage("round 1/2"):
        given_up = updates()
        next(given_up)
    given_up.close()
    monkeypatch.setattr(progress, "EVERY_S", 0.005)
    caplog.set_level(logging.INFO)
    with stage("round 2/2"):
        while not caplog.messages:
            pass
    assert caplog.messages[0].startswith("round 2/2: ")


def test_many_short_stages_in_a_long_one_are_no_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.05)
    caplog.set_level(logging.INFO)
    with stage("preparing the run"):
        while not caplog.messages:
            with stage("reading a file"):  # shorter than a beat
                time.sleep(0.004)
    assert caplog.messages[0].split(":")[0] in ("preparing the run", "reading a file")


class Bar:
    """A stand-in for tqdm's bar, which only widgets draw."""

    made: list[Bar] = []  # noqa: RUF012

    def __init__(self, desc: str, total: int | None, leave: bool) -> None:
        self.desc, self.total, self.count, self.postfix, self.open = desc, total, 0, "", True
        self.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.open = False

    def update(self, count: int) -> None:
        self.count += count

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfix = text


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Bar]]:
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Bar))
    yield Bar.made
    Bar.made.clear()


def test_a_notebook_gets_a_bar_for_each_stage(notebook: list[Bar]) -> None:
    with stage("round 2/20", 52400) as now:
        now.at(far(tokens=100))
        now.at(far(tokens=300))
        assert [(bar.desc, bar.total, bar.count, bar.postfix, bar.open) for bar in notebook] == [
            ("round 2/20", 52400, 300, "loss 2.534", True)
        ]
    with stage("loading base"):
        pass
    assert [(bar.total, bar.open) for bar in notebook] == [(52400, False), (None, False)]


def test_there_is_no_bar_where_there_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # an import of it would fail
    with stage("loading base") as now:
        assert now.bar is None
