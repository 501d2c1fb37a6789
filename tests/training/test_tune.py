"""Local tuning: what a visit trains and reports, and what an algorithm may do inside it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.model import bases
from tests.model.in_peft import in_peft, peft_loss

from shepherd.algorithms import fedavg, fednova, fedprox, fedsa_lora, ffa_lora
from shepherd.core import Adapter, Broadcast, ClientInfo
from shepherd.data import shared_prefix
from shepherd.data.tokens import Tokens
from shepherd.errors import AdapterError, DataError
from shepherd.model import lora
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING
from shepherd.training.optimisers import adamw
from shepherd.training.packed_batch import pack_batch

PLAIN = fedavg.ALGORITHM
RATE = 0.01


def visit(client: str, seed: int, steps: int = 2, *, memory: Adapter | None = None) -> tune.Visit:
    """Steps of three examples over eight."""
    data = bases.tokens(seed, [9, 2, 13, 7, 3, 11, 6, 8])
    taken = np.random.default_rng(seed).integers(0, len(data), (steps, 3))
    return tune.Visit(client=client, data=data, batches=list(taken), seed=seed, memory=memory or Adapter())


def broadcast(base: Base, round: int = 0) -> Broadcast:
    return Broadcast(round=round, adapter=bases.random_adapter(base, 5), seed=0)


def tuned(
    base: Base, *visits: tune.Visit, algorithm=PLAIN, rate: float = RATE, micro_batch_tokens=4096, **table
) -> list[tune.TuningResult]:
    how = {"learning_rate": rate, "micro_batch_tokens": micro_batch_tokens}
    return bases.tuned(base, broadcast(base), algorithm, visits, TuningTable.model_validate(table), **how)


def close(a: Adapter, b: Adapter, tolerance: float) -> None:
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=tolerance, err_msg=name)


# --- batches


def test_a_batch_is_a_batch_however_it_is_cut_into_rows(llama) -> None:
    whole = tuned(llama, visit("a", 1), micro_batch_tokens=10_000)[0]
    for tokens in (1, 14, 40):
        cut = tuned(llama, visit("a", 1), micro_batch_tokens=tokens)[0]
        assert cut.report.loss == pytest.approx(whole.report.loss, rel=1e-6)
        # AdamW turns rounding of a tiny gradient into a share of one step; half a step would be 0.005
        close(cut.delta, whole.delta, 2e-4)


@pytest.mark.parametrize(("kind", "stacks"), [("llama", ()), ("mixtral", bases.STACKS)])
def test_a_pass_that_trains_nothing_is_a_pass_like_others(
    kind: str, stacks: tuple[str, ...], tmp_path
) -> None:
    """Its last layer has no position to compute, of which no shape can be inferred."""
    base = bases.load(
        bases.save({**bases.CONFIGS, **bases.MIXTURES}[kind], tmp_path), target_parameters=list(stacks)
    )
    data = bases.tokens(1, [9, 12])
    data = replace(data, loss_mask=data.loss_mask & (np.arange(21) < 9))  # nothing of the second example
    asked = tune.Visit(client="a", data=data, batches=[np.arange(2)])
    apart, together = (tuned(base, asked, micro_batch_tokens=tokens)[0] for tokens in (12, 100))
    close(apart.delta, together.delta, 1e-4)
    assert apart.report.trained_tokens == together.report.trained_tokens > 0


def test_a_shared_prefix_changes_no_result_and_is_not_shared_under_dropout(
    llama, dropping, monkeypatch
) -> None:
    one = visit("a", 1)
    one = replace(one, data=bases.beginning_alike(one.data, shared_prefix.MIN_PREFIX_TOKENS + 2))
    shared = tuned(llama, one)[0]
    monkeypatch.setattr(
        shared_prefix, "group_by_prefix", lambda examples: pytest.fail("looked for shared prefixes")
    )
    tuned(dropping, one)
    monkeypatch.setattr(
        tune, "pack_batch", lambda *given, **more: pack_batch(*given, **{**more, "share": False})
    )
    apart = tuned(llama, one)[0]
    assert shared.report == replace(apart.report, loss=pytest.approx(apart.report.loss, rel=1e-6))
    close(shared.delta, apart.delta, 2e-4)


def test_the_loss_is_the_mean_over_trained_tokens_before_each_step(llama, tmp_path) -> None:
    one = visit("a", 1, steps=1)
    (result,) = tuned(llama, one, micro_batch_tokens=15)
    theirs = peft_loss(in_peft(llama, broadcast(llama).adapter, tmp_path), one.data.take(one.batches[0]))
    assert result.report.loss == pytest.approx(theirs.item(), rel=1e-5)


def test_a_visit_counts_what_it_took(llama) -> None:
    data = Tokens(
        ids=np.arange(4, 16, dtype=np.int32),
        loss_mask=np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 1], dtype=bool),
        offsets=np.array([0, 4, 7, 12]),
    )
    assert tune.predictions(data).tolist() == [2, 1, 2]  # nothing predicts an example's first token
    steps = [np.array([0, 2]), np.array([0])]
    (result,) = tuned(llama, tune.Visit(client="a", data=data, batches=steps))
    report = result.report
    assert (result.client, report.steps, report.examples) == ("a", 2, 3)
    assert (report.tokens, report.trained_tokens) == (13, 6)


def test_progress_is_told_after_each_step(llama, monkeypatch) -> None:
    monkeypatch.setattr(tune, "REPORT_INTERVAL_S", float("inf"))  # a busy machine tells passes as well
    heard: list[tune.Progress] = []
    first, second = visit("a", 1, steps=1), visit("b", 2, steps=3)
    results = bases.tuned(
        llama, broadcast(llama), PLAIN, [first, second], TuningTable(), learning_rate=RATE, watch=heard.append
    )
    tokens = [progress.tokens for progress in heard]
    assert len(heard) == 3
    assert tokens == sorted(tokens)
    assert tokens[-1] == sum(result.report.tokens for result in results)
    reports = [result.report for result in results]
    mean = sum(r.loss * r.trained_tokens for r in reports) / sum(r.trained_tokens for r in reports)
    assert heard[-1].loss == pytest.approx(mean)
    assert [(progress.step, progress.steps) for progress in heard] == [(1, 3), (2, 3), (3, 3)]


def test_progress_is_told_within_a_step_that_takes_long(llama, monkeypatch) -> None:
    monkeypatch.setattr(tune, "REPORT_INTERVAL_S", -1.0)  # every pass takes longer
    heard: list[tune.Progress] = []
    how = {"learning_rate": RATE, "micro_batch_tokens": 8, "watch": heard.append}
    (result,) = bases.tuned(llama, broadcast(llama), PLAIN, [visit("a", 1, steps=1)], TuningTable(), **how)
    assert len(heard) > 2
    assert {progress.step for progress in heard} == {1}
    assert [progress.tokens for progress in heard] == sorted(progress.tokens for progress in heard)
    assert heard[-1].loss == pytest.approx(result.report.loss)
    assert heard[0].loss != pytest.approx(result.report.loss)


def test_no_visit_gives_no_result(llama) -> None:
    assert tuned(llama) == []


def test_passes_hold_whole_rows_of_every_client_within_the_budget() -> None:
    visits = [visit("a", 1, steps=1), visit("b", 2, steps=2), visit("c", 3, steps=1)]
    for step, clients in ((0, {0, 1, 2}), (1, {1})):
        taken: dict[int, list[int]] = {k: [] for k in clients}
        for rows in tune.passes(visits, step, 30):
            assert sum(row.tokens for row in rows) <= 30
            for row in rows:
                assert row.tokens == visits[row.client].data.lengths[row.examples].sum()
                taken[row.client] += row.examples.tolist()
        assert {k: sorted(found) for k, found in taken.items()} == {
            k: sorted(visits[k].batches[step].tolist()) for k in clients
        }


def test_a_clients_rows_do_not_depend_on_who_else_is_there() -> None:
    def rows_of(client: str, *visits: tune.Visit) -> list[tuple[list[int], int]]:
        rows = [row for group in tune.passes(visits, 0, 16) for row in group]
        return sorted((r.examples.tolist(), r.seed) for r in rows if visits[r.client].client == client)

    a, b = visit("a", 1), visit("b", 2)
    assert rows_of("a", a) == rows_of("a", a, b) == rows_of("a", b, a)


# --- what is refused


def test_a_step_without_a_trained_token_is_refused_with_the_clients_name(llama) -> None:
    silent = bases.tokens(0, [5, 5])
    silent.loss_mask[:5] = False
    bad = tune.Visit(client="mute", data=silent, batches=[np.array([0])])
    with pytest.raises(DataError, match="client mute"):
        tuned(llama, visit("a", 1), bad)


def test_an_adapter_of_another_base_is_refused_by_the_tensors_name(llama) -> None:
    wrong = Adapter({**broadcast(llama).adapter, "more": np.zeros((2, 2))})
    sent = Broadcast(round=0, adapter=wrong, seed=0)
    with pytest.raises(AdapterError, match="tensor more is not expected"):
        bases.tuned(llama, sent, PLAIN, [visit("a", 1)], TuningTable(), learning_rate=RATE)


def test_an_algorithm_that_trains_nothing_is_refused(llama) -> None:
    with pytest.raises(AdapterError, match="trains no tensor in round 0"):
        tuned(llama, visit("a", 1), algorithm=replace(PLAIN, trainable=lambda name, round: False))


# --- algorithms inside


def test_fedprox_adds_its_spring_to_every_clients_gradient(llama) -> None:
    """The second step's gradient is the plain one at the same point plus mu times the way gone."""
    seen: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
    prox = fedprox.build(fedprox.Config(mu=0.7))

    def spy(name, grad, param, sent, memory, step):
        corrected = prox.correct(name, grad, param, sent, memory, step)
        seen.append(tuple(t.detach().numpy().copy() for t in (grad, param, corrected)))
        names.append(name)
        return corrected

    names: list[str] = []
    tuned(llama, visit("a", 1), visit("b", 2), algorithm=replace(prox, correct=spy), clip_norm=0)
    start = broadcast(llama).adapter
    second = seen[len(start) :]
    assert names == [*start, *start]
    for name, (grad, param, corrected) in zip(names, second, strict=False):
        gone = param - start[name]  # (K, ...)
        assert np.abs(gone).max() > 0.5 * RATE
        np.testing.assert_allclose(corrected, grad + 0.7 * gone, rtol=1e-5, atol=1e-7)


def test_a_strong_spring_keeps_clients_near_what_they_were_sent(llama) -> None:
    def way(mu: float) -> float:
        algorithm = fedprox.build(fedprox.Config(mu=mu))
        return tuned(llama, visit("a", 1, steps=12), algorithm=algorithm)[0].delta.norm()

    assert way(100.0) < 0.5 * way(0.0)


def test_a_frozen_factor_does_not_travel_and_the_other_is_trained_as_if_it_were_constant(llama) -> None:
    algorithm = ffa_lora.build(ffa_lora.Config())
    sent = broadcast(llama)
    (result,) = tuned(llama, visit("a", 1), algorithm=algorithm)
    assert list(result.delta) == [name for name in sent.adapter if "lora_B" in name]
    # the first step of B is that of FedAvg, whose gradient of B does not know whether A moves
    one = visit("a", 1, steps=1)
    plain = tuned(llama, one, clip_norm=0)[0].delta
    ours = tuned(llama, one, algorithm=algorithm, clip_norm=0)[0].delta
    for name, delta in ours.items():
        assert delta.tobytes() == plain[name].tobytes()


def test_which_tensors_train_may_change_with_the_round(llama) -> None:
    turns = replace(PLAIN, trainable=lambda name, round: f"lora_{'AB'[round % 2]}" in name)
    for round, letter in ((0, "A"), (1, "B")):
        (result,) = bases.tuned(
            llama, broadcast(llama, round), turns, [visit("a", 1)], TuningTable(), learning_rate=RATE
        )
        assert {name.split(".")[-2] for name in result.delta} == {f"lora_{letter}"}


def test_memory_is_stacked_with_zeros_for_a_first_visit_and_what_is_remembered_comes_out(llama) -> None:
    seen: dict[str, np.ndarray] = {}

    def correct(name, grad, param, sent, memory, step):
        seen[name] = memory[name].numpy().copy()
        return grad + memory[name]

    def remember(memory, sent, result):
        return result.delta.times(float(result.steps)), result.delta.times(-1.0)

    algorithm = replace(PLAIN, correct=correct, remember=remember)
    kept = bases.random_adapter(llama, 8, size=1.0)
    old, new = visit("old", 1, steps=1, memory=kept), visit("new", 2, steps=2)
    first, second = tuned(llama, old, new, algorithm=algorithm, clip_norm=0)
    for name in kept:  # rows stand in the order of the names: new, old
        assert np.array_equal(seen[name], np.stack([np.zeros_like(kept[name]), kept[name]]))
    assert first.memory == first.delta
    assert second.memory == second.delta.times(2.0)
    assert first.extra == first.delta.times(-1.0)

    (plain,) = tuned(llama, new, clip_norm=0)
    close(second.delta, plain.delta, 1e-4)  # zeros change nothing
    (pushed,) = tuned(llama, visit("old", 1, steps=1), clip_norm=0)
    moved = [np.abs(first.delta[n] - pushed.delta[n]).max() for n in kept]
    assert min(moved) > RATE / 2  # the memory decided the direction of a first step


def test_the_rate_is_the_shape_of_each_visits_own_length(llama) -> None:
    """A linear schedule ends where the client's own visit ends, not where the longest one does."""
    table = {"schedule": "linear"}
    short, long = visit("a", 1, steps=2), visit("b", 2, steps=4)
    together = tuned(llama, short, long, **table)
    for one, result in zip((short, long), together, strict=True):
        (alone,) = tuned(llama, one, **table)
        close(result.delta, alone.delta, 2e-4)


def test_fednovas_steps_are_those_of_the_schedule_in_each_visit(llama) -> None:
    """At a linear schedule from 1 to 0 over n steps, the shares are n, n - 1 .. 1 over n."""
    nova = fednova.build(fednova.Config())
    results = tuned(llama, visit("a", 1, steps=2), visit("b", 2, steps=4), algorithm=nova, schedule="linear")
    assert [float(result.extra[fednova.STEPS][0]) for result in results] == pytest.approx([1.5, 2.5])
    (constant,) = tuned(llama, visit("a", 1, steps=3), algorithm=nova)
    assert constant.extra[fednova.STEPS].tolist() == [3.0]


def truncated(adapter: Adapter, rank: int) -> Adapter:
    """The first rows of A and the first columns of B."""
    return Adapter({n: t[:rank] if "lora_A" in n else t[:, :rank] for n, t in adapter.items()})


@pytest.mark.parametrize("algorithm", [PLAIN, fedprox.build(fedprox.Config(mu=5.0))])
def test_clients_of_unequal_ranks_in_one_stack_are_tuned_as_if_each_were_alone(llama, algorithm) -> None:
    sent = replace(broadcast(llama), adapter=bases.random_adapter(llama, 8, size=0.3))
    rank = min(sent.adapter[n].shape[0] for n in sent.adapter if "lora_A" in n)
    small = truncated(sent.adapter, rank - 1)
    low, high = replace(visit("low", 1), start=small), visit("high", 2)
    how = {
        "learning_rate": RATE,
        "training": DEFAULT_TRAINING._replace(optimiser=adamw.build(adamw.Config(weight_decay=0.1))),
    }
    together = bases.tuned(llama, sent, algorithm, [low, high], TuningTable(), **how)
    (alone,) = bases.tuned(
        llama,
        replace(sent, adapter=small),
        algorithm,
        [visit("low", 1)],
        TuningTable(),
        **how,
    )
    (whole,) = bases.tuned(llama, sent, algorithm, [high], TuningTable(), **how)
    assert {n: t.shape for n, t in together[0].delta.items()} == {n: t.shape for n, t in small.items()}
    close(together[0].delta, alone.delta, 1e-4)
    close(together[1].delta, whole.delta, 1e-4)


def test_ranks_beyond_those_that_are_trained_act_as_a_part_of_the_base(llama) -> None:
    sent = replace(broadcast(llama), adapter=bases.random_adapter(llama, 8, size=0.3))
    rank = min(sent.adapter[n].shape[0] for n in sent.adapter if "lora_A" in n) - 1
    small = truncated(sent.adapter, rank)
    decayed = DEFAULT_TRAINING._replace(optimiser=adamw.build(adamw.Config(weight_decay=0.5)))
    how = {"learning_rate": RATE, "training": decayed}
    visits = [replace(visit("frozen", 1), rank=rank), visit("whole", 2)]
    frozen, whole = bases.tuned(llama, sent, PLAIN, visits, TuningTable(), **how)
    (alone,) = bases.tuned(llama, sent, PLAIN, [visit("whole", 2)], TuningTable(), **how)
    close(whole.delta, alone.delta, 1e-4)
    with folded(llama, sent.adapter, rank):
        (due,) = bases.tuned(
            llama, replace(sent, adapter=small), PLAIN, [visit("frozen", 1)], TuningTable(), **how
        )
    close(frozen.delta, due.delta, 1e-4)


@contextmanager
def folded(base: Base, adapter: Adapter, first: int):
    """Add the ranks of an adapter from `first` on to the base's matrices, as a dense product."""
    scale, before = lora.scaling(base.adapter), []
    for target, layer in lora.layers(base.model, base.targets):
        a, b = adapter[target.name_a][first:], adapter[target.name_b][:, first:]
        change = torch.from_numpy(scale * b @ a)
        weight = layer.base.weight
        before.append((weight, weight.data.clone()))  # to subtract the change would leave other last bits
        weight.data += change if weight.shape == change.shape else change.T
    yield
    for weight, whole in before:
        weight.data.copy_(whole)


def test_what_is_not_shared_stays_with_the_client_and_its_next_visit_starts_from_it(llama) -> None:
    algorithm = fedsa_lora.build(fedsa_lora.Config())
    sent = broadcast(llama)
    (first,) = tuned(llama, visit("a", 1), algorithm=algorithm)
    assert {n.split(".")[-2] for n in first.delta} == {"lora_A"}
    assert {n.split(".")[-2] for n in first.memory} == {"lora_B"}
    begun = algorithm.start(sent, first.memory, ClientInfo(name="a", examples=9))
    again = replace(visit("a", 1), memory=first.memory, start=begun)
    (second,) = tuned(llama, again, algorithm=algorithm)
    (plain,) = bases.tuned(
        llama, replace(sent, adapter=begun), PLAIN, [visit("a", 1)], TuningTable(), learning_rate=RATE
    )
    for name, tensor in second.memory.items():
        np.testing.assert_allclose(tensor, begun[name] + plain.delta[name], rtol=1e-5, atol=1e-7)


def test_a_start_that_does_not_fit_the_base_is_refused_by_name(llama) -> None:
    odd = Adapter({n: t[:, :-1] if "lora_A" in n else t for n, t in broadcast(llama).adapter.items()})
    with pytest.raises(
        AdapterError, match=r"lora_A.weight in the adapter that client a starts from has shape"
    ):
        tuned(llama, replace(visit("a", 1), start=odd))


def test_memories_that_differ_in_layout_are_refused(llama) -> None:
    prox = replace(PLAIN, correct=lambda name, grad, param, sent, memory, step: grad)
    mine, other = Adapter({"x": [1.0]}), Adapter({"y": [1.0]})
    with pytest.raises(AdapterError, match="tensor x is missing"):
        tuned(llama, visit("a", 1, memory=mine), visit("b", 2, memory=other), algorithm=prox)
