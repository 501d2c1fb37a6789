"""The simulated clock: hand-worked rounds, what is dropped and carried, and no trace of a failed round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import Quadratic, bits, chosen, drawn, method, update_of

from shepherd.core import Adapter, ClientInfo, Failure, Payload, Update
from shepherd.core.stragglers import Stragglers, staleness_weight
from shepherd.errors import DataError, QuorumNotMet
from shepherd.federation.client_store import InMemory, OnDisk
from shepherd.federation.clocked import Clock, Clocked, clock_from, speeds
from shepherd.rounds import report_row, rounds, start
from shepherd.settings import SpeedsTable

SPEEDS = {"c0": 10.0, "c1": 5.0, "c2": 1.0}
"""Ten examples take 1, 2 and 10 seconds."""


class Scripted:
    """Clients with ten examples each, whose change in round n is n + 1 times a drawn one of their own."""

    def __init__(self, names: Sequence[str] = tuple(SPEEDS), spoil: Any = None) -> None:
        self.names, self.asked = names, list[tuple[int, tuple[str, ...]]]()
        self.spoil = spoil or (lambda update: update)

    def clients(self) -> list[ClientInfo]:
        return [ClientInfo(name=name, examples=10) for name in self.names]

    def begin(self, round: int) -> None:
        pass

    def visit_examples(self, client: str) -> int:
        if client == "empty":
            raise DataError("client empty has no example")
        return 10

    def run_more(self, broadcast, cohort):
        self.asked.append((broadcast.round, tuple(cohort)))
        for name in cohort:
            if name == "empty":
                yield Failure(client=name, reason="client empty has no example")
                continue
            made = replace(update_of(name, int(name[1:]) + 1), round=broadcast.round)
            delta = {key: (broadcast.round + 1) * tensor for key, tensor in made.delta.items()}
            yield self.spoil(replace(made, delta=Adapter(delta), metrics={"loss": 1.0}))


def clocked(made: Scripted, *, store=None, clock: Clock | None = None, speeds=SPEEDS, **keys: Any) -> Clocked:
    return Clocked(
        timed=made,
        stragglers=Stragglers(**keys),
        speeds=speeds,
        store=store or InMemory(),
        clock=clock or Clock(),
    )


def run(federation: Clocked, *, until: int = 1, state=None, quorum: float = 0.5):
    asked = replace(method(), stragglers=federation.stragglers)
    return rounds(
        asked, federation, state or start(asked, drawn(0)), until=until, select=chosen("all"), quorum=quorum,
        seed=0, max_share=1.0,
    )  # fmt: skip


def moved_by(before: Adapter, parts: Mapping[tuple[str, int], float]) -> dict[str, Any]:
    """`before`, moved by the mean of changes of (client, round), each with this weight; in float64."""
    total = sum(parts.values())
    after = {name: tensor.astype(np.float64) for name, tensor in before.items()}
    for (client, round), weight in parts.items():
        change = update_of(client, int(client[1:]) + 1).delta
        for name in after:
            after[name] = after[name] + weight / total * (round + 1) * change[name]
    return after


def close(state, expected) -> None:
    for name, tensor in state.adapter.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_a_round_that_waits_for_all_lasts_as_long_as_its_slowest_client() -> None:
    federation = clocked(Scripted(), min_updates=3)
    done = list(run(federation, until=2))
    assert federation.reached().now == 20.0
    assert not {"late", "dropped", "carried"} & {key for _, report in done for key in report_row(report)}


def test_a_late_update_that_is_dropped_is_not_made_and_its_client_is_asked_again() -> None:
    """c0 needs 1 s and c1 2 s, so a round is over after 2 + 3 s; c2 would need 10."""
    made = Scripted()
    federation = clocked(made, min_updates=2, wait_s=3.0)
    (first, report), (second, _) = run(federation, until=2)
    close(first, moved_by(drawn(0), {("c0", 0): 1.0, ("c1", 0): 1.0}))
    close(second, moved_by(first.adapter, {("c0", 1): 1.0, ("c1", 1): 1.0}))
    assert federation.reached().now == 10.0
    assert made.asked == [(0, ("c0", "c1")), (1, ("c0", "c1"))]
    row = report_row(report)
    assert (row["late"], row["dropped"], row["failures"]) == (["c2"], ["c2"], {})
    assert "carried" not in row
    assert row["bytes_down"] == 3 * drawn(0).nbytes
    assert row["bytes_up"] == 2 * drawn(0).nbytes


def test_a_late_update_that_is_carried_counts_in_the_round_in_which_it_comes() -> None:
    """Rounds of 5 s end at 5, 10 and 15: c2 is due at 10, in the second, and is asked again in the third."""
    made = Scripted()
    federation = clocked(made, min_updates=2, wait_s=3.0, carry=True)
    states, reports = zip(*run(federation, until=4), strict=True)
    close(states[0], moved_by(drawn(0), {("c0", 0): 1.0, ("c1", 0): 1.0}))
    # the second round asks c0 and c1 alone: both are there after 2 s, at 7, and nobody else is waited for
    close(states[1], moved_by(states[0].adapter, {("c0", 1): 1.0, ("c1", 1): 1.0}))
    close(states[2], moved_by(states[1].adapter, {("c0", 2): 1.0, ("c1", 2): 1.0}))
    late = {("c0", 3): 1.0, ("c1", 3): 1.0, ("c2", 0): 0.5}  # three rounds late: 1 / sqrt(1 + 3)
    close(states[3], moved_by(states[2].adapter, late))
    assert federation.reached().now == 11.0  # 5 + 2 + 2 + 2, and c2 came at 10
    assert [asked for _, asked in made.asked] == [("c0", "c1"), ("c2",), *3 * [("c0", "c1")]]
    rows = [report_row(report) for report in reports]
    assert [row.get("late", []) for row in rows] == [["c2"], [], [], []]
    assert [row.get("carried", {}) for row in rows] == [{}, {}, {}, {"c2": 3}]
    assert not any("dropped" in row for row in rows)
    assert [row["bytes_up"] for row in rows] == [2 * drawn(0).nbytes] * 3 + [3 * drawn(0).nbytes]
    assert [row["bytes_down"] for row in rows] == [3 * drawn(0).nbytes] + [2 * drawn(0).nbytes] * 3
    assert rows[3]["weights"] == pytest.approx({"c0": 0.4, "c1": 0.4, "c2": 0.2})
    assert federation.at_work(4) == {}


@given(late=st.integers(1, 9))
def test_the_mean_is_over_the_sum_of_the_weights(late: int) -> None:
    """One change of this round and one that is `late` rounds old: their weights are 1 and s."""
    weight = staleness_weight(late)
    federation = clocked(Scripted(), min_updates=1, carry=True)
    old = replace(update_of("c2", 3), round=0)
    federation.clock = Clock(late={"c2": federation._stored(old, 0.5)})
    state = replace(start(method(), drawn(0)), round=late)
    asked = replace(method(), stragglers=federation.stragglers)
    loop = rounds(
        asked, federation, state, until=late + 1, select=lambda infos, round, seed: ("c0",), quorum=0.5,
        seed=0, max_share=1.0,
    )  # fmt: skip
    ((after, report),) = loop
    close(after, moved_by(drawn(0), {("c0", late): 1.0, ("c2", 0): weight}))
    assert report.carried == {"c2": late}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda update: replace(update, delta=Adapter({**update.delta, "x": [1.0]})),
            "tensor x is not expected",
        ),
        (
            lambda update: replace(
                update,
                delta=Adapter({n: t[:1] if "lora_A" in n else t[:, :1] for n, t in update.delta.items()}),
            ),
            r"has shape \(1, 5\), expected \(2, 5\)",
        ),
        (lambda update: replace(update, weight=-1.0), "its weight -1"),
        (
            lambda update: replace(
                update, delta=Adapter({n: np.full_like(t, np.nan) for n, t in update.delta.items()})
            ),
            "is not finite",
        ),
    ],
)
def test_a_late_update_that_cannot_be_used_is_a_failure_that_says_its_round(spoil, reason) -> None:
    made = Scripted(spoil=lambda update: spoil(update) if update.client == "c2" else update)
    federation = clocked(made, min_updates=2, wait_s=3.0, carry=True)
    *_, (state, report) = run(federation, until=4)
    with pytest.raises(AssertionError, match=f"(?s)its late update of round 1: .*{reason}"):
        assert not report.failures["c2"]
    assert report.carried == {}
    assert set(report.weights) == {"c0", "c1"}
    assert federation.at_work(4) == {}  # it is asked again
    assert state.round == 4


def test_a_client_without_examples_fails_at_once_and_is_not_waited_for() -> None:
    names = ("c0", "c1", "empty")
    federation = clocked(Scripted(names), min_updates=2, speeds={**SPEEDS, "empty": 1.0})
    ((_, report),) = run(federation)
    assert federation.reached().now == 2.0
    assert report.failures == {"empty": "client empty has no example"}


def not_finite(update: Update) -> Update:
    return replace(update, delta=Adapter({n: np.full_like(t, np.nan) for n, t in update.delta.items()}))


def failed(update: Update) -> Failure:
    return Failure(client=update.client, reason="out of memory")


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize(("bad", "why"), [(not_finite, "is not finite"), (failed, "out of memory")])
def test_a_fast_client_without_a_usable_update_is_a_failure_and_ends_no_round(bad, why, carry) -> None:
    """c0 answers after 1 s with nothing of use: the round goes on until c1 and c2 have sent theirs."""
    names, quick = ("c0", "c1", "c2", "c3"), {**SPEEDS, "c3": 0.1}
    made = Scripted(names, lambda update: bad(update) if update.client == "c0" else update)
    federation = clocked(made, speeds=quick, min_updates=2, carry=carry)
    *_, (state, report) = run(federation, until=2)
    assert why in report.failures["c0"]
    assert set(report.weights) == {"c1", "c2"}
    first = moved_by(drawn(0), {("c1", 0): 1.0, ("c2", 0): 1.0})
    change = moved_by(drawn(0).times(0.0), {("c1", 1): 1.0, ("c2", 1): 1.0})
    close(state, {name: first[name] + change[name] for name in first})
    assert federation.reached().now == 20.0  # c2 takes 10 s a round
    tuned = [(0, ("c0", "c1")), (0, ("c2",)), *([(0, ("c3",))] if carry else [])]
    assert made.asked[: len(tuned)] == tuned
    assert federation.at_work(2) == ({"c3": 0} if carry else {})


@given(
    bad=st.sets(st.integers(0, 5)),
    least=st.integers(1, 6),
    wait=st.sampled_from([0.0, 1.5, 30.0]),
)
def test_a_round_waits_for_as_many_usable_updates_as_there_are(bad, least, wait) -> None:
    """Against a plain clock: client k answers after k + 1 seconds, and some of what comes is refused."""
    quick = {f"c{k}": 10.0 / (k + 1) for k in range(6)}
    made = Scripted(tuple(quick), lambda update: not_finite(update) if update.client in named else update)
    named = {f"c{k}" for k in bad}
    federation = clocked(made, speeds=quick, min_updates=least, wait_s=wait)
    usable = [k + 1.0 for k in range(6) if k not in bad]
    due = 6.0 if len(usable) < least else min(usable[least - 1] + wait, 6.0)
    if not usable:
        with pytest.raises(QuorumNotMet):
            list(run(federation, quorum=0.1))
        return
    ((_, report),) = run(federation, quorum=0.1)
    assert federation.reached().now == due
    assert set(report.weights) == {f"c{int(at) - 1}" for at in usable if at <= due}
    assert set(report.failures) == {f"c{k}" for k in bad if k + 1.0 <= due}
    assert set(report.late) == {f"c{k}" for k in range(6) if k + 1.0 > due}


class Owners(Scripted):
    """Clients of which one requires means of three."""

    strict = "c0"

    def clients(self) -> list[ClientInfo]:
        return [replace(each, min_cohort=3 if each.name == self.strict else 1) for each in super().clients()]


@pytest.mark.parametrize(("strict", "due"), [("c0", 99.0), ("c2", 1.5)])
def test_one_clients_min_cohort_ends_no_round_that_has_late_updates(strict: str, due: float) -> None:
    """c0 and c1 are asked while c2 is at work. c0 may not count on c2, which may never come; and if it is c2
    that requires three, it is left out where c1 fails."""
    made = Owners(("c0", "c1", "c2"), lambda u: failed(u) if (strict, u.client) == ("c2", "c1") else u)
    made.strict = strict
    federation = clocked(made, min_updates=2, carry=True)
    federation.clock = Clock(late={"c2": federation._stored(replace(update_of("c2", 3), round=0), due)})
    state = replace(start(method(), drawn(0)), round=1)
    ((_, report),) = run(federation, until=2, state=state)
    left_out = {
        "c0": "its min_cohort is 3 and 2 clients were asked",
        "c2": "is 3 and 2 clients gave a usable",
    }
    assert left_out[strict] in report.failures[strict]
    assert set(report.weights) == {"c0", "c1"} - set(report.failures)


def test_a_late_update_counts_for_its_own_min_cohort() -> None:
    made = Owners(("c0", "c1", "c2"))
    made.strict = "c2"
    federation = clocked(made, min_updates=2, carry=True)
    federation.clock = Clock(late={"c2": federation._stored(replace(update_of("c2", 3), round=0), 1.5)})
    ((_, report),) = run(federation, until=2, state=replace(start(method(), drawn(0)), round=1))
    assert set(report.weights) == {"c0", "c1", "c2"}
    assert report.failures == {}


def test_too_few_in_time_name_who_was_late() -> None:
    federation = clocked(Scripted(), min_updates=1)
    with pytest.raises(QuorumNotMet, match=r"1 of 3 clients .*c1: its update came 1 s after the end"):
        list(run(federation, quorum=0.9))


def test_a_round_that_fails_leaves_no_trace() -> None:
    federation = clocked(Scripted(), min_updates=1, carry=True)
    with pytest.raises(QuorumNotMet):
        list(run(federation, quorum=0.9))
    assert federation.at_work(0) == {}
    assert federation.clock == Clock()
    again = list(run(federation, until=3, quorum=0.3))
    fresh = list(run(clocked(Scripted(), min_updates=1, carry=True), until=3, quorum=0.3))
    assert [bits(state.adapter) for state, _ in again] == [bits(state.adapter) for state, _ in fresh]


def test_it_goes_on_from_its_notes_to_the_same_bits(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"min_updates": 2, "wait_s": 1.0, "carry": True}
    whole = [
        bits(state.adapter)
        for state, _ in run(clocked(Scripted(), store=OnDisk(tmp_path / "a", 2), **keys), until=8)
    ]
    state, clock = None, Clock()
    found = []
    for number in range(1, 9):  # a process for each round
        federation = clocked(Scripted(), store=OnDisk(tmp_path / "b", 2), clock=clock, **keys)
        ((state, _),) = run(federation, until=number, state=state)
        found.append(bits(state.adapter))
        clock = clock_from(json.loads(json.dumps(federation.reached().notes())))
    assert found == whole
    assert len(set(map(str, whole))) == 8


def test_an_update_that_has_come_is_deleted_once_no_checkpoint_needs_it(tmp_path: Path) -> None:
    federation = clocked(Scripted(), store=OnDisk(tmp_path, 2), min_updates=2, wait_s=3.0, carry=True)
    federation.keep = 2
    held = []
    for _ in run(federation, until=6):
        federation.commit()
        held.append(sorted(int(path.stem[-5:]) for path in tmp_path.glob("*.safetensors")))
    # stored in the first round, and taken in the fourth: until the fifth is saved, the third may be resumed
    assert held == [[1], [1], [1], [1], [5], [5]]
    assert federation.clock.came == ()


@given(
    spread=st.floats(0.0, 2.0),
    share=st.floats(0.0, 1.0),
    factor=st.floats(1.0, 100.0),
    count=st.integers(1, 40),
)
def test_speeds_are_of_the_seed_and_the_slow_share_is_slow(spread, share, factor, count) -> None:
    table = SpeedsTable(examples_per_s=20.0, spread=spread, slow_share=share, slow_factor=factor)
    names = [f"c{k}" for k in range(count)]
    drawn_ = speeds(table, names, 7)
    assert drawn_ == speeds(table, names[::-1], 7)
    usual = speeds(table.model_copy(update={"slow_factor": 1.0}), names, 7)
    slow = [name for name in names if drawn_[name] < usual[name]]
    if factor > 1.0:
        assert len(slow) == (max(1, round(share * count)) if share else 0)
    assert all(drawn_[name] * factor == pytest.approx(usual[name]) for name in slow)
    if not spread:
        assert set(usual.values()) == {20.0}


def test_a_spread_is_that_of_the_logarithm() -> None:
    table = SpeedsTable(examples_per_s=3.0, spread=0.5, slow_share=0.0)
    logs = np.log(list(speeds(table, [f"c{k}" for k in range(4000)], 1).values()))
    assert logs.mean() == pytest.approx(np.log(3.0), abs=0.03)
    assert logs.std() == pytest.approx(0.5, abs=0.03)


def test_codes_of_any_dtype_come_back_as_they_were(tmp_path: Path) -> None:
    federation = clocked(Scripted(), store=OnDisk(tmp_path, 2), min_updates=1, carry=True)
    coded = Update(
        round=3, clients=("c1",), weight=2.0, metrics={"loss": 1.5},
        delta=Payload({"codes": np.arange(-3, 3, dtype=np.int8)}),
        extra=Payload({"scales": np.ones(2, np.uint16)}),
    )  # fmt: skip
    assert federation._loaded("c1", federation._stored(coded, 9.0)) == coded


class Timed(Quadratic):
    """Clients that learn, on a clock."""

    def begin(self, round: int) -> None:
        pass

    def visit_examples(self, client: str) -> int:
        return 10

    def run_more(self, broadcast, cohort):
        return self.run(broadcast, cohort)


def test_what_a_slow_client_knows_is_learned_only_if_it_is_carried() -> None:
    made = Timed(method().algorithm, clients=3)

    def distances(carry: bool) -> list[float]:
        federation = clocked(made.again(), min_updates=2, carry=carry)  # type: ignore[arg-type]
        *_, (state, _) = run(federation, until=40)
        return [state.adapter.plus(made.targets[name], -1.0).norm() for name in SPEEDS]

    dropped, carried = distances(carry=False), distances(carry=True)
    between = made.targets["c0"].plus(made.targets["c1"], -1.0).norm()
    assert dropped[0] + dropped[1] == pytest.approx(between, rel=0.01)  # on the line between the fast two
    assert carried[2] < 0.95 * dropped[2]
    assert carried[0] + carried[1] > 1.01 * between
