"""The simulation: who trains on what, in which order, and what goes wrong stays with its client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from tests.model import bases
from tests.training.test_tune import folded

from shepherd import plugins
from shepherd.algorithms import fedavg, fedprox
from shepherd.config import PartTable
from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    Failure,
    Payload,
    Transform,
    Update,
    chain,
    corner,
    of_rank,
    padded,
)
from shepherd.data.tokens import Tokens
from shepherd.federation.client_store import StoredMemory
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.io.progress import Progress
from shepherd.machine.executors import Inline
from shepherd.rounds.ranks import ranks_of
from shepherd.settings import AdapterTable, FederationTable, TuningTable
from shepherd.training import tune

SIZES = {"ann": 3, "bob": 7, "cay": 5, "dan": 4}
RATE = 0.01


def datasets() -> dict[str, Tokens]:
    return {name: bases.tokens(size, [5 + i % 6 for i in range(size)]) for name, size in SIZES.items()}


def simulated(base, *, stack_size=4, watch=None, tuning=None, federation=None, **more) -> Simulation:
    table = {"batch_size": 2, "learning_rate": RATE, **(tuning or {})}
    made = {
        "datasets": datasets(),
        "algorithm": fedavg.ALGORITHM,
        "transform": chain(),
        "tuning": TuningTable.model_validate(table),
        "federation": FederationTable.model_validate(federation or {}),
        "micro_batch_tokens": 4096,
        "order_seed": 1,
    }
    local = LocalClients(**{**made, **more})
    heard = {"watch": watch} if watch else {}
    return Simulation(local=local, executor=Inline(base), stack_size=stack_size, **heard)


def broadcast(base, round: int = 0) -> Broadcast:
    return Broadcast(round=round, adapter=bases.random_adapter(base, 5), seed=100 + round)


def close(ours: Update, theirs: Update) -> None:
    assert (ours.client, ours.weight, ours.round) == (theirs.client, theirs.weight, theirs.round)
    assert ours.metrics == pytest.approx(dict(theirs.metrics), rel=1e-5)
    for name, delta in ours.delta.items():
        np.testing.assert_allclose(delta, theirs.delta[name], atol=0.02 * RATE, err_msg=name)


@pytest.fixture
def visited(monkeypatch) -> list[list[tune.Visit]]:
    """The visits of each tuning, as they are asked for."""
    calls: list[list[tune.Visit]] = []
    honest = tune.tune

    def spy(base, job, watch):
        calls.append(list(job.visits))
        return honest(base, job, watch)

    monkeypatch.setattr(tune, "tune", spy)
    return calls


def test_clients_are_told_by_name_and_size(llama) -> None:
    assert {c.name: c.examples for c in simulated(llama).clients()} == SIZES
    assert [c.name for c in simulated(llama).clients()] == sorted(SIZES)


def test_updates_come_in_the_cohorts_order_as_each_group_is_done(llama, visited) -> None:
    cohort = ["dan", "ann", "cay", "bob"]
    answers = simulated(llama, stack_size=2).run(broadcast(llama), cohort)
    assert visited == []
    assert [next(answers).client for _ in range(2)] == ["dan", "ann"]
    assert len(visited) == 1  # the second group is not tuned before it is asked for
    assert [answer.client for answer in answers] == ["cay", "bob"]


def test_a_round_may_ask_further_clients_and_keeps_what_the_first_ones_did(llama) -> None:
    whole, parts = simulated(llama), simulated(llama)
    due = list(whole.run(broadcast(llama), ["dan", "ann", "cay"]))
    parts.begin(0)
    got = [*parts.run_more(broadcast(llama), ["dan", "ann"]), *parts.run_more(broadcast(llama), ["cay"])]
    for ours, theirs in zip(got, due, strict=True):
        close(ours, theirs)
    assert parts.reached() == whole.reached()
    unfinished = parts.run_more(broadcast(llama), ["bob", "bob"])
    next(unfinished)
    assert parts.reached() == simulated(llama).reached()  # as of a round that is interrupted
    parts.begin(0)
    assert parts.reached() == simulated(llama).reached()


def test_how_many_are_tuned_at_once_changes_rounding_alone(llama) -> None:
    cohort = ["dan", "ann", "cay", "bob"]
    together = list(simulated(llama, stack_size=4).run(broadcast(llama), cohort))
    for size in (1, 3):
        for ours, theirs in zip(
            simulated(llama, stack_size=size).run(broadcast(llama), cohort), together, strict=True
        ):
            close(ours, theirs)


def test_a_deployed_client_with_its_own_data_alone_sends_the_same_bits(dropping) -> None:
    """Law 2, at cohort size 1."""
    for round in range(2):
        among = {
            u.client: u for u in simulated(dropping, stack_size=1).run(broadcast(dropping, round), [*SIZES])
        }
        own = {"cay": datasets()["cay"]}
        (alone,) = simulated(dropping, stack_size=1, datasets=own).run(broadcast(dropping, round), ["cay"])
        assert alone == among["cay"]


def test_the_cursor_goes_on_until_every_example_was_trained(llama, visited) -> None:
    """Law 8, over three visits of two steps of two examples."""
    simulation = simulated(llama, tuning={"max_steps": 2})
    covered = []
    for round in range(3):
        assert len(list(simulation.run(broadcast(llama, round), ["bob", "ann"]))) == 2
        covered.append(simulation.coverage()["bob"])
    assert covered == [4 / 7, 1.0, 1.0]
    visits = [visit for call in visited for visit in call]
    taken = {
        name: np.concatenate(
            [step for visit in visits if visit.client == name for step in visit.batches]
        ).tolist()
        for name in ("ann", "bob")
    }
    assert sorted(taken["bob"][:7]) == list(range(7))  # all of them before any comes again
    assert sorted(taken["ann"][:3]) == sorted(taken["ann"][3:6]) == list(range(3))
    simulation.commit()
    assert simulation.positions == {name: len(found) for name, found in taken.items()}
    assert simulation.coverage() == {"ann": 1.0, "bob": 1.0, "cay": 0.0, "dan": 0.0}


def test_a_later_round_trains_in_another_order_and_another_seed_too(llama, visited) -> None:
    for seed in (1, 2):
        simulation = simulated(llama, order_seed=seed)
        for round in range(2):
            list(simulation.run(broadcast(llama, round), ["bob"]))
    orders = [np.concatenate(call[0].batches).tolist() for call in visited]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_dropout_goes_by_the_rounds_seed_and_the_client(llama, visited) -> None:
    for round in range(2):
        list(simulated(llama).run(broadcast(llama, round), ["ann", "bob"]))
    assert len({visit.seed for call in visited for visit in call}) == 4
    list(simulated(llama).run(broadcast(llama, 0), ["bob"]))
    assert visited[-1][0].seed == visited[0][1].seed  # and by nothing else


@pytest.mark.parametrize("kind", ["examples", "tokens", "size", "equal"])
def test_weights_are_what_the_run_file_says(llama, kind) -> None:
    for update in simulated(llama, federation={"weights": kind}).run(broadcast(llama), [*SIZES]):
        data = datasets()[update.client]
        trained = int(tune.predictions(data).sum())
        assert update.weight == {
            "examples": len(data), "tokens": trained, "size": len(data), "equal": 1.0,
        }[kind]  # fmt: skip
        assert update.metrics["examples"] == len(data)
        assert update.metrics["trained_tokens"] == trained
        assert update.metrics["tokens"] == len(data.ids)
        assert update.metrics["steps"] == -(-len(data) // 2)


def test_a_size_counts_whatever_a_visit_takes_of_it(llama) -> None:
    tuning = {"max_steps": 1}
    for kind, weights in (("size", SIZES), ("examples", dict.fromkeys(SIZES, 2))):
        simulation = simulated(llama, tuning=tuning, federation={"weights": kind})
        assert {u.client: u.weight for u in simulation.run(broadcast(llama), [*SIZES])} == weights


def remembering() -> Algorithm:
    """Each client keeps the sum of its changes."""
    return replace(
        fedavg.ALGORITHM,
        remember=lambda memory, sent, result: (
            Adapter(memory).plus(result.delta) if memory else result.delta,
            Payload(),
        ),
    )


def state(simulation: Simulation) -> tuple[dict[str, int], dict[str, Payload]]:
    return dict(simulation.positions), kept(simulation, simulation.memories)


def kept(simulation: Simulation, memories: Mapping[str, StoredMemory]) -> dict[str, Payload]:
    return {client: simulation.store.get(client, which) for client, which in memories.items()}


@pytest.mark.parametrize("how", ["left", "raised", "finished"])
def test_a_round_that_is_asked_again_begins_where_the_one_before_ended(llama, how) -> None:
    """Left half way, ended by an interruption, or finished and not taken over, as below its quorum."""
    heard: list[Progress] = []

    def watch(progress: Progress) -> None:
        heard.append(progress)
        if how == "raised" and progress.clients_done and len(heard) < 99:
            heard.extend([progress] * 99)
            raise KeyboardInterrupt

    cohort = ["ann", "bob"]
    disturbed, undisturbed = (
        simulated(llama, stack_size=1, tuning={"max_steps": 1}, algorithm=remembering()) for _ in range(2)
    )
    for each in (disturbed, undisturbed):
        list(each.run(broadcast(llama, 0), cohort))
        each.commit()
    before = state(disturbed)
    interrupted = replace(disturbed, watch=watch)
    answers = interrupted.run(broadcast(llama, 1), cohort)
    if how == "raised":
        with pytest.raises(KeyboardInterrupt):
            list(answers)
    elif how == "left":
        next(answers)
        answers.close()
    else:
        list(answers)
    assert state(disturbed) == state(interrupted) == before
    for round in (1, 2):  # asking for a later round takes over the one before
        ours = list(interrupted.run(broadcast(llama, round), cohort))
        theirs = list(undisturbed.run(broadcast(llama, round), cohort))
        assert ours == theirs
    interrupted.commit()
    undisturbed.commit()
    assert state(interrupted) == state(undisturbed)


def test_what_a_round_will_have_changed_can_be_saved_before_it_is_taken_over(llama) -> None:
    simulation = simulated(llama, algorithm=remembering())
    (update,) = simulation.run(broadcast(llama), ["ann"])
    assert state(simulation) == ({}, {})
    positions, memories = simulation.reached()
    assert (positions, kept(simulation, memories)) == ({"ann": 3}, {"ann": update.delta})
    assert simulation.coverage()["ann"] == 1.0
    simulation.commit()
    simulation.commit()
    assert state(simulation) == ({"ann": 3}, {"ann": update.delta})
    assert simulation.reached() == (simulation.positions, simulation.memories)


def test_a_client_whose_data_fail_is_a_failure_and_the_others_go_on(llama) -> None:
    data = datasets()
    data["bob"].loss_mask[:] = False
    data["cay"] = data["cay"].take([])
    simulation = simulated(llama, datasets=data)
    ann, bob, cay, dan = simulation.run(broadcast(llama), ["ann", "bob", "cay", "dan"])
    assert isinstance(bob, Failure)
    assert "client bob has a step without a trained token" in bob.reason
    assert isinstance(cay, Failure)
    assert "client cay has no example" in cay.reason
    assert simulation.reached()[0] == {"ann": 3, "dan": 4}
    expected = simulated(llama).run(broadcast(llama), ["ann", "dan"])
    for ours, theirs in zip((ann, dan), expected, strict=True):
        assert ours == theirs


class _Losing(Inline):
    """An executor that loses the jobs of one client, as with the machines that tune it."""

    def tuned(self, jobs, watch):
        asked = list(jobs)
        for job, results in zip(asked, Inline.tuned(self, asked, watch), strict=True):
            lost = any(visit.client == "bob" for visit in job.visits)
            yield [Failure(client=each.client, reason="lost") if lost else each for each in results]


def test_a_client_whose_job_is_lost_fails_and_is_where_it_was_before(llama) -> None:
    simulation = replace(simulated(llama, stack_size=1), executor=_Losing(llama))
    ann, bob, cay = simulation.run(broadcast(llama), ["ann", "bob", "cay"])
    assert bob == Failure(client="bob", reason="lost")
    assert [ann, cay] == list(simulated(llama, stack_size=1).run(broadcast(llama), ["ann", "cay"]))
    simulation.commit()
    assert simulation.positions.keys() == {"ann", "cay"}


def test_a_round_of_failures_alone_is_told_client_by_client(llama) -> None:
    data = {name: tokens.take([]) for name, tokens in datasets().items()}
    answers = list(simulated(llama, datasets=data, stack_size=2).run(broadcast(llama), [*SIZES]))
    assert [type(answer) for answer in answers] == [Failure] * 4


def test_what_a_client_remembers_comes_back_to_it_alone(llama, visited) -> None:
    algorithm = replace(
        fedavg.ALGORITHM,
        remember=lambda memory, sent, result: (result.delta, Adapter({"n": np.full(1, float(bool(memory)))})),
    )
    simulation = simulated(llama, algorithm=algorithm)
    first = {u.client: u for u in simulation.run(broadcast(llama, 0), ["ann", "bob"])}
    second = {u.client: u for u in simulation.run(broadcast(llama, 1), ["bob", "cay"])}
    assert {visit.client: visit.memory for visit in visited[1]} == {
        "bob": first["bob"].delta,
        "cay": Payload(),
    }
    # one round is done
    assert state(simulation)[1] == {name: first[name].delta for name in ("ann", "bob")}
    simulation.commit()
    assert state(simulation)[1] == {
        "ann": first["ann"].delta,
        **{name: second[name].delta for name in ("bob", "cay")},
    }
    assert second["bob"].extra["n"] == 1
    assert second["cay"].extra["n"] == 0


def test_what_a_transform_keeps_with_a_client_is_no_business_of_the_algorithms(llama, visited) -> None:
    """Both remember under the same names; each gets its own back, and an unfinished round is undone."""
    algorithm = replace(fedavg.ALGORITHM, remember=lambda memory, sent, result: (result.delta, Payload()))
    heard: list[tuple[str, Payload]] = []

    def remember(update, public, draws, sent, memory):
        heard.append((update.client, memory))
        return update, Payload({name: tensor + 1 for name, tensor in update.delta.items()})

    simulation = simulated(llama, algorithm=algorithm, transform=Transform(remember=remember))
    first = {u.client: u for u in simulation.run(broadcast(llama, 0), ["ann", "bob"])}
    next(simulation.run(broadcast(llama, 1), ["bob", "cay"]))  # and no further
    list(simulation.run(broadcast(llama, 1), ["bob", "cay"]))
    kept = Payload({name: tensor + 1 for name, tensor in first["bob"].delta.items()})
    assert [client for client, _ in heard] == ["ann", "bob", "bob", "bob", "cay"]
    assert [memory for _, memory in heard] == [Payload(), Payload(), kept, kept, Payload()]
    for visits in visited[1:]:
        assert {visit.client: visit.memory for visit in visits}["bob"] == first["bob"].delta


def test_each_client_transforms_its_update_with_a_seed_of_its_own(llama) -> None:
    seen: dict[str, tuple[object, float]] = {}

    def on_client(update, state, draws):
        seen[update.client] = (state, draws.generator().random())
        return update

    noting = Transform(on_client=on_client)
    sent = Broadcast(round=0, adapter=bases.random_adapter(llama, 5), seed=0, transforms={"norm": np.ones(1)})
    list(simulated(llama, transform=noting).run(sent, ["ann", "bob"]))
    assert all(state is sent.transforms for state, _ in seen.values())
    assert seen["ann"][1] != seen["bob"][1]


def test_progress_adds_up_over_the_groups_of_a_round(llama) -> None:
    heard: list[Progress] = []
    simulation = simulated(llama, stack_size=2, watch=heard.append, federation={"rounds": 9})
    updates = list(simulation.run(broadcast(llama, 4), [*SIZES]))
    assert {(p.round, p.rounds, p.clients) for p in heard} == {(5, 9, 4)}
    tokens, done = [p.tokens for p in heard], [p.clients_done for p in heard]
    assert tokens == sorted(tokens)
    assert tokens[-1] == sum(update.metrics["tokens"] for update in updates)
    assert (done[0], done[-1]) == (0, 2)
    assert (heard[0].first, heard[0].last, heard[-1].first, heard[-1].last) == (1, 2, 3, 4)
    assert {p.round_tokens for p in heard} == {tokens[-1]}
    assert (heard[-1].step, heard[-1].share()) == (heard[-1].steps, 1.0)
    assert all(p.seconds >= 0 and np.isfinite(p.loss) for p in heard)


def test_the_rounds_schedule_sets_the_rate(llama) -> None:
    simulation = simulated(llama, tuning={"round_schedule": "linear"}, federation={"rounds": 4})
    assert [simulation.local.learning_rate(round) for round in range(4)] == pytest.approx(
        [RATE, 0.75 * RATE, 0.5 * RATE, 0.25 * RATE]
    )

    def way(round: int) -> float:
        (update,) = simulated(
            llama, tuning={"round_schedule": "linear", "max_steps": 1}, federation={"rounds": 4}
        ).run(broadcast(llama, round), ["ann"])
        return max(float(np.abs(delta).max()) for delta in update.delta.values())

    # the first step of AdamW is the rate, for every number with a gradient
    assert way(0) == pytest.approx(RATE, rel=1e-3)
    assert way(3) == pytest.approx(0.25 * RATE, rel=1e-3)


RANKED = {"ann": 1, "bob": 3, "cay": 2}


@pytest.mark.parametrize("stack_size", [1, 4])
@pytest.mark.parametrize("algorithm", [fedavg.ALGORITHM, fedprox.build(fedprox.Config(mu=5.0))])
@pytest.mark.parametrize("name", ["product", "side", "zero_padding"])
def test_a_client_of_its_own_rank_is_trained_as_it_would_be_alone(llama, name, algorithm, stack_size) -> None:
    """Law 1 under unequal ranks: alone, the ranks that a client does not train are a part of the base."""
    keys = {"side_rank": 2} if name == "side" else {}
    aggregation = plugins.aggregation(PartTable(name=name, **keys))
    rank = llama.adapter.rank
    table = AdapterTable(rank=rank, ranks=RANKED)
    sent = broadcast(llama)
    if aggregation.side_rank:
        whole = padded(sent.adapter, aggregation.side_rank)
        filled = {n: t + 0.05 * (t == 0) for n, t in whole.items()}
        sent = replace(sent, adapter=Adapter(filled))
    among = simulated(
        llama,
        stack_size=stack_size,
        algorithm=algorithm,
        ranks=ranks_of(table, aggregation, list(SIZES)),
        truncates=aggregation.truncates,
    )
    for update in among.run(sent, list(SIZES)):
        own = RANKED.get(update.client, rank)
        small = Adapter({n: corner(t, of_rank(n, t.shape, own)) for n, t in sent.adapter.items()})
        alone = simulated(llama, algorithm=algorithm, datasets={update.client: datasets()[update.client]})
        with folded(llama, sent.adapter, rank if aggregation.truncates else own):
            (due,) = alone.run(replace(sent, adapter=small), [update.client])
        assert {n: t.shape for n, t in update.delta.items()} == {n: t.shape for n, t in small.items()}
        close(update, due)
