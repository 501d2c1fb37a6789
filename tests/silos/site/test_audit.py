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

from shepherd.core import Adapter, Broadcast
from shepherd.errors import BadRow, FolderError
from shepherd.silos.site import audit
from shepherd.silos.site.audit import Released
from shepherd.silos.site.policy import MonthUsage, Refusal, Visit
from shepherd.silos.site.site_settings import ScoringTable
from tests.silos.site.asking import NOON, request

LEFT = Released(bytes=4096, tensors=4, metrics={"loss": 2.31, "steps": 6.0})


def november(log: Path) -> Path:
    return audit.month_log(log, "2026-11")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / audit.FILE


def test_what_is_recorded_is_read_back(log: Path) -> None:
    asked = request(transforms=[{"name": "clip"}], tuning={"max_steps": 7})
    refusal = Refusal("max_rank", "policy max_rank = 8 of site-1 refuses rank 16; lower adapter.rank")
    written = [
        audit.granted_event(asked, NOON),
        audit.answered_event(asked, NOON, LEFT),
        audit.refused_event(asked, NOON, refusal),
        audit.failed_event(asked, NOON, BadRow("line 3: secret")),
    ]
    for event in written:
        audit.record(log, event)
    assert audit.events(log) == written
    first, second, third, fourth = map(json.loads, november(log).read_text().splitlines())
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
            "weights": "examples",
            "dtype": "auto",
            "rank": 8,
            "alpha": 16.0,
            "dropout": 0.0,
            "algorithm": "fedavg",
            "transforms": ["clip"],
            "template": "plain",
            "max_tokens": 512,
            "max_steps": 7,
            "batch_size": 32,
            "learning_rate": 0.00015,
            "optimiser": '{"name": "adamw"}',
            "objective": '{"name": "sft"}',
            "clip_norm": 1.0,
            "loss_on": "responses",
        },
    }
    assert second["left"] == {"bytes": 4096, "tensors": 4, "metrics": {"loss": 2.31, "steps": 6.0}}
    assert (third["rule"], third["sentence"]) == ("max_rank", str(refusal))
    assert fourth["fault"] == "BadRow"
    assert "secret" not in november(log).read_text()


def test_a_refusal_of_what_another_version_asks_is_kept_too(log: Path) -> None:
    asked = replace(request(), settings={**request().settings, "a_new_table": {"x": 1}})
    audit.record(
        log, audit.refused_event(asked, NOON, Refusal("version", "the server has 2; install one version"))
    )
    (event,) = audit.events(log)
    assert (event.what, event.rule, event.asked) == ("refused", "version", {})


def test_an_event_is_one_line_however_it_was_asked_for(log: Path) -> None:
    name = "a\nb\u2028" + "x" * 999
    audit.record(log, audit.granted_event(request(algorithm={"name": name}, id=name, run=name), NOON))
    assert november(log).read_bytes().count(b"\n") == 1
    assert len(november(log).read_bytes()) < 1000


def test_the_log_is_its_owners_alone(log: Path) -> None:
    before = os.umask(0)
    try:
        audit.record(log, audit.granted_event(request(), NOON))
    finally:
        os.umask(before)
    assert stat.S_IMODE(november(log).stat().st_mode) == 0o600
    november(log).chmod(0o644)
    audit.record(log, audit.granted_event(request(), NOON))
    assert stat.S_IMODE(november(log).stat().st_mode) == 0o600


@given(cut=st.integers(1, 300))
def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path_factory: Any, cut: int) -> None:
    log = tmp_path_factory.mktemp("home") / audit.FILE
    for number in range(2):
        audit.record(log, audit.granted_event(request(round=number), NOON))
    counted = beside(log).read_bytes()
    audit.record(log, audit.granted_event(request(round=2), NOON))
    beside(log).write_bytes(counted)  # the line is on the disk before it is counted
    whole = november(log).read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    cut = min(cut, len(last))
    november(log).write_bytes(whole[: len(whole) - cut])
    assert audit.month_usage(log, "2026-11").rounds == 2
    audit.record(log, audit.granted_event(request(round=9), NOON))
    survivors = 3 if cut == 1 else 2  # only the end of the line was lost
    rounds = [event.round for event in audit.events(log)]
    assert rounds == [*range(survivors), 9]
    assert november(log).read_bytes().startswith(whole[: len(whole) - cut])
    assert audit.month_usage(log, "2026-11").rounds == survivors + 1
    beside(log).unlink()
    assert audit.month_usage(log, "2026-11").rounds == survivors + 1


@pytest.mark.parametrize("torn", ["{", '{"what":"gr', "\0" * 9000, "x" * 5000])
def test_a_line_that_a_crash_left_of_the_first_event_closes_nothing(log: Path, torn: str) -> None:
    november(log).write_text(torn)
    audit.record(log, audit.granted_event(request(), NOON))
    beside(log).unlink()
    assert audit.month_usage(log, "2026-11").rounds == 1
    assert november(log).read_text().splitlines()[0] == torn + " (unfinished)"


@pytest.mark.parametrize("line", [b"[]", b"3", b'{"what": "granted"}', b"\xff\xfe", b'{"left": 3}', b""])
def test_a_line_that_is_no_event_is_passed_over(log: Path, line: bytes) -> None:
    audit.record(log, audit.answered_event(request(), NOON, LEFT))
    november(log).write_bytes(november(log).read_bytes() + line + b"\n")
    assert [event.what for event in audit.events(log)] == ["answered"]


# --- what cannot be audited


def full(handle: int, data: bytes) -> int:
    """The disk takes ten bytes and no more."""
    if len(data) > 10:
        return os.pwrite(handle, data[:10], os.fstat(handle).st_size)
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence_and_leaves_no_part_of_the_line(log: Path, monkeypatch: Any) -> None:
    audit.record(log, audit.granted_event(request(), NOON))
    before = november(log).read_bytes()
    calls = iter([full, lambda *_: full(0, b"")])
    monkeypatch.setattr(os, "write", lambda *given: next(calls)(*given))
    with pytest.raises(
        FolderError, match=r"audit log .*audit-2026-11\.jsonl cannot be used \(its disk is full\); fre"
    ):
        audit.record(log, audit.granted_event(request(), NOON))
    assert november(log).read_bytes() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    log, elsewhere = tmp_path / audit.FILE, tmp_path / "elsewhere"
    elsewhere.touch()
    november(log).symlink_to(elsewhere)
    with pytest.raises(FolderError, match="cannot be used"):
        audit.record(log, audit.granted_event(request(), NOON))
    assert elsewhere.read_bytes() == b""


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"nowhere/audit-2026-11\.jsonl cannot be used \(No such file"):
        audit.record(tmp_path / "nowhere" / audit.FILE, audit.granted_event(request(), NOON))


def test_no_log_holds_no_events(log: Path) -> None:
    assert audit.events(log) == []
    assert audit.month_usage(log, "2026-11").rounds == 0


# --- the budget


def _add(log: Path, number: int) -> None:
    for k in range(20):
        audit.record(log, audit.granted_event(request(round=k, id=f"{number}-{k}"), NOON))


def test_two_processes_lose_no_line(log: Path) -> None:
    context = get_context("spawn")
    writers = [context.Process(target=_add, args=(log, number)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert audit.month_usage(log, "2026-11").rounds == 40


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
def test_each_try_of_the_month_counts(tmp_path_factory: Any, events: list[Any]) -> None:
    log = tmp_path_factory.mktemp("home") / audit.FILE
    tries = 0
    for what, kind, run, number, when in events:
        asked = request(kind, run=run, round=number, id=f"{run}{number}")
        make = {
            "granted": lambda asked, when: audit.granted_event(asked, when),
            "answered": lambda asked, when: audit.answered_event(asked, when, LEFT),
            "refused": lambda asked, when: audit.refused_event(asked, when, Refusal("hours", "no")),
        }
        audit.record(log, make[what](asked, when))
        tries += (what, kind, when.year, when.month) == ("granted", "train", 2026, 11)
    assert audit.month_usage(log, "2026-11").rounds == tries


def test_another_run_or_round_under_the_same_id_is_another_question(log: Path) -> None:
    for asked in (request(), request(run="f" * 16), request(round=1)):
        audit.record(log, audit.granted_event(asked, NOON))
    found = audit.month_usage(log, "2026-11", asked=("0123456789abcdef", 0, "q1"))
    assert (found.rounds, found.tries) == (3, 1)


def test_scores_and_visits_are_counted_apart_and_by_month(log: Path) -> None:
    for name in ("q1", "q2"):
        audit.record(log, audit.granted_event(request(id=name), NOON))
    audit.record(log, audit.granted_event(request("score", id="q3"), NOON))
    assert audit.month_usage(log, "2026-11").rounds == 2
    assert audit.month_usage(log, "2026-11", kind="score").rounds == 1
    assert audit.month_usage(log, "2026-12").rounds == 0


def test_runs_are_counted_over_both_kinds_but_for_the_one_that_asks(log: Path) -> None:
    for kind, run in (("train", "a"), ("score", "a"), ("score", "b"), ("join", "c"), ("train", "d")):
        audit.record(log, audit.granted_event(request(kind, run=run * 16), NOON))
    assert audit.month_usage(log, "2026-11").runs == 3
    assert audit.month_usage(log, "2026-11", asked=("b" * 16, 0, "q1")).runs == 2
    assert audit.month_usage(log, "2026-11", asked=("e" * 16, 0, "q1")).runs == 3


def test_what_decides_how_much_leaves_is_in_the_log(log: Path) -> None:
    adapter = Adapter({"q.lora_A.weight": [[3.0, 4.0]], "q.lora_B.weight": [[0.0]]})
    sent = Broadcast(round=0, adapter=adapter, seed=1)
    other = replace(sent, adapter=adapter.times(2.0))
    for each in (sent, other):
        asked = request("score", broadcast=each)
        scoring = ScoringTable(examples=40)
        audit.record(log, audit.granted_event(asked, NOON, scoring=scoring, behind={"qa": 40}))
    audit.record(log, audit.granted_event(request(), NOON, visit=Visit(steps=3, taken=24, different=20)))
    first, second, third = (event.asked for event in audit.events(log))
    assert (first["norm"], second["norm"]) == (5.0, 10.0)
    assert first["adapter"] != second["adapter"]
    assert first["scoring"]["behind"] == {"qa": 40}
    assert first["scoring"]["examples"] == 40
    assert (third["steps"], third["examples"], third["different"]) == (3, 24, 20)


def test_an_older_log_is_read_and_counted_and_not_written(log: Path) -> None:
    old = {"what": "granted", "when": "2026-11-03T08:00:00", "kind": "train", "run": "a" * 16}
    old |= {"round": 0, "id": "q0"}
    left = {**old, "what": "answered", "left": {"bytes": 9, "tensors": 1, "metrics": ["loss"]}}
    log.write_text(json.dumps(old) + "\n" + json.dumps(left) + "\n")
    before = log.read_bytes()
    assert audit.month_usage(log, "2026-11").rounds == 1
    audit.record(log, audit.granted_event(request(), NOON))
    assert log.read_bytes() == before
    assert audit.month_usage(log, "2026-11").rounds == 2
    assert [event.what for event in audit.events(log)] == ["granted", "answered", "granted"]
    assert audit.events(log)[1].left == Released(bytes=9, tensors=1, metrics={"loss": None})


# --- the counts beside it


def beside(log: Path) -> Path:
    return november(log).with_suffix(".counts.json")


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda counts: None,
        lambda counts: "",
        lambda counts: "[]",
        lambda counts: json.dumps({**json.loads(counts), "times": 3}),
    ],
)
def test_counts_that_are_missing_or_cannot_be_read_are_made_again(log: Path, spoilt: Any) -> None:
    for number in range(5):
        audit.record(log, audit.granted_event(request(round=number), NOON))
    text = spoilt(beside(log).read_text())
    if text is None:
        beside(log).unlink()
    else:
        beside(log).write_text(text)
    assert audit.month_usage(log, "2026-11").rounds == 5
    audit.record(log, audit.granted_event(request(round=9), NOON))
    assert audit.month_usage(log, "2026-11").rounds == 6
    assert stat.S_IMODE(beside(log).stat().st_mode) == 0o600


def removed(log: Path) -> None:
    november(log).unlink()


def emptied(log: Path) -> None:
    november(log).write_bytes(b"")


def two_lines(log: Path) -> None:
    november(log).write_bytes(b"".join(november(log).read_bytes().splitlines(keepends=True)[:2]))


def cut_in_its_last_line(log: Path) -> None:
    november(log).write_bytes(november(log).read_bytes()[:-3])


def another_end(log: Path) -> None:
    november(log).write_bytes(november(log).read_bytes().replace(b'"round":9', b'"round":8'))


@pytest.mark.parametrize("lost", [removed, emptied, two_lines, cut_in_its_last_line, another_end])
def test_a_log_that_has_lost_what_was_counted_closes_the_site(log: Path, lost: Any) -> None:
    for number in range(10):
        audit.record(log, audit.granted_event(request(round=number), NOON))
    before = november(log).read_bytes()
    lost(log)
    left = november(log).read_bytes() if november(log).exists() else b""
    for _ in range(2):
        for ask in (
            lambda: audit.month_usage(log, "2026-11"),
            lambda: audit.record(log, audit.granted_event(request(round=10), NOON)),
        ):
            with pytest.raises(FolderError, match="every request is refused") as caught:
                ask()
            assert str(november(log)) in str(caught.value)
            assert str(beside(log)) in str(caught.value)
    assert november(log).read_bytes() == left
    november(log).write_bytes(before)  # as the error asks
    audit.record(log, audit.granted_event(request(round=10), NOON))
    assert audit.month_usage(log, "2026-11").rounds == 11
    lost(log)
    beside(log).unlink()  # and for an owner without a copy
    audit.month_usage(log, "2026-11")
    audit.record(log, audit.granted_event(request(round=11), NOON))


def test_a_log_of_which_counts_know_less_is_whole(log: Path) -> None:
    """A crash between a line and its count, or a full disk that took the line alone."""
    audit.record(log, audit.granted_event(request(round=0), NOON))
    counted = beside(log).read_bytes()
    for number in (1, 2):
        audit.record(log, audit.granted_event(request(round=number), NOON))
    beside(log).write_bytes(counted)
    assert audit.month_usage(log, "2026-11").rounds == 3
    audit.record(log, audit.granted_event(request(round=3), NOON))
    assert audit.month_usage(log, "2026-11").rounds == 4


@pytest.mark.parametrize("line", [b"[]", b"3", b'{"what":"granted"}', b"\xff\xfe", b'{"what":"gr\0nted"'])
@pytest.mark.parametrize("counted", [False, True])
def test_a_whole_line_that_cannot_be_read_closes_the_site(log: Path, line: bytes, counted: bool) -> None:
    """With or without counts of what is before it: it may be a visit that was granted."""
    audit.record(log, audit.granted_event(request(), NOON))
    if not counted:
        beside(log).unlink()
    november(log).write_bytes(november(log).read_bytes() + line + b"\n\n")
    for ask in (
        lambda: audit.month_usage(log, "2026-11"),
        lambda: audit.record(log, audit.granted_event(request(), NOON)),
    ):
        with pytest.raises(FolderError, match=r"line 2 of audit log .* every request is refused"):
            ask()
    november(log).write_bytes(november(log).read_bytes().replace(line + b"\n", b""))
    assert audit.month_usage(log, "2026-11").rounds == 1


def test_only_what_was_added_is_read(log: Path, monkeypatch: Any) -> None:
    for number in range(50):
        audit.record(log, audit.granted_event(request(round=number), NOON))
    read: list[bytes] = []
    honest = audit._event
    monkeypatch.setattr(audit, "_event", lambda line: read.append(line) or honest(line))
    assert audit.month_usage(log, "2026-11").rounds == 50
    audit.record(log, audit.granted_event(request(round=99), NOON))
    assert audit.month_usage(log, "2026-11").rounds == 51
    assert len([line for line in read if line]) == 1


# --- refusals again and again


def refusals(log: Path, count: int, rule: str = "hours", **about: Any) -> None:
    for _ in range(count):
        audit.record(log, audit.refused_event(request(**about), NOON, Refusal(rule, "no")))


def test_refusals_of_one_rule_and_run_are_folded(log: Path) -> None:
    refusals(log, 100)
    events = audit.events(log)
    assert [event.sentence for event in events] == 10 * ["no"] + [
        "no (and 9 more)",
        "no (and 19 more)",
        "no (and 39 more)",
    ]
    assert [event.more for event in events] == 10 * [0] + [9, 19, 39]
    refusals(log, 1, rule="max_rank")
    refusals(log, 1, run="f" * 16)
    assert len(audit.events(log)) == 15
    beside(log).unlink()  # then what the lines say is known
    refusals(log, 79)
    assert len(audit.events(log)) == 15
    refusals(log, 1)
    assert audit.events(log)[-1].more == 79


def test_naming_other_runs_does_not_unfold_them(log: Path) -> None:
    for number in range(400):
        refusals(log, 1, run=f"{number:016x}")
    assert len(audit.events(log)) < audit.MAX_RUN_CLASSES + 16


def test_a_new_question_always_has_its_line(log: Path) -> None:
    for number in range(30):
        audit.record(log, audit.granted_event(request(round=number), NOON))
        audit.record(log, audit.answered_event(request(round=number), NOON, LEFT))
    assert len(audit.events(log)) == 60


REPEATED = {
    "refused": lambda asked: audit.refused_event(asked, NOON, Refusal("hours", "no")),
    "failed": lambda asked: audit.failed_event(asked, NOON, MemoryError()),
    "granted": lambda asked: audit.granted_event(asked, NOON),
    "answered": lambda asked: audit.answered_event(asked, NOON, LEFT),
}


@pytest.mark.parametrize("what", REPEATED)
@pytest.mark.parametrize("kind", ["join", "train", "score"])
def test_whatever_repeats_is_folded(log: Path, what: str, kind: str) -> None:
    asked = request(kind)
    for _ in range(100):
        audit.record(log, REPEATED[what](asked))
    assert [event.more for event in audit.events(log)] == 10 * [0] + [9, 19, 39]
    beside(log).unlink()  # then what the lines say is known: 80
    for _ in range(80):
        audit.record(log, REPEATED[what](asked))
    assert [event.more for event in audit.events(log)][13:] == [79]


def test_whoever_asks_without_end_does_not_fill_the_disk(log: Path) -> None:
    """Runs and ids are the asker's words; what costs a line each is what the month's budget bounds."""
    for number in range(600):
        other = {"run": f"{number:016x}", "id": f"{number:032x}"}
        audit.record(log, audit.failed_event(request(**other), NOON, ValueError()))
        audit.record(log, audit.failed_event(request(id=f"{number:032x}"), NOON, MemoryError()))
        audit.record(log, audit.granted_event(request("join", **other), NOON))
        audit.record(log, audit.answered_event(request("join", **other), NOON, LEFT))
    assert len(audit.events(log)) < audit.MAX_RUN_CLASSES + 4 * 20
    assert len(beside(log).read_bytes()) < 50_000


# --- what came to nothing


def tried(log: Path, **about: Any) -> MonthUsage:
    asked = request(**about)
    question = (asked.run, asked.round, asked.id)
    return audit.month_usage(log, "2026-11", kind=asked.kind, asked=question)


def test_each_try_counts_for_the_month_and_for_its_question(log: Path) -> None:
    for round, times in ((0, 3), (1, 1)):
        for _ in range(times):
            audit.record(log, audit.granted_event(request(round=round), NOON))
    assert (tried(log).rounds, tried(log).tries, tried(log, round=1).tries) == (4, 3, 1)
    assert (tried(log, run="f" * 16).rounds, tried(log, run="f" * 16).tries) == (4, 0)
    beside(log).unlink()
    assert (tried(log).rounds, tried(log).tries) == (4, 3)


def test_what_came_to_nothing_is_counted_by_its_run(log: Path) -> None:
    """Where the process was killed there is no line but that it began."""
    for round in range(3):
        audit.record(log, audit.granted_event(request(round=round), NOON))
    assert tried(log).failures == 3
    audit.record(log, audit.answered_event(request(round=0), NOON, LEFT))
    audit.record(log, audit.answered_event(request(round=0), NOON, LEFT))
    audit.record(log, audit.failed_event(request(round=1), NOON, MemoryError()))
    assert tried(log).failures == 2
    for _ in range(30):  # before anything was granted
        audit.record(log, audit.failed_event(request(round=4), NOON, FolderError()))
    assert tried(log).failures == 32
    assert tried(log, kind="score").failures == 32
    assert tried(log, run="f" * 16).failures == 0
    for _ in range(9):
        audit.record(log, audit.failed_event(request("join", run="f" * 16), NOON, FolderError()))
    assert tried(log, run="f" * 16).failures == 0


def test_answers_to_one_question_are_counted_whoever_else_is_answered(log: Path) -> None:
    for _ in range(7):
        for run in "ab":
            audit.record(log, audit.answered_event(request(run=run * 16), NOON, LEFT))
    assert [tried(log, run=run * 16).answers for run in "abc"] == [7, 7, 0]
