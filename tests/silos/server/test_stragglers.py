"""Rounds over sites that end early: who is waited for, what is dropped, carried, refused and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.silos.server.posts import Letters, honest, update
from tests.silos.server.test_server_run import A, B, order, served, told
from tests.silos.server.test_site_federation import BROADCAST, names, silos

from shepherd.core import Adapter, Failure, Update
from shepherd.core.stragglers import Stragglers
from shepherd.run import checkpoint
from shepherd.silos.coordinator.status_update import _check_rows
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.silos.server.server_run import ServerRun
from shepherd.silos.server.site_federation import STILL_AT_WORK, Until

SITES = ("a", "b", "c")


def asked(**keys: Any) -> JobSpec:
    """Five rounds of three sites that count the same."""
    made = order(SITES, rounds=5, weights="equal")
    return replace(made, settings={**made.settings, "stragglers": {"min_updates": 2, **keys}})


def letters(**slow: int) -> Letters:
    """a adds 1 and b adds 2 to every number, and c adds 16 times the number of its round."""
    return Letters({"a": honest("a", 1.0), "b": honest("b", 2.0), "c": growing}, slow=slow)


def growing(request: wire.Request) -> bytes:
    if request.kind != "train":
        return honest("c")(request)
    return wire.encode_reply(update(request, "c", 16.0 * (request.round + 1)))


def numbers(made: ServerRun) -> list[float]:
    """The adapter after each round, by what its rows say of it; see `test_server_run`."""
    place = made.home / "checkpoints"
    return [float(checkpoint.load(path).state.adapter[A][0, 0]) for path in checkpoint.kept(place).values()]


def test_a_late_update_of_a_site_is_dropped_and_it_is_asked_again(tmp_path: Path) -> None:
    post = letters(c=2)
    made = served(tmp_path, post, asked())
    rows = told(made)["rows"]
    assert told(made)["outcome"] == {"finished": True}
    assert [row.get("late") for row in rows[1:]] == 5 * [["c"]]
    assert [row.get("dropped") for row in rows[1:]] == 5 * [["c"]]
    assert [row["failures"] for row in rows[1:]] == 5 * [{}]
    assert numbers(made)[-1] == pytest.approx(1 + 5 * 1.5)
    assert [sites for kind, sites in post.asked if kind == "train"] == 5 * [SITES]
    assert _check_rows(rows, 0, 5) == rows


def test_a_late_update_of_a_site_is_carried_with_its_weight(tmp_path: Path) -> None:
    post = letters(c=2)
    made = served(tmp_path, post, asked(carry=True))
    rows = told(made)["rows"]
    assert [row.get("late") for row in rows[1:]] == [["c"], None, None, ["c"], None]
    assert [row.get("carried") for row in rows[1:]] == [None, None, {"c": 2}, None, None]
    assert not any("dropped" in row for row in rows)
    assert [sites for kind, sites in post.asked if kind == "train"] == [
        SITES,
        SITES[:2],
        SITES[:2],
        SITES,
        SITES[:2],
    ]
    # by hand: 1.5 a round, but in the third the mean with 16 of the first round, at 1 / sqrt(3)
    weight = 3**-0.5
    third = (3 + weight * 16) / (2 + weight)
    np.testing.assert_allclose(numbers(made)[-1], 1 + 4 * 1.5 + third, rtol=1e-6)
    assert _check_rows(rows, 0, 5) == rows
    sent = 4 * (6 + 6)  # both factors
    assert [row["bytes_up"] // sent for row in rows[1:]] == [2, 2, 3, 2, 2]
    # a site that is late would not score before it is done
    scores = [sites for kind, sites in post.asked if kind == "score"]
    assert scores == [SITES, SITES[:2], SITES[:2], SITES, SITES[:2], SITES[:2]]


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (
            lambda made: replace(made, delta=Adapter({A: made.delta[A][:1], B: made.delta[B][:, :1]})),
            "tensor q.lora_A.weight in its change has shape (1, 3), expected (2, 3)",
        ),
        (lambda made: replace(made, round=1), "it answers round 2, not 1"),
        (lambda made: replace(made, clients=("a",)), "it replied in the name of 'a'"),
    ],
)
def test_a_late_update_that_cannot_be_used_is_a_counted_failure(tmp_path: Path, sent: Any, says: str) -> None:
    def site(request: wire.Request) -> bytes:
        if request.kind != "train":
            return honest("c")(request)
        return wire.encode_reply(sent(update(request, "c", 1.0)))

    post = letters(c=2)
    post.sites = {**post.sites, "c": site}
    rows = told(served(tmp_path, post, asked(carry=True)))["rows"]
    assert rows[3]["failures"].keys() == {"c"}
    assert rows[3]["failures"]["c"].startswith(f"its late update of round 1: {says}")
    assert not any("carried" in row for row in rows)
    assert [row["round"] for row in rows] == list(range(6))


@pytest.mark.parametrize("kind", ["away", "deadline", "failure"])
def test_a_late_site_that_does_not_answer_is_a_failure_and_is_asked_again(kind: str, tmp_path: Path) -> None:
    post = letters(c=9)
    federation = silos(post, wave=4, deadline=0.2)
    federation.stragglers = Stragglers(min_updates=2, carry=True)
    first = list(federation.run(BROADCAST, SITES))
    assert first[2] == Failure(client="c", reason=STILL_AT_WORK, late=True)
    assert federation.at_work(4) == {"c": 3}
    if kind == "away":
        post.away = {"c"}
    elif kind == "deadline":
        time.sleep(0.3)
    else:
        failed = wire.encode_reply(Failure(client="c", reason="out of memory"))
        post.on_way = [(4, "c", failed)]
    *_, lost = federation.run(replace(BROADCAST, round=4), SITES[:2])
    assert isinstance(lost, Failure)
    assert not lost.late
    said = {"away": "not connected", "deadline": "did not reply within 0.2 s", "failure": "out of memory"}
    assert said[kind] in lost.reason
    assert federation.at_work(5) == {}


def test_nobody_who_was_not_late_sends_anything_late() -> None:
    post = letters(c=1)
    federation = silos(post, wave=4)
    federation.stragglers = Stragglers(min_updates=2, carry=True)
    list(federation.run(BROADCAST, SITES))
    request = next(each for each in post.requests if each.kind == "train")
    post.on_way.append((4, "b", wire.encode_reply(update(request, "b", 99.0))))
    answers = list(federation.run(replace(BROADCAST, round=4), SITES[:2]))
    assert [(answer.client, answer.round) for answer in answers if isinstance(answer, Update)] == [
        ("a", 4), ("b", 4), ("c", 3),
    ]  # fmt: skip


class Waiting(Letters):
    """Sites that reply after so many seconds; the wait is real."""

    seconds: Mapping[str, float]

    def ask_until(
        self, message: bytes, sites: Sequence[str], until: Until, keep: bool
    ) -> Iterator[tuple[str, bytes]]:
        began = time.monotonic()
        for site in sorted(sites, key=self.seconds.__getitem__):
            due = began + self.seconds[site]
            while time.monotonic() < due:
                if time.monotonic() > until.at:
                    return
                time.sleep(0.005)
            answer = self.sites[site](wire.decode_request(message))
            if answer is not None:
                yield site, answer


@pytest.mark.parametrize(
    ("least", "wait", "min_cohort", "came"),
    [
        (2, 0.0, 1, "ab"),
        (2, 0.3, 1, "abc"),  # c comes within the wait
        (2, 0.0, 3, "abc"),  # a site's mean is of three
        (2, 0.0, 9, "ab"),  # which no round of these has, so nobody waits for it
        (4, 0.0, 1, "abcd"),
    ],
)
def test_it_waits_for_the_fewest_and_then_for_the_wait(
    least: int, wait: float, min_cohort: int, came: str
) -> None:
    post = Waiting({name: honest(name) for name in "abcd"})
    post.seconds = {"a": 0.0, "b": 0.05, "c": 0.2, "d": 0.9}
    federation = silos(post, wave=4)
    federation.joined["a"] = replace(federation.joined["a"], min_cohort=min_cohort)
    federation.stragglers = Stragglers(min_updates=least, wait_s=wait)
    answers = list(federation.run(BROADCAST, "dcba"))
    assert [answer.client for answer in answers] == list("dcba")
    assert sorted(answer.client for answer in answers if isinstance(answer, Update)) == list(came)
    assert all(answer.late for answer in answers if isinstance(answer, Failure))


def test_a_failure_does_not_count_as_an_update() -> None:
    post = Waiting({name: honest(name) for name in "abc"})
    post.sites = {**post.sites, "a": lambda request: wire.encode_reply(Failure(client="a", reason="no disk"))}
    post.seconds = {"a": 0.0, "b": 0.02, "c": 0.1}
    federation = silos(post, wave=4)
    federation.stragglers = Stragglers(min_updates=2)
    answers = {answer.client: answer for answer in federation.run(BROADCAST, "abc")}
    assert [name for name in "abc" if isinstance(answers[name], Update)] == ["b", "c"]


class InTurn(Letters):
    """Sites that answer in their order, one at a time; what is not awaited any more does not come."""

    def ask_until(
        self, message: bytes, sites: Sequence[str], until: Until, keep: bool
    ) -> Iterator[tuple[str, bytes]]:
        for site, answer in self.ask(message, sites, 0.0):
            if until.at <= time.monotonic():
                return
            yield site, answer


def test_a_fast_site_that_sends_no_number_is_a_failure_and_ends_no_round(tmp_path: Path) -> None:
    def site(request: wire.Request) -> bytes:
        if request.kind != "train":
            return honest("a")(request)
        made = update(request, "a", 1.0)
        spoilt = Adapter({name: np.full_like(tensor, np.nan) for name, tensor in made.delta.items()})
        return wire.encode_reply(replace(made, delta=spoilt))

    post = InTurn({"a": site, "b": honest("b", 2.0), "c": honest("c", 4.0)})
    made = served(tmp_path, post, asked())
    rows = told(made)["rows"]
    assert told(made)["outcome"] == {"finished": True}
    assert all("is not finite" in row["failures"]["a"] for row in rows[1:])
    assert [sorted(row["weights"]) for row in rows[1:]] == 5 * [["b", "c"]]
    assert numbers(made)[-1] == pytest.approx(1 + 5 * 3.0)


def test_too_few_until_the_deadline_is_no_early_end() -> None:
    post = Letters({name: honest(name) for name in names(3)})
    post.sites = {**post.sites, "site-2": lambda request: None, "site-3": lambda request: None}
    federation = silos(post, wave=4)
    federation.stragglers = Stragglers(min_updates=2)
    answers = list(federation.run(BROADCAST, names(3)))
    assert [isinstance(answer, Failure) and answer.late for answer in answers] == [False, False, False]
    assert "did not reply within 5 s" in answers[1].reason  # type: ignore[union-attr]


def test_a_job_that_dies_with_a_late_update_in_hand_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """The third round takes the late update, and the server dies before its checkpoint."""
    whole = numbers(served(tmp_path / "whole", letters(c=2), asked(carry=True)))

    class Dies(Letters):
        def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
            request = wire.decode_request(message)
            if request.kind == "score" and request.round == 3:
                raise KeyboardInterrupt
            yield from super().ask(message, sites, seconds)

    died = letters(c=2)
    with pytest.raises(KeyboardInterrupt):
        served(tmp_path / "again", Dies(died.sites, slow=died.slow), asked(carry=True))
    home = tmp_path / "again" / "home"
    assert [path.name for path in (home / "late").iterdir()] == ["round-00003"]

    post = letters(c=2)
    made = ServerRun(asked(carry=True), home, None, post)
    made.run()
    assert numbers(made) == whole
    rows = told(made)["rows"]
    assert rows[3]["carried"] == {"c": 2}
    assert [sites for kind, sites in post.asked if kind == "train"] == [SITES[:2], SITES, SITES[:2]]


def test_what_a_finished_round_has_taken_is_not_taken_again(tmp_path: Path) -> None:
    """A server that dies after the checkpoint finds the late update that the round before has taken."""
    made = served(tmp_path, letters(c=2), asked(carry=True))
    late = made.home / "late" / "round-00003" / "2.reply"
    assert late.is_file()  # until the next one is taken, or the server starts again
    again = ServerRun(asked(carry=True), made.home, None, letters(c=2))
    again.require_sound()
    again.silos.restore(3)
    assert again.silos.at_work(3) == {}
    assert not late.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"silos": {"max_in_flight": 2}}, "set silos.max_in_flight = 3"),
        ({"stragglers": {"min_updates": 4}}, "min_updates = 4, and a round asks 3 clients"),
        ({"transforms": [{"name": "top_k", "share": 0.1}]}, "'top_k' keeps at a site goes on from an update"),
        (
            {"algorithm": {"name": "scaffold"}, "tuning": {"max_steps": 1, "optimiser": {"name": "sgd"}}},
            "'scaffold' keeps at a site goes on from an update",
        ),
        (
            {"selection": {"name": "oort"}, "stragglers": {"min_updates": 2, "carry": True}},
            "'oort' draws clients",
        ),
    ],
)
def test_an_order_that_is_not_sound_asks_no_site(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    post, made = letters(), asked()
    answer = told(served(tmp_path, post, replace(made, settings={**made.settings, **changes})))
    assert says in answer["outcome"]["error"]
    assert post.asked == []


def test_a_late_adapter_is_no_other_than_it_was() -> None:
    """What comes late is against the version that its site started from, whatever has moved since."""
    post = letters(c=1)
    federation = silos(post, wave=4)
    federation.stragglers = Stragglers(min_updates=2, carry=True)
    list(federation.run(BROADCAST, SITES))
    elsewhere = replace(BROADCAST, round=4, adapter=Adapter({"q.lora_A.weight": np.full((2, 3), 50.0)}))
    *_, late = federation.run(elsewhere, SITES[:2])
    assert isinstance(late, Update)
    np.testing.assert_array_equal(late.delta["q.lora_A.weight"], np.full((2, 3), 64.0))
