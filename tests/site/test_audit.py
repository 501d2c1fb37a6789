"""The audit log on a real disk: whole lines, the owner's alone, counted once, no text of an example."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.errors import BadRow, FolderError
from shepherd.site import audit
from shepherd.site.audit import Left
from shepherd.site.policy import Refusal
from tests.site.asking import NOON, request

LEFT = Left(bytes=4096, tensors=4, metrics=("loss", "steps"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / audit.FILE


def test_what_is_recorded_is_read_back(log: Path) -> None:
    asked = request(transforms=[{"name": "clip"}], tuning={"max_steps": 7})
    refusal = Refusal("max_rank", "policy max_rank = 8 of site-1 refuses rank 16; lower adapter.rank")
    written = [
        audit.granted_to(asked, NOON),
        audit.answered(asked, NOON, LEFT),
        audit.refused(asked, NOON, refusal),
        audit.failed(asked, NOON, BadRow("line 3: secret")),
    ]
    for event in written:
        audit.record(log, event)
    assert audit.events(log) == written
    first, second, third, fourth = map(json.loads, log.read_text().splitlines())
    assert first == {
        "what": "granted",
        "when": "2026-11-22T12:00:00",
        "kind": "train",
        "run": "0123456789abcdef",
        "round": 0,
        "id": "q1",
        "asked": {
            "base": "ab" * 32,
            "version": "1",
            "cohort": 3,
            "rounds": 5,
            "rank": 8,
            "algorithm": "fedavg",
            "transforms": ["clip"],
            "max_steps": 7,
            "batch_size": 32,
            "loss_on": "responses",
        },
    }
    assert second["left"] == {"bytes": 4096, "tensors": 4, "metrics": ["loss", "steps"]}
    assert (third["rule"], third["sentence"]) == ("max_rank", str(refusal))
    assert fourth["fault"] == "BadRow"
    assert "secret" not in log.read_text()


def test_a_refusal_of_what_another_version_asks_is_kept_too(log: Path) -> None:
    asked = replace(request(), settings={**request().settings, "a_new_table": {"x": 1}})
    audit.record(log, audit.refused(asked, NOON, Refusal("version", "the server has 2; install one version")))
    (event,) = audit.events(log)
    assert (event.what, event.rule, event.asked) == ("refused", "version", {})


def test_an_event_is_one_line_however_it_was_asked_for(log: Path) -> None:
    name = "a\nb\u2028" + "x" * 999
    audit.record(log, audit.granted_to(request(algorithm={"name": name}, id=name, run=name), NOON))
    assert log.read_bytes().count(b"\n") == 1
    assert len(log.read_bytes()) < 1000


def test_the_log_is_its_owners_alone(log: Path) -> None:
    before = os.umask(0)
    try:
        audit.record(log, audit.granted_to(request(), NOON))
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    log.chmod(0o644)
    audit.record(log, audit.granted_to(request(), NOON))
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@given(cut=st.integers(1, 300))
def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path_factory: Any, cut: int) -> None:
    log = tmp_path_factory.mktemp("home") / audit.FILE
    for number in range(3):
        audit.record(log, audit.granted_to(request(round=number), NOON))
    whole = log.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    cut = min(cut, len(last))
    log.write_bytes(whole[: len(whole) - cut])
    survivors = 3 if cut == 1 else 2  # only the end of the line was lost
    assert audit.granted(log, "2026-11") == survivors
    audit.record(log, audit.granted_to(request(round=9), NOON))
    rounds = [event.round for event in audit.events(log)]
    assert rounds == [*range(survivors), 9]
    assert log.read_bytes().startswith(whole[: len(whole) - cut])


@pytest.mark.parametrize("line", [b"[]", b"3", b'{"what": "granted"}', b"\xff\xfe", b'{"left": 3}', b""])
def test_a_line_that_is_no_event_is_passed_over(log: Path, line: bytes) -> None:
    audit.record(log, audit.answered(request(), NOON, LEFT))
    log.write_bytes(log.read_bytes() + line + b"\n")
    assert [event.what for event in audit.events(log)] == ["answered"]


# --- what cannot be audited


def full(handle: int, data: bytes) -> int:
    """The disk takes ten bytes and no more."""
    if len(data) > 10:
        return os.pwrite(handle, data[:10], os.fstat(handle).st_size)
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence_and_leaves_no_part_of_the_line(log: Path, monkeypatch: Any) -> None:
    audit.record(log, audit.granted_to(request(), NOON))
    before = log.read_bytes()
    calls = iter([full, lambda *_: full(0, b"")])
    monkeypatch.setattr(os, "write", lambda *given: next(calls)(*given))
    with pytest.raises(
        FolderError, match=r"audit log .*audit\.jsonl cannot be used \(its disk is full\); fre"
    ):
        audit.record(log, audit.granted_to(request(), NOON))
    assert log.read_bytes() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    log, elsewhere = tmp_path / audit.FILE, tmp_path / "elsewhere"
    elsewhere.touch()
    log.symlink_to(elsewhere)
    with pytest.raises(FolderError, match="cannot be used"):
        audit.record(log, audit.granted_to(request(), NOON))
    assert elsewhere.read_bytes() == b""


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"nowhere/audit\.jsonl cannot be used \(No such file"):
        audit.record(tmp_path / "nowhere" / audit.FILE, audit.granted_to(request(), NOON))


def test_no_log_holds_no_events(log: Path) -> None:
    assert audit.events(log) == []
    assert audit.granted(log, "2026-11") == 0


# --- the budget


def _add(log: Path, number: int) -> None:
    for k in range(20):
        audit.record(log, audit.granted_to(request(round=k, id=f"{number}-{k}"), NOON))


def test_two_processes_lose_no_line(log: Path) -> None:
    context = get_context("spawn")
    writers = [context.Process(target=_add, args=(log, number)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert audit.granted(log, "2026-11") == 40


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["granted", "answered", "refused"]),
        st.sampled_from(["join", "train", "score"]),
        st.sampled_from(["a" * 16, "b" * 16]),
        st.integers(0, 3),
        st.datetimes(datetime(2026, 10, 30), datetime(2026, 12, 2)),
    ),
    max_size=12,
)


@given(EVENTS)
def test_the_same_round_of_the_same_run_counts_once(tmp_path_factory: Any, events: list[Any]) -> None:
    log = tmp_path_factory.mktemp("home") / audit.FILE
    questions = set()
    for what, kind, run, number, when in events:
        asked = request(kind, run=run, round=number, id=f"{run}{number}")
        make = {
            "granted": lambda asked, when: audit.granted_to(asked, when),
            "answered": lambda asked, when: audit.answered(asked, when, LEFT),
            "refused": lambda asked, when: audit.refused(asked, when, Refusal("hours", "no")),
        }
        audit.record(log, make[what](asked, when))
        if (what, kind, when.year, when.month) == ("granted", "train", 2026, 11):
            questions.add((run, number))
    assert audit.granted(log, "2026-11") == len(questions)
    again = ("a" * 16, 0, f"{'a' * 16}0")
    assert audit.granted(log, "2026-11", besides=again) == len(questions - {("a" * 16, 0)})


def test_another_run_or_round_under_the_same_id_counts(log: Path) -> None:
    for asked in (request(), request(run="f" * 16), request(round=1)):
        audit.record(log, audit.granted_to(asked, NOON))
    assert audit.granted(log, "2026-11", besides=("0123456789abcdef", 0, "q1")) == 2


def test_another_question_under_the_same_round_counts_again(log: Path) -> None:
    for name in ("q1", "q2", "q1"):
        audit.record(log, audit.granted_to(request(id=name), NOON))
    audit.record(log, audit.granted_to(request("score", id="q3"), NOON))
    assert audit.granted(log, "2026-11") == 2
    assert audit.granted(log, "2026-11", kind="score") == 1
    assert audit.granted(log, "2026-12") == 0
