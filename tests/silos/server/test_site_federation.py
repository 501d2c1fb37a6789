"""Waves, order and deadlines, against sites that are functions."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.silos.server.posts import Letters, failing, honest, silent, update

from shepherd.core import Adapter, Broadcast, Failure, Update
from shepherd.settings import SilosTable
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Ready, Scores
from shepherd.silos.server.site_federation import (
    MAX_EXAMPLES,
    RequestContext,
    SiteFederation,
    short_deadline_s,
)

TERMS = RequestContext(
    run="0" * 16,
    base="b" * 64,
    version="0.1.0",
    settings={"seed": 0},
    deadline_s=5.0,
    short_deadline_s=4.0,
    max_in_flight=2,
)
BROADCAST = Broadcast(round=3, adapter=Adapter({"q.lora_A.weight": np.ones((2, 3))}), seed=7)


def silos(post: Letters, wave: int = 2, deadline: float = 5.0, *, new: bool = False) -> SiteFederation:
    """Sites that have joined, or that are all new."""
    request_context = replace(TERMS, max_in_flight=wave, deadline_s=deadline, short_deadline_s=deadline / 2)
    joined = {name: Ready(client=name, examples=10, version="0.1.0") for name in post.sites}
    return SiteFederation(
        transport=post, request_context=request_context, sites=list(post.sites), joined={} if new else joined
    )


def names(count: int) -> list[str]:
    return [f"site-{number}" for number in range(1, count + 1)]


@given(count=st.integers(1, 7), wave=st.integers(1, 8), data=st.data())
def test_answers_come_in_the_cohorts_order_and_requests_in_waves(
    count: int, wave: int, data: st.DataObject
) -> None:
    post = Letters({name: honest(name, step=number) for number, name in enumerate(names(count), 1)})
    post.order = lambda sites: data.draw(st.permutations(list(sites)))
    cohort = data.draw(st.permutations(names(count)))

    answers = list(silos(post, wave).run(BROADCAST, cohort))

    assert [answer.client for answer in answers] == cohort
    assert all(isinstance(answer, Update) and answer.round == 3 for answer in answers)
    assert [sites for _, sites in post.asked] == [
        tuple(cohort[start : start + wave]) for start in range(0, count, wave)
    ]


def test_the_next_wave_is_asked_only_once_the_last_is_taken() -> None:
    post = Letters({name: honest(name) for name in names(5)})
    answers = silos(post).run(BROADCAST, names(5))

    next(answers)

    assert post.asked == [("train", ("site-1", "site-2"))]


def test_every_site_is_told_the_same_question_and_its_own_wave_the_time() -> None:
    post = Letters({name: honest(name) for name in names(3)})
    before = time.time()

    list(silos(post).run(BROADCAST, names(3)))

    first, second = post.requests
    assert (first.id, first.cohort, first.deadline, first.base) == (second.id, 3, 5.0, "b" * 64)
    assert first.broadcast is not None
    assert first.broadcast.adapter == BROADCAST.adapter
    assert before <= first.sent <= second.sent <= time.time()
    assert first.id == wire.request_id(first) == wire.request_id(second)


def test_what_a_site_gets_wrong_is_its_failure_and_nobody_elses() -> None:
    post = Letters(
        {
            "absent": honest("absent"),
            "good": honest("good"),
            "garbled": lambda request: b"nonsense",
            "masked": lambda request: wire.encode_reply(update(request, "good", 9.0)),
            "mistaken": lambda request: wire.encode_reply(
                Ready(client="mistaken", examples=1, version="0.1.0")
            ),
            "refusing": failing("refusing", "policy max_rank = 4 of refusing refuses rank 8"),
            "silent": silent,
        },
        away={"absent"},
    )

    answers = {answer.client: answer for answer in silos(post, wave=7).run(BROADCAST, sorted(post.sites))}

    reasons = {name: answer.reason for name, answer in answers.items() if isinstance(answer, Failure)}
    assert set(answers) - set(reasons) == {"good"}
    assert "not connected" in reasons["absent"]
    assert "cannot be read" in reasons["garbled"]
    assert "in the name of 'good'" in reasons["masked"]
    assert "wrong kind of reply" in reasons["mistaken"]
    assert reasons["refusing"] == "policy max_rank = 4 of refusing refuses rank 8"
    assert "did not reply within 5 s" in reasons["silent"]
    assert post.asked == [("train", ("garbled", "good", "masked", "mistaken", "refusing", "silent"))]


@pytest.mark.parametrize(("numbers", "kind"), [(2**17, Update), (2**19, Failure)])
def test_an_answer_many_times_as_long_as_its_question_is_refused_unread(numbers: int, kind: type) -> None:
    def long(request: wire.Request) -> bytes:
        extra = Adapter({"x": np.ones(numbers)})
        return wire.encode_reply(replace(update(request, "a", 1.0), extra=extra))

    (answer,) = silos(Letters({"a": long})).run(BROADCAST, ["a"])

    assert type(answer) is kind
    assert isinstance(answer, Update) or "bytes, and the limit is" in answer.reason


def test_sites_that_are_away_stay_clients() -> None:
    post = Letters({name: honest(name) for name in names(3)}, away={"site-2"})
    federation = silos(post, new=True)

    joined = federation.join(0)

    assert [reply.client for reply in joined] == ["site-1", "site-3"]
    assert [(client.name, client.examples) for client in federation.clients()] == [
        ("site-1", 10),
        ("site-2", 10),  # not known yet, and taken for an average one
        ("site-3", 10),
    ]


def test_a_size_that_is_not_believed_is_a_failure_and_decides_nothing() -> None:
    def boasting(request: wire.Request) -> bytes:
        return wire.encode_reply(Ready(client="b", examples=MAX_EXAMPLES + 1, version="0.1.0"))

    federation = silos(Letters({"a": honest("a"), "b": boasting}))

    _, second = federation.join(0)

    assert isinstance(second, Failure)
    assert "the limit is 100,000,000" in second.reason
    assert {client.name: client.examples for client in federation.clients()} == {"a": 10, "b": 10}


def test_scores_come_from_those_that_may_tell() -> None:
    post = Letters({"a": honest("a"), "b": failing("b", "policy metrics of b keep heldout")})

    first, second = silos(post).score(2, BROADCAST.adapter)

    assert first == Scores(client="a", round=2, categories={"qa": (2.0, 4), "a": (3.0, 1)})
    assert isinstance(second, Failure)


@pytest.mark.parametrize(("deadline", "brief"), [(3600.0, 900.0), (1000.0, 300.0), (5.0, 5.0)])
def test_joining_and_scoring_are_waited_for_less_long_than_training(deadline: float, brief: float) -> None:
    assert short_deadline_s(SilosTable(deadline_s=deadline)) == brief
    assert short_deadline_s(SilosTable(deadline_s=deadline, short_deadline_s=7.0)) == 7.0


@pytest.mark.parametrize(("deadline", "brief"), [(3600.0, 1800.0), (5.0, 2.5)])
def test_each_question_has_its_own_deadline(deadline: float, brief: float) -> None:
    post = Letters({"a": honest("a")})
    federation = silos(post, deadline=deadline)

    federation.join(0)
    list(federation.run(BROADCAST, ["a"]))
    federation.score(4, BROADCAST.adapter)

    known = {request.kind: request.deadline for request in post.requests}
    assert known == {"join": brief, "train": deadline, "score": brief}


def test_who_gave_no_answer_is_not_asked_for_a_score_until_there_is_one() -> None:
    hung = True
    post = Letters({"a": honest("a"), "b": lambda request: None if hung else honest("b")(request)})
    federation = silos(post)

    def scored() -> list[str]:
        return [reply.client for reply in federation.score(4, BROADCAST.adapter)]

    federation.join(3)
    assert scored() == ["a"]
    list(federation.run(BROADCAST, ["a", "b"]))
    assert scored() == ["a"]
    hung = False
    assert scored() == ["a"]
    list(federation.run(BROADCAST, ["a", "b"]))
    assert scored() == ["a", "b"]
    hung = True
    assert scored() == ["a", "b"]  # it hangs only now: this costs a bound, and the next score none
    assert scored() == ["a"]


def test_no_more_than_a_wave_of_updates_is_held() -> None:
    held: list[int] = []

    class Counting(Letters):
        def ask(self, message, sites, seconds):  # type: ignore[no-untyped-def]
            for place, answer in enumerate(super().ask(message, sites, seconds), 1):
                held.append(place)
                yield answer

    post = Counting({name: honest(name) for name in names(6)}, order=lambda sites: list(reversed(sites)))

    assert len(list(silos(post, wave=3).run(BROADCAST, names(6)))) == 6
    assert max(held) == 3


@pytest.mark.parametrize("wave", [1, 4])
def test_an_empty_cohort_asks_nobody(wave: int) -> None:
    post = Letters({})
    assert list(silos(post, wave).run(BROADCAST, [])) == []
    assert post.asked == []


def told(post: Letters) -> list[tuple[str, int, tuple[str, ...]]]:
    """What was asked of whom, and how many they were told to be."""
    pairs = zip(post.requests, post.asked, strict=True)
    return [(kind, request.cohort, sites) for request, (kind, sites) in pairs]


def test_a_site_is_told_how_many_are_joined_there_and_asked() -> None:
    """Names that nobody answers to, and sites that are off, are nobody's company."""
    post = Letters(
        {"a": honest("a"), "b": honest("b"), "off": honest("off"), "no": failing("no", "policy bases of no")},
        away={"off"},
    )
    federation = silos(post, wave=9, new=True)
    federation.sites = [*post.sites, *(f"ghost-{number}" for number in range(9))]
    federation.join(0)

    answers = {reply.client: reply for reply in federation.run(BROADCAST, sorted(federation.sites))}

    assert told(post) == [("join", 3, ("a", "b", "no")), ("join", 1, ("no",)), ("train", 2, ("a", "b"))]
    reasons = {name: reply.reason for name, reply in answers.items() if isinstance(reply, Failure)}
    assert set(answers) - set(reasons) == {"a", "b"}
    assert reasons["no"] == "policy bases of no"
    assert "not connected" in reasons["off"]
    assert "not connected" in reasons["ghost-3"]


def test_a_cohort_is_told_its_own_number_and_not_the_runs() -> None:
    post = Letters({name: honest(name) for name in names(5)})
    list(silos(post, wave=9).run(BROADCAST, ["site-2", "site-4"]))
    assert told(post) == [("train", 2, ("site-2", "site-4"))]


def test_who_comes_late_joins_before_it_is_asked_to_train() -> None:
    post = Letters({"a": honest("a"), "b": honest("b", examples=7, min_cohort=2)}, away={"b"})
    federation = silos(post, wave=9, new=True)
    federation.join(0)
    post.away.clear()

    answers = list(federation.run(BROADCAST, ["a", "b"]))

    assert [type(answer) for answer in answers] == [Update, Update]
    assert told(post)[1:] == [("join", 1, ("b",)), ("train", 2, ("a", "b"))]
    assert [(client.examples, client.min_cohort) for client in federation.clients()] == [(10, 1), (7, 2)]


def test_scores_are_asked_of_who_has_joined_and_of_their_round_alone() -> None:
    other = lambda request: wire.encode_reply(Scores(client="b", round=1, categories={"qa": (1.0, 1)}))  # noqa: E731
    post = Letters({"a": honest("a"), "b": other, "c": failing("c")})
    federation = silos(post, wave=9)
    del federation.joined["c"]

    first, second = federation.score(2, BROADCAST.adapter)

    assert isinstance(first, Scores)
    assert isinstance(second, Failure)
    assert "of round 1" in second.reason
    assert told(post) == [("score", 2, ("a", "b"))]
