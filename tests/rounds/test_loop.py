import weakref
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
from tests.core.test_factor_gap import dense
from tests.quadratic import Quadratic, bits, chosen, drawn, method, update_of

from shepherd import plugins
from shepherd.aggregations import mean
from shepherd.algorithms import fedavg, fednova, ffa_lora
from shepherd.config import PartTable
from shepherd.core import (
    Adapter,
    Aggregation,
    ClientInfo,
    Context,
    Expected,
    Failure,
    Mechanism,
    Spending,
    Transform,
    chain,
    moved,
    padded,
    seed_for,
    shapes_of,
    unpadded,
)
from shepherd.errors import Diverged, FederationError, QuorumNotMet
from shepherd.overrides import parse
from shepherd.rounds import report_row, rounds, start
from shepherd.rounds.acceptance import MAX_METRIC
from shepherd.rounds.loop import UNKNOWN_CONTEXT
from shepherd.rounds.report import MAX_NATS
from shepherd.rounds.weights import MAX_WEIGHT, Allowed, allow_any, allowed_by
from shepherd.server_optimisers import sgd
from shepherd.transforms import clip

AVG = fedavg.ALGORITHM


class Scripted:
    """Clients that answer what they are told to: `answers(broadcast, cohort)`."""

    def __init__(self, answers, clients=3, fewest=()):
        self.run = answers
        fewest = [*fewest, *[1] * clients]
        self.infos = [ClientInfo(name=f"c{k}", examples=1, min_cohort=fewest[k]) for k in range(clients)]

    def clients(self):
        return self.infos


def run(
    federation, *, until=1, algorithm=AVG, transform=None, select=None, quorum=0.5, seed=0, state=None,
    max_share=1.0, allow=allow_any, context=UNKNOWN_CONTEXT, **parts,
):  # fmt: skip
    asked = method(algorithm, transform=transform, **parts)
    select = select or chosen("all")
    return rounds(
        asked,
        federation,
        state or start(asked, drawn(0)),
        until=until,
        select=select,
        quorum=quorum,
        seed=seed,
        allow=allow,
        max_share=max_share,
        context=context,
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
    assert report.figures["gap"] == pytest.approx(dense(drawn(0), [answers[0], answers[2]]), rel=1e-9)
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
    "many in one": (spoilt(clients=("c1", "c2")), "claims to be of 2 clients"),
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
    begun = start(method(), drawn(0))
    expected = moved(begun, mean.mean(begun, good, Context()).delta)
    assert bits(state.adapter) == bits(expected.adapter)
    assert report.weights == {"c0": 2.0, "c2": 5.0}
    # nobody's own answer is lost by what another says in its name
    assert list(report.failures) == ([answer.client, "c1"] if "+" in answer.client else ["c1"])
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report.failures[answer.client])


def test_who_was_not_asked_or_answers_twice_does_not_count():
    first, again, stranger = update_of("c0", 1), update_of("c0", 2, 100.0), update_of("c9", 3)
    ((state, report),) = run(answering(first, again, stranger), quorum=0.3)
    assert bits(state.adapter) == bits(drawn(0).plus(first.delta))
    assert report.failures == {
        "c0": "it answered twice, and only the first answer counts; send one answer",
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
        "round 1: 1 of 12 clients gave a usable update and federation.quorum = 0.25 requires 3 "
        "(c1: it timed out; c2: it gave no answer; c3: it gave no answer; c4: it gave no answer; "
        "c5: it gave no answer; and 6 more); do what these say and resume, or start a run with a lower"
        " federation.quorum"
    )


def test_a_round_is_audited_client_by_client():
    ((_, report),) = run(answering(of("c0", 7.0), of("c1", 1.0), of("c2", -1.0)))
    assert set(report.figures) == {"gap", "spread", "energy_kept", "cosine"}
    assert set(report.cosines) == {"c0", "c1", "c2"}
    row = report_row(report)
    assert row["cosines"] == report.cosines
    assert row["cosine"] == pytest.approx(np.mean(list(report.cosines.values())), abs=1e-6)


def test_no_client_is_told_apart_where_one_of_them_requires_a_mean_of_several():
    """The mean cosine and those of the others would give away the one that was left out."""
    federation = answering(of("c0", 7.0), of("c1", 1.0), of("c2", -1.0))
    federation.infos[1] = replace(federation.infos[1], min_cohort=2)
    ((_, report),) = run(federation)
    assert (report.cosines, "cosines" in report_row(report)) == ({}, False)
    assert set(report.figures) == {"gap", "spread", "energy_kept", "cosine"}


@pytest.mark.parametrize("side_rank", [1, 2, 4])
def test_a_round_with_side_ranks_is_audited(side_rank):
    """The adapter is longer than the ranks that are trained, and no tensor stacks experts."""

    def combine(state, updates, context):
        trained = replace(state, adapter=unpadded(state.adapter, side_rank))
        merged = mean.mean(trained, updates, context)
        return replace(merged, delta=padded(merged.delta, side_rank))

    kept = Aggregation(combine=combine, keeps_basis=False, side_rank=side_rank)
    answers = [of("c0", 7.0), of("c1", 1.0), of("c2", -1.0)]
    asked = method(aggregation=kept)
    ((_, longer),) = rounds(
        asked,
        Ranked(lambda broadcast, cohort: iter(answers), rank=2),
        start(asked, drawn(0)),
        until=1,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
        context=Context(rank=2),
    )
    ((_, plain),) = run(answering(*answers), max_share=0.5)
    assert longer.figures == pytest.approx(plain.figures)
    assert longer.cosines == pytest.approx(plain.cosines)


class Ranked(Scripted):
    """Clients that train the first ranks alone."""

    def __init__(self, answers, rank):
        super().__init__(answers)
        self.infos = [replace(info, rank=rank) for info in self.infos]


def spending(sampling, rounds):
    return Spending(noise=1.0, sampling=sampling, steps=rounds)


def test_under_noise_there_is_no_audit():
    noisy = Transform(mechanism=Mechanism(spent=spending))
    asked = method(transform=noisy)
    loop = rounds(
        asked,
        Quadratic(AVG, noisy),
        start(asked, drawn(0)),
        until=1,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )
    ((_, report),) = loop
    assert (report.figures, report.cosines) == ({}, {})


def test_an_empty_cohort_passes_with_the_adapter_as_it_was():
    federation = Quadratic(AVG, clients=3)
    seen = list(run(federation, until=40, select=chosen("poisson", share=0.01), seed=1))
    assert [state.round for state, _ in seen] == list(range(1, 41))
    empty = [k for k, (_, report) in enumerate(seen) if not report.cohort and k]
    assert empty
    for k in empty:
        (before, _), (state, report) = seen[k - 1], seen[k]
        assert bits(state.adapter) == bits(before.adapter)
        assert (report.weights, report.failures, report.bytes_up, report.figures) == ({}, {}, 0, {"gap": 0.0})


def test_a_transform_that_names_no_client_still_moves_the_adapter():
    unnamed = Transform(on_server=lambda update, state, draws: (replace(update, clients=()), state))
    ((state, _),) = run(Quadratic(AVG, clients=3), transform=unnamed)
    ((expected, _),) = run(Quadratic(AVG, clients=3))
    assert bits(state.adapter) == bits(expected.adapter)
    assert bits(state.adapter) != bits(drawn(0))


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

    def aggregate(state, updates, context):
        return mean.mean(state, (log.append(f"use {u.client}") or u for u in updates), context)

    next(run(Scripted(answers), aggregation=Aggregation(combine=aggregate)))
    assert log == ["ask c0", "use c0", "ask c1", "use c1", "ask c2", "use c2"]


def test_each_purpose_and_each_round_has_a_seed_of_its_own():
    seen = []
    federation = Quadratic(AVG, clients=3)
    spy = partial(lambda clients, round, seed: seen.append(("cohort", round, seed)) or ("c0",))
    noisy = Transform(
        on_server=lambda update, state, draws: (
            seen.append(("noise", 0, draws.generator().random())) or (update, state)
        )
    )
    asked = federation.run
    federation.run = lambda b, cohort: seen.append(("clients", b.round, b.seed)) or asked(b, cohort)
    list(run(federation, until=2, select=spy, transform=noisy, seed=5))
    assert [seed for _, _, seed in seen] == [
        np.random.default_rng(seed_for(5, round, purpose)).random()
        if purpose == "noise"
        else seed_for(5, round, purpose)
        for round in (0, 1)
        for purpose in ("cohort", "clients", "noise")
    ]


def test_a_transform_state_travels_down_and_goes_on():
    """A transform that counts its rounds and scales by the count it was sent."""

    def on_client(update, state, draws):
        assert set(state) == {"count"}
        return replace(update, delta=update.delta.times(float(state["count"])))

    counting = Transform(
        init=lambda context: {"count": np.float64(1), "secret": np.float64(9)},
        public=lambda state: {"count": state["count"]},
        on_client=on_client,
        on_server=lambda update, state, draws: (update, {**state, "count": state["count"] + 1}),
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

    def remember(memory, broadcast, result):
        return result.delta, Adapter({"visited": [float(len(memory) > 0)]})

    algorithm = replace(
        AVG,
        remember=remember,
        expected=lambda broadcast, client: Expected(
            delta=shapes_of(broadcast.adapter), extra={"visited": (1,)}
        ),
        server_remember=lambda state, update, context: {"visits": update.extra},
    )
    federation = Quadratic(algorithm, clients=4)
    shares = []
    for state, report in run(
        federation, until=2, algorithm=algorithm, select=chosen("round_robin", share=0.75)
    ):
        shares.append(state.memory["visits"]["visited"].tolist())
        assert report.failures == {}
        assert report.bytes_up == 3 * (drawn(0).nbytes + 4)
    # c0, c1, c2; then c3 for the first time with c0 and c1 again: weights 4, 1 and 2
    assert shares == [[0.0], [pytest.approx(3 / 7)]]
    assert set(federation.memories) == {"c0", "c1", "c2", "c3"}


def test_what_would_not_be_finite_stops_the_run_and_keeps_the_round_before():
    huge = [replace(update_of(f"c{k}", k), delta=drawn(0).times(0.0)) for k in range(3)]
    huge = [replace(u, delta=Adapter({n: np.full(t.shape, 1e12) for n, t in u.delta.items()})) for u in huge]
    far = sgd.build(sgd.Config(learning_rate=3e26))
    federation = Scripted(lambda b, cohort: iter(replace(u, round=b.round) for u in huge))
    loop = run(federation, server=far, until=3)
    state, _ = next(loop)
    assert state.round == 1
    with pytest.raises(Diverged, match=r"round 2 would make tensor layers\.0\.q_proj\.lora_A\.weight not"):
        next(loop)


def test_frozen_tensors_may_not_come_back():
    algorithm = ffa_lora.build(ffa_lora.Config())
    with pytest.raises(QuorumNotMet, match=r"tensor layers.0.q_proj.lora_A.weight is not expected"):
        next(run(answering(update_of("c0", 0)), algorithm=algorithm))


def test_a_finished_state_yields_nothing_and_a_cohort_is_a_share():
    state = replace(start(method(), drawn(0)), round=5)
    assert list(run(Quadratic(AVG), until=5, state=state)) == []
    ((_, report),) = run(Quadratic(AVG, clients=10), select=chosen("uniform", share=0.3))
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
    assert row["loss"] == MAX_NATS
    assert row["losses"] == {"c0": MAX_NATS, "c1": 0.0, "c2": MAX_NATS}


@pytest.mark.parametrize("known", [{}, {"loss": 3.0}, {"trained_tokens": 4.0}])
def test_a_loss_that_nobody_tells_is_none(known):
    answers = [replace(update_of("c0", 1), metrics=known)]
    ((_, report),) = run(answering(*answers), quorum=0.1)
    assert report_row(report)["loss"] is None


def of(client, step, weight=1.0):
    """An update that adds the same number everywhere."""
    delta = Adapter({n: np.full(t.shape, step) for n, t in drawn(0).items()})
    return replace(update_of(client, 0, weight), delta=delta)


def equal(client):
    return Allowed(least=1.0, most=1.0, whole=True, by='federation.weights = "equal"')


def test_a_weight_that_was_not_asked_for_is_a_counted_failure():
    answers = [of("c0", 0.01), of("c1", 1000.0, 1e12), of("c2", 0.01)]
    ((state, report),) = run(answering(*answers), allow=equal)
    assert bits(state.adapter) == bits(drawn(0).plus(of("c0", 0.01).delta))
    assert report.weights == {"c0": 1.0, "c2": 1.0}
    assert report.failures["c1"] == (
        "its weight 1000000000000 is not 1, as a visit with"
        ' federation.weights = "equal" requires; compute it as the run file says'
    )


@pytest.mark.parametrize("weight", [1e-300, 0.5, 1.5, 36.0, 1 - 2**-53, 1e12])
def test_counts_are_whole_and_no_more_than_a_visit(weight):
    run_file = {
        "model": {"base": "tiny"},
        "data": {"source": "world"},
        "tuning": {"max_steps": 5, "batch_size": 4},
    }
    answers = [of("c0", 1.0, 20.0), of("c1", 2.0, weight), of("c2", 1.0, 20.0)]
    ((_, report),) = run(answering(*answers), allow=allowed_by(parse(run_file)))
    assert list(report.failures) == ["c1"]
    assert "from 1 to 35" in report.failures["c1"]


def test_a_count_in_the_metrics_is_no_more_than_a_visit_either():
    many = replace(of("c1", 1.0), metrics={"trained_tokens": 1e12, "loss": 40.0})
    allow = lambda client: Allowed(counts={"trained_tokens": 100.0})  # noqa: E731
    ((_, report),) = run(answering(of("c0", 1.0), many, of("c2", 1.0)), allow=allow)
    assert (
        "metric trained_tokens is 1000000000000, and a visit of this run has from 0 to 100;"
        in report.failures["c1"]
    )


def test_no_client_counts_for_more_than_its_share():
    answers = [of("c0", 8.0, 1000.0), of("c1", 1.0, 3.0), of("c2", 2.0, 1.0)]
    ((state, report),) = run(answering(*answers), max_share=0.5)
    assert report.weights == {"c0": 4.0, "c1": 3.0, "c2": 1.0}
    assert report.capped == ("c0",)
    moved = state.adapter.plus(drawn(0), -1.0)
    for tensor in moved.values():
        np.testing.assert_allclose(tensor, (4 * 8 + 3 * 1 + 1 * 2) / 8, rtol=1e-5)
    row = report_row(report)
    assert row["weights"] == {"c0": 0.5, "c1": 0.375, "c2": 0.125}
    assert row["capped"] == ["c0"]
    assert report.figures["gap"] == pytest.approx(
        dense(drawn(0), [replace(u, weight=min(u.weight, 4.0)) for u in answers]), rel=1e-6
    )


def test_a_partner_with_a_tiny_weight_does_not_make_the_mean_anothers_own():
    ((state, _),) = run(answering(of("c0", 7.0, 32000.0), of("c1", 0.0, 1.0)), max_share=0.5, quorum=0.6)
    moved = state.adapter.plus(drawn(0), -1.0)
    np.testing.assert_allclose(next(iter(moved.values())), 3.5, rtol=1e-5)


def test_a_cap_changes_no_bit_where_all_weigh_the_same():
    answers = [update_of(f"c{k}", k, 5.0) for k in range(3)]
    (one, _), (two, _) = (next(run(answering(*answers), max_share=share)) for share in (0.1, 1.0))
    assert bits(one.adapter) == bits(two.adapter)


def test_under_a_cap_few_updates_wait():
    """Law 5: of a cohort of any size, no more than 1 / max_share are alive when the next one is made."""
    alive = []

    def answers(broadcast, cohort):
        made = []
        for k, client in enumerate(cohort):
            alive.append(sum(ref() is not None for ref in made))
            update = update_of(client, k, weight=float(1 + 37 * k % 50))
            made.append(weakref.ref(update.delta[ONE]))
            yield update
            del update

    ((_, report),) = run(Scripted(answers, 60), max_share=0.25)
    assert len(report.weights) == 60
    assert max(alive) <= 4


def test_a_round_with_fewer_updates_than_a_member_asks_for_is_thrown_away():
    answers = [of("c0", 7.0), Failure(client="c1", reason="it timed out")]
    loop = run(Scripted(lambda broadcast, cohort: iter(answers), fewest=(2, 5)), quorum=0.1)
    with pytest.raises(
        QuorumNotMet, match=r"1 of 3 .* and client c0 requires a mean of at least 2 .*c1: it timed"
    ):
        next(loop)


def test_who_gave_no_usable_update_asks_for_nothing():
    answers = [of("c0", 7.0), Failure(client="c1", reason="policy min_cohort"), of("c2", 1.0)]
    loop = run(Scripted(lambda broadcast, cohort: iter(answers), fewest=(2, 3, 2)))
    assert list(next(loop)[1].weights) == ["c0", "c2"]


def test_who_asks_for_more_than_there_are_is_left_out_and_stops_no_round():
    answers = [of("c0", 7.0), of("c1", 1.0), of("c2", 2.0)]
    loop = run(Scripted(lambda broadcast, cohort: iter(answers), fewest=(2, 2, 10**6)))
    report = next(loop)[1]
    assert list(report.weights) == ["c0", "c1"]
    assert "its min_cohort is 1000000 and 3 clients were asked" in report.failures["c2"]


@pytest.mark.parametrize("taken", [1, 2])
def test_an_aggregation_that_stops_early_does_not_get_past_the_checks(taken):
    """The quorum and the smallest cohort are known after the last update alone."""
    early = Aggregation(
        combine=lambda state, updates, context: mean.mean(state, islice(updates, taken), context)
    )
    federation = Scripted(lambda broadcast, cohort: iter([of("c0", 7.0), of("c1", 7.0)]), fewest=(3,))
    with pytest.raises(FederationError, match=r"it must consume every update|requires a mean of at least 3"):
        next(run(federation, aggregation=early, quorum=0.1))


def test_a_promise_is_verified_on_arrival():
    answers = [of("c0", 0.001), of("c1", 1000.0), of("c2", 0.002)]
    ((state, report),) = run(answering(*answers), transform=chain(clip.build(clip.Config(norm=1.0))))
    assert list(report.failures) == ["c1"]
    assert "above the 1 that the transform clip allows" in report.failures["c1"]
    assert state.adapter.plus(drawn(0), -1.0).norm() <= 1.0


def test_what_a_transform_decodes_on_arrival_is_checked_again():
    """A transform that sends a change at half its size, and gives it back twice as large."""
    scaled = Transform(
        on_client=lambda update, state, draws: replace(update, delta=update.delta.times(0.5)),
        on_arrival=lambda update, state: replace(update, delta=update.delta.times(2.0)),
    )
    huge = Adapter({n: np.full(t.shape, 3e38) for n, t in drawn(0).items()})
    with np.errstate(over="ignore"):
        answers = [of("c0", 0.5), replace(of("c1", 1.0), delta=huge), of("c2", 0.5)]
        ((state, report),) = run(answering(*answers), transform=scaled)
    assert "is not finite" in report.failures["c1"]
    np.testing.assert_allclose(next(iter(state.adapter.plus(drawn(0), -1.0).values())), 1.0, rtol=1e-5)


def test_an_extra_that_makes_a_change_absurd_is_a_counted_failure():
    """tau_k is the smallest number of float32, and the change divided by it is infinite."""
    asked = method(fednova.build(fednova.Config()))

    class Hostile(Quadratic):
        def run(self, broadcast, cohort):
            for update in super().run(broadcast, cohort):
                steps = Adapter({fednova.STEPS: [1e-45]})
                yield replace(update, extra=steps) if update.client == "c1" else update

    ((state, report),) = rounds(
        asked,
        Hostile(asked.algorithm),
        start(asked, drawn(0)),
        until=1,
        select=chosen("all"),
        quorum=0.5,
        seed=0,
    )
    assert list(report.failures) == ["c1"]
    assert "not finite" in report.failures["c1"]
    assert all(np.isfinite(tensor).all() for tensor in state.adapter.values())


def test_the_audit_is_of_the_clients_own_changes_where_the_mean_is_of_one_step():
    """With equal steps FedNova is FedAvg, and so are the figures of its rounds."""

    def figures(algorithm):
        federation = Quadratic(algorithm)
        return [
            (report.figures, report.cosines) for _, report in run(federation, algorithm=algorithm, until=2)
        ]

    for (ours, apart), (theirs, each) in zip(
        figures(fednova.build(fednova.Config())), figures(AVG), strict=True
    ):
        assert ours == pytest.approx(dict(theirs), rel=1e-5)
        assert apart == pytest.approx(dict(each), rel=1e-5)


@pytest.mark.parametrize(("keep", "fewest"), [(1, 2), (2, 3)])
def test_an_aggregation_that_keeps_fewer_clients_than_one_of_them_requires_releases_nothing(keep, fewest):
    asked = method(aggregation=plugins.aggregation(PartTable(name="krum", bad=0, keep=keep)))

    class Strict(Quadratic):
        def clients(self):
            return [replace(info, min_cohort=fewest) for info in super().clients()]

    def loop(kind):
        return rounds(
            asked,
            kind(asked.algorithm, clients=5),
            start(asked, drawn(0)),
            until=1,
            select=lambda clients, round, seed: tuple(info.name for info in clients),
            quorum=1.0,
            seed=0,
        )

    with pytest.raises(QuorumNotMet, match=f"keeps {keep} of 5 clients and client c. requires a mean of at"):
        next(loop(Strict))
    next(loop(Quadratic))


def test_a_robust_aggregation_takes_no_update_of_several_clients():
    asked = method(aggregation=plugins.aggregation(PartTable(name="coordinate_median")))

    class Merging(Quadratic):
        merges = True

        def run(self, broadcast, cohort):
            first, second, *rest = super().run(broadcast, cohort)
            yield replace(first, clients=(*first.clients, *second.clients))
            yield from rest

    loop = rounds(
        asked,
        Merging(asked.algorithm, clients=5),
        start(asked, drawn(0)),
        until=1,
        select=lambda clients, round, seed: tuple(info.name for info in clients),
        quorum=0.1,
        seed=0,
    )
    _, report = next(loop)
    assert "claims to be of 2 clients" in report.failures["c0"]
