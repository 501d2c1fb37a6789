import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from shepherd.algorithms import fedavg, ffa_lora
from shepherd.core import Adapter, ClientInfo, Failure, chain, seed_for
from shepherd.errors import FederationError, QuorumNotMet
from shepherd.rounds import MAX_METRIC, MAX_WEIGHT, report_row, rounds, start
from shepherd.select import everyone, poisson, round_robin, uniform
from shepherd.transforms import clip
from tests.quadratic import Quadratic, bits, drawn, update_of
from tests.test_audit import dense

AVG = fedavg.ALGORITHM


class Scripted:
    """Clients that answer what they are told to: `answers(broadcast, cohort)`."""

    def __init__(self, answers, clients=3):
        self.run = answers
        self.infos = [ClientInfo(name=f"c{k}", examples=1) for k in range(clients)]

    def clients(self):
        return self.infos


def choose(way, share=1.0):
    return lambda clients, round, seed: way(clients, share, round, seed)


def run(federation, *, until=1, algorithm=AVG, transform=None, select=None, quorum=0.5, seed=0, state=None):
    transform = transform or chain()
    state = state or start(algorithm, transform, drawn(0))
    select = select or choose(everyone)
    return rounds(
        algorithm, federation, transform, state, until=until, select=select, quorum=quorum, seed=seed
    )


def answering(*answers):
    return Scripted(lambda broadcast, cohort: iter(answers))


def test_one_round_by_hand():
    answers = [
        replace(update_of("c0", 1, weight=1.0), metrics={"loss": 2.0}),
        Failure(client="c1", reason="it ran out of memory"),
        update_of("c2", 2, weight=3.0),
    ]
    ((state, report),) = run(answering(*answers))
    for name, tensor in state.adapter.items():
        expected = drawn(0)[name] + 0.25 * answers[0].delta[name] + 0.75 * answers[2].delta[name]
        np.testing.assert_allclose(tensor, expected, rtol=1e-6)
    assert (state.round, report.round) == (1, 1)
    assert report.cohort == ("c0", "c1", "c2")
    assert report.weights == {"c0": 1.0, "c2": 3.0}
    assert report.metrics == {"c0": {"loss": 2.0}, "c2": {}}
    assert report.failures == {"c1": "it ran out of memory"}
    assert report.bytes_down == 3 * drawn(0).nbytes
    assert report.bytes_up == 2 * drawn(0).nbytes
    assert report.gap == pytest.approx(dense(drawn(0), [answers[0], answers[2]]), rel=1e-9)
    assert 0 <= report.federation_seconds <= report.seconds


def spoilt(**changes):
    return replace(update_of("c1", 2), **changes)


def without(name):
    return Adapter({n: t for n, t in drawn(2).items() if n != name})


ONE = "layers.0.q_proj.lora_B.weight"
BAD = {
    "missing": (spoilt(delta=without(ONE)), f"tensor {ONE} is missing in its change"),
    "extra name": (spoilt(delta=Adapter({**drawn(2), "x": [0.0]})), "tensor x is not expected in its change"),
    "misshapen": (spoilt(delta=Adapter({**drawn(2), ONE: [0.0]})), r"has shape \(1,\), expected \(3, 2\)"),
    "nan": (spoilt(delta=Adapter({**drawn(2), ONE: np.full((3, 2), np.nan)})), f"{ONE} is not finite"),
    "inf": (spoilt(delta=Adapter({**drawn(2), ONE: np.full((3, 2), np.inf)})), f"{ONE} is not finite"),
    "uninvited extra": (spoilt(extra=Adapter({"c": [1.0]})), "tensor c is not expected in its extra"),
    "weight 0": (spoilt(weight=0.0), "weight 0"),
    "weight < 0": (spoilt(weight=-1.0), "weight -1"),
    "weight nan": (spoilt(weight=float("nan")), "weight nan"),
    "weight inf": (spoilt(weight=float("inf")), "weight inf"),
    "weight too large": (spoilt(weight=2 * MAX_WEIGHT), "not in"),
    "old round": (spoilt(round=-1), "answers round 0, not 1"),
    "many in one": (spoilt(count=7), "7 clients"),
    "metric": (spoilt(metrics={"loss": float("nan")}), "metric loss is nan"),
    "metric inf": (spoilt(metrics={"loss": float("-inf")}), "metric loss is -inf"),
    "metric too large": (spoilt(metrics={"tokens": 2 * MAX_METRIC}), "metric tokens is 2e"),
    "metric too large, whole": (spoilt(metrics={"tokens": -(10**308)}), "metric tokens is -1"),
    "failure": (Failure(client="c1", reason="no disk"), "no disk"),
}


@pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD)
def test_a_bad_update_is_a_counted_failure_and_never_a_zero_in_the_mean(answer, reason):
    good = [update_of("c0", 1, 2.0), update_of("c2", 3, 5.0)]
    ((state, report),) = run(answering(good[0], answer, good[1]))
    expected = fedavg.apply(fedavg.init(drawn(0)), fedavg.mean(fedavg.init(drawn(0)), good))
    assert bits(state.adapter) == bits(expected.adapter)
    assert report.weights == {"c0": 2.0, "c2": 5.0}
    assert list(report.failures) == ["c1"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report.failures["c1"])


def test_who_was_not_asked_or_answers_twice_does_not_count():
    first, again, stranger = update_of("c0", 1), update_of("c0", 2, 100.0), update_of("c9", 3)
    ((state, report),) = run(answering(first, again, stranger), quorum=0.3)
    assert bits(state.adapter) == bits(drawn(0).plus(first.delta))
    assert report.failures == {
        "c0": "it answered twice, and the first answer stands; send one answer",
        "c9": "client 'c9' was not asked this round; check who may answer",
        "c1": "it gave no answer",
        "c2": "it gave no answer",
    }
    assert report.bytes_up == 3 * drawn(0).nbytes


def test_a_refused_client_does_not_get_a_second_try():
    bad, good = replace(update_of("c0", 1), weight=0.0), update_of("c0", 1)
    ((_, report),) = run(answering(bad, good, update_of("c1", 2)), quorum=0.3)
    assert list(report.weights) == ["c1"]
    assert "weight 0" in report.failures["c0"]


@pytest.mark.parametrize(
    ("asked", "answered", "quorum", "enough"),
    [(4, 2, 0.5, True), (4, 1, 0.5, False), (3, 2, 0.5, True), (3, 1, 0.5, False), (100, 55, 0.55, True),
     (100, 54, 0.55, False), (5, 0, 0.01, False), (5, 1, 0.01, True), (2, 1, 1.0, False), (2, 2, 1.0, True)],
)  # fmt: skip
def test_quorum(asked, answered, quorum, enough):
    answers = [update_of(f"c{k}", k) for k in range(answered)]
    loop = run(Scripted(lambda broadcast, cohort: iter(answers), asked), quorum=quorum)
    if enough:
        assert len(next(loop)[1].weights) == answered
    else:
        with pytest.raises(QuorumNotMet, match=f"{answered} of {asked} clients gave a usable update"):
            next(loop)


def test_quorum_not_met_names_who_failed_and_why():
    answers = [update_of("c0", 0), Failure(client="c1", reason="it timed out")]
    with pytest.raises(QuorumNotMet) as error:
        next(run(Scripted(lambda broadcast, cohort: iter(answers), 12), quorum=0.25))
    assert str(error.value) == (
        "round 1: 1 of 12 clients gave a usable update and federation.quorum = 0.25 asks for 3 "
        "(c1: it timed out; c2: it gave no answer; c3: it gave no answer; c4: it gave no answer; "
        "c5: it gave no answer; and 6 more); mend those clients or lower federation.quorum"
    )


def test_an_empty_cohort_passes_with_the_adapter_as_it_was():
    federation = Quadratic(AVG, clients=3)
    seen = list(run(federation, until=40, select=choose(poisson, 0.01), seed=1))
    assert [state.round for state, _ in seen] == list(range(1, 41))
    empty = [k for k, (_, report) in enumerate(seen) if not report.cohort and k]
    assert empty
    for k in empty:
        (before, _), (state, report) = seen[k - 1], seen[k]
        assert bits(state.adapter) == bits(before.adapter)
        assert (report.weights, report.failures, report.bytes_up, report.gap) == ({}, {}, 0, 0.0)


def test_one_update_is_alive_at_a_time():
    """Law 5, by weak references to the arrays of every update made so far."""
    alive = []

    def answers(broadcast, cohort):
        made = []
        for k, client in enumerate(cohort):
            alive.append(sum(ref() is not None for ref in made))
            update = update_of(client, k)
            made.append(weakref.ref(update.delta[ONE]))
            yield update
            del update

    transform = clip.build(clip.Config(norm=1e9))
    ((_, report),) = run(Scripted(answers, 20), transform=chain(transform))
    assert len(report.weights) == 20
    assert alive == [0] * 20


def test_clients_are_asked_only_as_the_mean_is_taken():
    log = []

    def answers(broadcast, cohort):
        for k, client in enumerate(cohort):
            log.append(f"ask {client}")
            yield update_of(client, k)

    def aggregate(state, updates):
        return fedavg.mean(state, (log.append(f"use {u.client}") or u for u in updates))

    next(run(Scripted(answers), algorithm=AVG._replace(aggregate=aggregate)))
    assert log == ["ask c0", "use c0", "ask c1", "use c1", "ask c2", "use c2"]


def test_each_purpose_and_each_round_has_a_seed_of_its_own():
    seen = []
    federation = Quadratic(AVG, clients=3)
    spy = partial(lambda clients, round, seed: seen.append(("cohort", round, seed)) or ("c0",))
    noisy = chain()._replace(
        on_server=lambda update, state, seed: seen.append(("noise", 0, seed)) or (update, state)
    )
    asked = federation.run
    federation.run = lambda b, cohort: seen.append(("clients", b.round, b.seed)) or asked(b, cohort)
    list(run(federation, until=2, select=spy, transform=noisy, seed=5))
    assert [seed for _, _, seed in seen] == [
        seed_for(5, round, purpose) for round in (0, 1) for purpose in ("cohort", "clients", "noise")
    ]


def test_a_transform_state_travels_down_and_goes_on():
    """A transform that counts its rounds and scales by the count it was sent."""

    def on_client(update, state, seed):
        return replace(update, delta=update.delta.times(float(state["count"])))

    counting = chain()._replace(
        init=lambda: {"count": np.float64(1)},
        on_client=on_client,
        on_server=lambda update, state, seed: (update, {"count": state["count"] + 1}),
    )
    federation = Quadratic(AVG, counting)
    seen = []
    asked = federation.run
    federation.run = lambda b, cohort: seen.append(float(b.transforms["count"])) or asked(b, cohort)
    *_, (state, _) = run(federation, until=3, transform=counting)
    assert seen == [1, 2, 3]
    assert state.transforms["count"] == 4


def test_client_memories_extras_and_server_memory_go_round():
    """A method with state on both sides: clients remember their last change, the server the mean extra."""

    def remember(memory, broadcast, delta, steps):
        return delta, Adapter({"visited": [float(len(memory) > 0)]})

    def apply(state, update):
        return replace(fedavg.apply(state, update), memory={"visits": update.extra})

    algorithm = AVG._replace(remember=remember, apply=apply)
    federation = Quadratic(algorithm, clients=4)
    shares = []
    for state, report in run(federation, until=2, algorithm=algorithm, select=choose(round_robin, 0.75)):
        shares.append(state.memory["visits"]["visited"].tolist())
        assert report.failures == {}
        assert report.bytes_up == 3 * (drawn(0).nbytes + 4)
    # c0, c1, c2; then c3 for the first time with c0 and c1 again: weights 4, 1 and 2
    assert shares == [[0.0], [pytest.approx(3 / 7)]]
    assert set(federation.memories) == {"c0", "c1", "c2", "c3"}


def test_what_would_not_be_finite_stops_the_run_and_keeps_the_round_before():
    huge = [replace(update_of(f"c{k}", k), delta=drawn(0).times(0.0)) for k in range(3)]
    huge = [replace(u, delta=Adapter({n: np.full(t.shape, 3e38) for n, t in u.delta.items()})) for u in huge]
    loop = run(Scripted(lambda b, cohort: iter(replace(u, round=b.round) for u in huge)), until=3)
    state, _ = next(loop)
    assert state.round == 1
    with pytest.raises(
        FederationError, match=r"round 2 would make tensor layers\.0\.q_proj\.lora_A\.weight not"
    ):
        next(loop)


def test_frozen_tensors_may_not_come_back():
    algorithm = ffa_lora.build(ffa_lora.Config())
    with pytest.raises(QuorumNotMet, match=r"tensor layers.0.q_proj.lora_A.weight is not expected"):
        next(run(answering(update_of("c0", 0)), algorithm=algorithm))


def test_a_finished_state_yields_nothing_and_a_cohort_is_a_share():
    state = replace(start(AVG, chain(), drawn(0)), round=5)
    assert list(run(Quadratic(AVG), until=5, state=state)) == []
    ((_, report),) = run(Quadratic(AVG, clients=10), select=choose(uniform, 0.3))
    assert len(report.cohort) == len(report.weights) == 3


def metrics(loss, trained, **more):
    return {"loss": loss, "trained_tokens": trained, "examples": 2.0, "steps": 1.0, "tokens": 20.0, **more}


def test_a_row_by_hand():
    answers = [
        replace(update_of("c0", 1, weight=1.0), metrics=metrics(2.0, 10.0)),
        replace(update_of("c1", 2, weight=3.0), metrics=metrics(4.0, 30.0)),
        Failure(client="c2", reason="out of memory"),
    ]
    ((_, report),) = run(answering(*answers))
    row = report_row(report)
    assert row["weights"] == {"c0": 0.25, "c1": 0.75}
    assert row["loss"] == (2.0 * 10 + 4.0 * 30) / 40
    assert row["losses"] == {"c0": 2.0, "c1": 4.0}
    assert (row["examples"], row["steps"], row["tokens"]) == (4, 2, {"seen": 40, "trained": 40})
    assert row["failures"] == {"c2": "out of memory"}


def test_a_client_that_keeps_its_metrics_back_counts_in_the_weights_alone():
    answers = [
        replace(update_of("c0", 1, weight=1.0), metrics=metrics(2.0, 10.0)),
        replace(update_of("c1", 2, weight=1.0), metrics={}),
        replace(update_of("c2", 3, weight=2.0), metrics={"examples": 5.0, "trained_tokens": 7.0}),
    ]
    ((_, report),) = run(answering(*answers))
    row = report_row(report)
    assert row["weights"] == {"c0": 0.25, "c1": 0.25, "c2": 0.5}
    assert (row["loss"], row["losses"]) == (2.0, {"c0": 2.0})
    assert (row["examples"], row["steps"], row["tokens"]) == (7, 1, {"seen": 20, "trained": 17})


def test_the_largest_numbers_that_a_client_may_tell_make_a_row():
    most = MAX_METRIC
    answers = [
        replace(update_of("c0", 1), metrics=metrics(most, most)),
        replace(update_of("c1", 2), metrics=metrics(-most, -most)),
        replace(update_of("c2", 3), metrics=metrics(most, 1e-300)),
    ]
    ((_, report),) = run(answering(*answers))
    row = report_row(report)
    assert row["loss"] == most
    assert row["losses"] == {"c0": most, "c1": -most, "c2": most}


@pytest.mark.parametrize("known", [{}, {"loss": 3.0}, {"trained_tokens": 4.0}])
def test_a_loss_that_nobody_tells_is_none(known):
    answers = [replace(update_of("c0", 1), metrics=known)]
    ((_, report),) = run(answering(*answers), quorum=0.1)
    assert report_row(report)["loss"] is None
