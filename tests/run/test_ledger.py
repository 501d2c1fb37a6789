"""Where a ledger stands when its run goes on: what is counted besides, and how often."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.errors import FolderError
from shepherd.privacy.example_level import ExampleAccount
from shepherd.run import ledger


@pytest.mark.parametrize(
    ("kept", "rounds", "finished", "others", "due"),
    [
        ({}, [], 0, {}, (0, 0)),
        ({"finished": 5}, [5], 5, {}, (5, 0)),
        ({"finished": 5}, [5], 3, {}, (5, 0)),
        ({"finished": 2}, [5], 3, {}, (5, 0)),  # the log alone knows of them
        ({}, [], 3, {"released": 5, "again": 2}, (5, 2)),  # another one does
        ({"finished": 3, "last_lost": 5, "again": 2}, [5], 3, {"released": 5}, (3, 2)),  # counted already
        ({"finished": 4, "last_lost": 5, "again": 2}, [5], 3, {"released": 5}, (4, 2)),  # 4 was made again
        ({"finished": 3, "last_lost": 5, "again": 2}, [6], 3, {}, (6, 2)),
        ({"finished": 3, "last_lost": 5, "again": 2}, [5], 1, {}, (3, 2)),  # 2 and 3 are lost besides
    ],
)
def test_where_a_ledger_stands(
    kept: dict[str, int], rounds: list[int], finished: int, others: dict[str, int], due: tuple[int, int]
) -> None:
    at = ledger.standing(kept, [{"round": each} for each in rounds], "privacy", finished, **others)
    assert (at.released, at.again) == due
    assert at.last_lost == (due[0] if due[0] > finished else 0)


def test_a_row_says_what_is_counted_besides_as_well() -> None:
    rows = [
        {"round": 1},
        {"round": 2, "privacy": {"again": 4}},
        {"round": 2, "example_privacy": {"again": 3}},
    ]
    assert ledger.standing({"again": 1}, rows, "privacy", 2).again == 4
    assert ledger.standing({"again": 1}, rows, "example_privacy", 2).again == 3


@dataclass
class Folder:
    """The folder of a run at one level: ledger, log, and the round of its last checkpoint."""

    kept: dict[str, Any] = field(default_factory=dict)
    log: list[int] = field(default_factory=list)
    saved: int = 0
    seen: int = 0
    """What somebody else has seen of the log, and does not forget."""

    def make(self) -> None:
        self.saved += 1
        self.kept = {**self.kept, "finished": self.saved}
        self.log.append(self.saved)

    def count(self) -> None:
        rows = [{"round": each} for each in self.log]
        at = ledger.standing(self.kept, rows, "privacy", self.saved, released=self.seen)
        self.kept = {
            "finished": self.saved,
            "again": ledger.again_of_examples(at),
            "last_lost": max(at.last_lost, self.kept.get("last_lost", 0)),
        }

    def go_on(self) -> None:
        self.count()
        self.log = [each for each in self.log if each <= self.saved]


@given(st.lists(st.tuples(st.sampled_from(["make", "lose", "die", "tell"]), st.integers(1, 4))))
def test_each_round_that_was_released_is_counted_once_whenever_a_process_dies(
    events: list[tuple[str, int]],
) -> None:
    """Against a count of all rounds that were ever made."""
    run, made = Folder(), 0
    for event, count in events:
        if event == "make":
            run.go_on()
            for _ in range(count):
                run.make()
            made += count
        elif event == "lose":
            run.saved = max(0, run.saved - count)
        elif event == "die":  # after it has counted, before the log is cut
            for _ in range(count):
                run.count()
        else:
            run.seen = max([run.seen, *run.log])
    run.go_on()
    assert run.saved + run.kept["again"] == made


def test_what_rows_report_is_kept_whole_where_sizes_are_not_known() -> None:
    rows = [{"round": 1, "example_privacy": {"epsilon": 1.0, "delta": 1e-3}}, {"round": 2}]
    kept = {"finished": 2, "again": 1, "epsilon": 3.0, "delta": 1e-3}
    at = ledger.standing(kept, rows, "example_privacy", 1)
    assert ledger.reported(kept, rows, at) == {"epsilon": 3.0, "delta": 1e-3, "again": 2}
    assert ledger.reported({}, rows, at) == {"epsilon": 1.0, "delta": 1e-3, "again": 2}
    assert ledger.reported({}, [], at) == {"again": 2}


# --- the file

FIRST_VERSION = {
    "unit": "client",
    "clients": 40,
    "relation": "add or remove one",
    "noise": 1.0,
    "sampling": "each client is in a round with a chance of 0.5.",
    "rounds": 10,
    "begun": 4,
    "finished": 3,
    "epsilon": 4.854,
    "delta": 1e-5,
    "budget": None,
    "says": ["Whose privacy: each client's."],
}
OF_EXAMPLES = {"unit": "example", "noise": 1.0, "finished": 3, "epsilon": 0.5, "delta": 1e-3, "says": []}


def put(path: Path, name: str, kept: object) -> Path:
    (path / name).write_text(kept if isinstance(kept, str) else json.dumps(kept))
    return path


def test_ledgers_of_earlier_versions_are_read(tmp_path) -> None:
    assert ledger.read(tmp_path) == {}
    assert ledger.read(put(tmp_path, ledger.LEDGER, FIRST_VERSION)) == FIRST_VERSION
    unbounded = {**FIRST_VERSION, "epsilon": float("inf")}
    assert ledger.read(put(tmp_path, ledger.LEDGER, unbounded))["epsilon"] is None
    for kept in (OF_EXAMPLES, {"finished": 3, "again": 1}):
        assert ledger.read(put(tmp_path, ledger.OF_EXAMPLES, kept), ledger.OF_EXAMPLES) == kept


@pytest.mark.parametrize("kept", [FIRST_VERSION, OF_EXAMPLES])
@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        *(("epsilon", each) for each in (..., -5.0, "abc", float("nan"), True, [1.0])),
        *(("delta", each) for each in (..., 0.0, 1.0, -1e-5, None, "x")),
        *(("finished", each) for each in (..., -2, 1.5, "3", None, True, 10**30)),
        *(("noise", each) for each in (0.0, -1.0, float("inf"), "x")),
        *(("says", each) for each in ("text", [1], None)),
        *(("again", each) for each in (-3, 1.5)),
        ("unit", "site"),
        ("run", 3),
    ],
)
def test_a_key_that_is_missing_or_out_of_range_is_named(tmp_path, kept, key: str, wrong: Any) -> None:
    name = ledger.LEDGER if kept is FIRST_VERSION else ledger.OF_EXAMPLES
    changed = {**kept, key: wrong} if wrong is not ... else {k: v for k, v in kept.items() if k != key}
    which = "epsilon" if (key, wrong) == ("delta", ...) and kept is OF_EXAMPLES else key
    said = "" if wrong != wrong else which  # a NaN is no JSON
    with pytest.raises(FolderError, match=rf"{name} is damaged.*{said}.*restore it"):
        ledger.read(put(tmp_path, name, changed), name)


@pytest.mark.parametrize("name", [ledger.LEDGER, ledger.OF_EXAMPLES])
@pytest.mark.parametrize("kept", ["", "{}", "[]", "null", '{"unit": "cli', '{"epsilon": 0.001}'])
def test_an_empty_or_cut_ledger_is_damaged(tmp_path, name: str, kept: str) -> None:
    with pytest.raises(FolderError, match=f"{name} is damaged.*restore it from a copy"):
        ledger.read(put(tmp_path, name, kept), name)


def test_the_ledger_of_another_run_is_refused(tmp_path) -> None:
    account = ExampleAccount(noise=1.0, batch_size=4, delta=1e-3)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        ledger.write_examples(tmp_path / name, account, {"epsilon": 1.0, "delta": 1e-3}, finished=1)
    one, other = (tmp_path / name / ledger.OF_EXAMPLES for name in ("one", "other"))
    assert ledger.read(one.parent, one.name)["run"] != ledger.read(other.parent, one.name)["run"]
    shutil.copy(other, one)
    with pytest.raises(FolderError, match=r"is of another run.*restore the run's own"):
        ledger.read(one.parent, one.name)
    (one.parent / ledger.RUN_ID).unlink()
    with pytest.raises(FolderError, match="is of another run"):
        ledger.read(one.parent, one.name)
