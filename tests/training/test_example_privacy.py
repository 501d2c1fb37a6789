"""DP-SGD in the trainer: against Opacus on the same adapter in PEFT, and against examples one at a time."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.model import bases
from tests.model.in_peft import in_peft, padded

from shepherd.algorithms import fed_sb, fedavg, fedprox, ffa_lora, scaffold
from shepherd.core import Adapter, Algorithm, Broadcast
from shepherd.data.tokens import Tokens
from shepherd.errors import BaseError, SettingsError
from shepherd.machine.executors.processes import _sliced
from shepherd.model import lora_layers, pass_plan
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from shepherd.training import example_privacy, tune
from shepherd.training.example_privacy import ExamplePrivacy
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.optimisers import sgd

LENGTHS = [9, 2, 13, 7, 3, 11, 6, 8]
SGD = LocalTraining(sgd.build(sgd.Config()), DEFAULT_TRAINING.objective)
RATE = 1.0
"""With SGD and this rate, a step's change is its gradient."""


class Silent:
    """Draws without noise: what is left are the clipped sums."""

    def generator(self, *purpose: int | str) -> np.random.Generator:
        class Zero(np.random.Generator):
            def normal(self, loc=0.0, scale=1.0, size=None):  # type: ignore[no-untyped-def, override]
                return np.zeros(size)

        return Zero(np.random.PCG64(0))


@dataclass
class Counted:
    """Draws of a known seed, which remember what they were asked for."""

    purposes: list[tuple[int | str, ...]]

    def generator(self, *purpose: int | str) -> np.random.Generator:
        self.purposes.append(purpose)
        return np.random.default_rng([len(str(part)) for part in purpose])


def clipped(norm: float) -> ExamplePrivacy:
    return ExamplePrivacy(norm=norm, noise=1.0, draws=Silent())


def broadcast(base: Base, seed: int = 5) -> Broadcast:
    return Broadcast(round=0, adapter=bases.random_adapter(base, seed), seed=0)


def visit(client: str, seed: int, *batches: list[int], expected: float = 1.0, data=None) -> tune.Visit:
    return tune.Visit(
        client=client,
        data=data or bases.tokens(seed, LENGTHS),
        batches=[np.array(batch, np.int64) for batch in batches],
        seed=seed,
        expected_batch=expected,
    )


def tuned(base: Base, privacy: ExamplePrivacy | None, *visits: tune.Visit, algorithm=None, **more):
    table = TuningTable.model_validate({"clip_norm": 0.0, **more.pop("tuning", {})})
    how = {"learning_rate": RATE, "training": SGD, "privacy": privacy, **more}
    sent = how.pop("sent", None) or broadcast(base)
    return bases.tuned(base, sent, algorithm or fedavg.ALGORITHM, visits, table, **how)


def gradient(base: Base, privacy: ExamplePrivacy | None, *visits: tune.Visit, **more) -> Adapter:
    """The gradient of the first visit's only step."""
    return tuned(base, privacy, *visits, **more)[0].delta.times(-1.0)


def norm_of(adapter: Adapter) -> float:
    return math.sqrt(sum(float((tensor.astype(np.float64) ** 2).sum()) for tensor in adapter.values()))


def close(a: Adapter, b: Adapter, tolerance: float = 2e-6) -> None:
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=tolerance, rtol=1e-4, err_msg=name)


def one_at_a_time(base: Base, data: Tokens, examples: list[int], norm: float, **more) -> Adapter:
    """The sum of each example's own gradient, from a step without privacy, clipped here."""
    total: dict[str, np.ndarray] = {}
    for example in examples:
        own = gradient(base, None, visit("alone", 1, [example], data=data), **more)
        scale = min(1.0, norm / norm_of(own))
        for name, tensor in own.items():
            total[name] = total.get(name, 0.0) + scale * tensor.astype(np.float64)
    return Adapter({name: tensor.astype(np.float32) for name, tensor in total.items()})


def opacus_gradients(base: Base, adapter: Adapter, data: Tokens, folder: Path) -> dict[str, np.ndarray]:
    """Per-example gradients by Opacus' hooks on the adapter in PEFT: name -> (n, ...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule

        model = in_peft(base, adapter, folder)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        hooked = GradSampleModule(model.train(), loss_reduction="sum", strict=False)
        ids, labels, mask = padded(data)
        logits = hooked(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        counts = (labels[:, 1:] != -100).sum(1)
        (losses.sum(1) / counts).sum().backward()
        found = {
            name.removeprefix("_module.").replace(".default", ""): parameter.grad_sample.numpy().copy()
            for name, parameter in hooked.named_parameters()
            if "lora_" in name
        }
        hooked.to_standard_module()
    return found


# --- against Opacus


def test_the_clipped_sums_are_those_of_opacus(llama, tmp_path) -> None:
    data, sent = bases.tokens(1, LENGTHS), broadcast(llama)
    theirs = opacus_gradients(llama, sent.adapter, data, tmp_path)
    norms = np.sqrt(sum((g.astype(np.float64) ** 2).reshape(len(data), -1).sum(1) for g in theirs.values()))
    for norm in (float(np.median(norms)), 1e6, 1e-3):
        scale = np.minimum(1.0, norm / norms)
        expected = Adapter({n: np.tensordot(scale, g, 1).astype(np.float32) for n, g in theirs.items()})
        ours = gradient(llama, clipped(norm), visit("a", 1, list(range(len(data)))), sent=sent)
        close(ours, expected, tolerance=1e-5 * max(1.0, norm_of(expected)))


def test_each_example_alone_has_the_gradient_of_opacus(llama, tmp_path) -> None:
    data, sent = bases.tokens(2, LENGTHS), broadcast(llama)
    theirs = opacus_gradients(llama, sent.adapter, data, tmp_path)
    for example in range(len(data)):
        ours = gradient(llama, clipped(1e9), visit("a", 2, [example], data=data), sent=sent)
        close(ours, Adapter({name: g[example] for name, g in theirs.items()}), tolerance=1e-4)


# --- against examples one at a time


@pytest.mark.parametrize("micro_batch", [1, 14, 40, 4096])
def test_a_step_is_the_sum_of_examples_that_were_clipped_one_by_one(llama, micro_batch) -> None:
    data, batch = bases.tokens(1, LENGTHS), [0, 2, 3, 5, 7]
    ours = gradient(llama, clipped(0.5), visit("a", 1, batch, expected=4.0), micro_batch_tokens=micro_batch)
    close(ours, one_at_a_time(llama, data, batch, 0.5).times(1 / 4.0))


def test_the_rows_of_a_pass_are_bounded_and_change_nothing(llama, monkeypatch) -> None:
    seen: list[int] = []
    collecting = example_privacy.ClippedSums.collecting

    def watched(self, base, rows):
        seen.append(sum(len(row.examples) for row in rows))
        return collecting(self, base, rows)

    monkeypatch.setattr(example_privacy.ClippedSums, "collecting", watched)
    whole = gradient(llama, clipped(0.5), visit("a", 1, list(range(8))))
    assert max(seen) == 8
    seen.clear()
    values = sum(math.prod(shape) for shape in llama.shapes.values())
    monkeypatch.setattr(example_privacy, "MAX_ROW_BYTES", 4 * values * 3)
    cut = gradient(llama, clipped(0.5), visit("a", 1, list(range(8))))
    assert max(seen) <= 3
    assert sum(seen) == 8
    close(cut, whole)


def test_padded_bases_give_the_same(llama) -> None:
    data, batch = bases.tokens(1, LENGTHS), [0, 1, 2, 5, 6, 7]
    unpacked = replace(llama, proof=replace(llama.proof, unpacked="for this test"))
    assert not unpacked.packed
    ours = gradient(unpacked, clipped(0.5), visit("a", 1, batch), micro_batch_tokens=30)
    close(ours, one_at_a_time(llama, data, batch, 0.5))


def test_a_shared_beginning_is_not_shared(llama) -> None:
    data = bases.beginning_alike(bases.tokens(1, LENGTHS), 40)
    batch = [0, 2, 3, 5]
    ours = gradient(llama, clipped(0.5), visit("a", 1, batch, data=data))
    close(ours, one_at_a_time(llama, data, batch, 0.5))


def test_an_example_moves_a_step_by_the_norm_at_most(llama) -> None:
    """What the noise is measured against: with and without one example, for every example."""
    for batch in ([0, 2, 3], [5]):
        whole = gradient(llama, clipped(0.3), visit("a", 1, batch))
        for left in batch:
            rest = [example for example in batch if example != left]
            without = gradient(llama, clipped(0.3), visit("a", 1, rest))
            assert norm_of(whole.plus(without, -1.0)) <= 0.3


@pytest.mark.parametrize("values", [1, 1023, 50_000, 2_000_001])
def test_no_rounding_leaves_a_row_longer_than_the_norm(values) -> None:
    """Added up in one row, a norm is short by a per mille for a million equal values."""
    random = torch.randn(2, values, generator=torch.Generator().manual_seed(values))
    for rows in (torch.full((2, values), 0.123456), random, 1e-15 * random, 1e15 * random):
        found = example_privacy.lengths(rows)
        exact = torch.linalg.vector_norm(rows.double(), dim=1)
        torch.testing.assert_close(found.double(), exact, rtol=2**-15, atol=0.0)
        for norm in (1e-6, 0.3, 1.0, 1e9, float(exact[0])):
            clipped_rows = example_privacy.scales(found, norm).unsqueeze(1) * rows
            kept = torch.linalg.vector_norm(clipped_rows.double(), dim=1)
            assert (kept <= norm).all()
            torch.testing.assert_close(kept, exact.clamp(max=norm), rtol=2**-12, atol=0.0)


def test_an_example_alone_has_the_same_share_whatever_else_is_in_the_step(llama, dropping) -> None:
    """No weight, dropout mask or prefix of one example depends on another."""
    for base in (llama, dropping):
        alone = gradient(base, clipped(1e9), visit("a", 1, [3]))
        together = gradient(base, clipped(1e9), visit("a", 1, [0, 2, 3, 5]))
        without = gradient(base, clipped(1e9), visit("a", 1, [0, 2, 5]))
        close(together.plus(without, -1.0), alone, tolerance=2e-4)


def test_in_a_worker_that_is_sent_the_used_examples_alone_the_draws_are_the_same(llama, dropping) -> None:
    for base in (llama, dropping):
        whole = visit("a", 1, [5, 2], [3, 5])
        sent = _sliced(whole)
        assert len(sent.data) == 4
        (one,), (other,) = tuned(base, clipped(0.4), whole), tuned(base, clipped(0.4), sent)
        for name, tensor in one.delta.items():
            np.testing.assert_array_equal(tensor, other.delta[name])


# --- stacks


def test_clients_of_a_stack_are_as_alone(llama) -> None:
    a, b = visit("a", 1, [0, 2, 5], [1, 3]), visit("b", 2, [4, 6], expected=3.0)
    first, second = tuned(llama, clipped(0.4), a, b)
    close(first.delta, tuned(llama, clipped(0.4), a)[0].delta)
    close(second.delta, tuned(llama, clipped(0.4), b)[0].delta)
    turned = tuned(llama, clipped(0.4), b, a)
    for name, tensor in first.delta.items():
        np.testing.assert_array_equal(tensor, turned[1].delta[name])


def test_clients_of_a_stack_are_as_alone_where_a_gpu_takes_grouped_products(tmp_path, monkeypatch) -> None:
    llama = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path), rank=8)  # the least that they take
    packed = pass_plan.packed
    monkeypatch.setattr(pass_plan, "packed", lambda *args, **more: packed(*args, **{**more, "cuda": True}))
    monkeypatch.setattr(lora_layers, "grouped_takes", lambda x, a, b: len(a) > 1)
    visits = [visit(f"client-{seed}", seed, [0, 1, 2]) for seed in (1, 2)]
    assert norm_of(gradient(llama, clipped(0.1), visits[0])) > 0.01
    for each, together in zip(visits, tuned(llama, clipped(0.1), *visits), strict=True):
        close(together.delta.times(-1.0), gradient(llama, clipped(0.1), each))


def test_ranks_that_a_client_does_not_train_stay_and_do_not_count(llama) -> None:
    whole = visit("a", 1, [0, 2, 5])
    small = replace(whole, rank=1)
    (result,) = tuned(llama, clipped(1e9), small)
    (plain,) = tuned(llama, None, *(replace(small, batches=[np.array([e])]) for e in [0]))
    assert {name: t.shape for name, t in result.delta.items()} == {
        name: t.shape for name, t in plain.delta.items()
    }
    own = tuned(llama, clipped(0.2), replace(small, batches=[np.array([2])]))[0].delta
    assert norm_of(own) == pytest.approx(0.2, rel=1e-4)  # the whole norm is for what is trained


# --- noise


def test_the_noise_of_a_step_has_the_deviation_that_was_asked_for(llama) -> None:
    privacy = ExamplePrivacy(norm=0.5, noise=3.0)
    quiet = gradient(llama, clipped(0.5), visit("a", 1, [0, 2], expected=4.0))
    noisy = gradient(llama, privacy, visit("a", 1, [0, 2], expected=4.0))
    drawn = np.concatenate([tensor.ravel() for tensor in noisy.plus(quiet, -1.0).values()])
    expected = 0.5 * 3.0 / 4.0
    assert abs(drawn.std() / expected - 1) < 4 / math.sqrt(2 * len(drawn))
    assert abs(drawn.mean()) < 4 * expected / math.sqrt(len(drawn))
    again = gradient(llama, privacy, visit("a", 1, [0, 2], expected=4.0))
    assert norm_of(again.plus(noisy, -1.0)) > 0  # from the system's entropy, so never twice


def test_an_empty_batch_is_a_step_of_noise_alone(llama) -> None:
    asked: list[tuple[int | str, ...]] = []
    privacy = ExamplePrivacy(norm=0.5, noise=3.0, draws=Counted(asked))
    result = tuned(llama, privacy, visit("a", 1, [], [], expected=2.0))[0]
    values = sum(tensor.size for tensor in result.delta.values())
    assert asked == [("example noise", "a", 0), ("example noise", "a", 1)]
    # the same draws in both steps, of deviation noise * norm / expected
    assert norm_of(result.delta) == pytest.approx(2 * 1.5 / 2.0 * math.sqrt(values), rel=0.1)
    assert (result.report.examples, result.report.tokens, result.report.steps) == (0, 0, 2)


def test_a_client_whose_visit_has_ended_gets_no_noise(llama) -> None:
    asked: list[tuple[int | str, ...]] = []
    privacy = ExamplePrivacy(norm=0.5, noise=1.0, draws=Counted(asked))
    tuned(llama, privacy, visit("a", 1, [0]), visit("b", 2, [0], []))
    assert asked == [("example noise", "a", 0), ("example noise", "b", 0), ("example noise", "b", 1)]


def test_a_gradient_that_is_not_finite_counts_as_nothing(llama, monkeypatch) -> None:
    kept = tune._accumulate

    def spoiling(base, job, rows, *more):
        losses = kept(base, job, rows, *more)
        number = 0
        for row in rows:
            for example in row.examples:
                if example == 2:
                    layer = base.model.get_submodule(base.targets[0].module)
                    layer.rows.b[number] = math.nan
                number += 1
        return losses

    without = gradient(llama, clipped(0.5), visit("a", 1, [0, 5]))
    monkeypatch.setattr(tune, "_accumulate", spoiling)
    close(gradient(llama, clipped(0.5), visit("a", 1, [0, 2, 5])), without)


# --- algorithms, and what is told


def test_only_what_is_trained_is_clipped(llama) -> None:
    (result,) = tuned(llama, clipped(0.2), visit("a", 1, [2]), algorithm=ffa_lora.build(ffa_lora.Config()))
    assert all(".lora_B." in name for name in result.delta)
    assert norm_of(result.delta) == pytest.approx(0.2, rel=1e-4)


def test_a_correction_comes_after_the_noise(llama) -> None:
    """FedProx and SCAFFOLD move along what is public, so they are no part of what is clipped."""
    seen: list[float] = []

    def spy(name, grad, param, sent, memory, step):
        seen.append(float(grad.square().sum()))
        return grad

    spied = replace(fedavg.ALGORITHM, correct=spy)
    tuned(llama, ExamplePrivacy(norm=1e-3, noise=1e3), visit("a", 1, [0]), algorithm=spied)
    assert math.sqrt(sum(seen)) > 0.5 * math.sqrt(sum(math.prod(s) for s in llama.shapes.values()))
    pulled = tuned(
        llama, clipped(0.1), visit("a", 1, [0], [2]), algorithm=fedprox.build(fedprox.Config(mu=0.5))
    )
    assert norm_of(pulled[0].delta) <= 0.2 * (1 + 1e-4)


@pytest.mark.parametrize("algorithm", [scaffold.build(scaffold.Config()), fed_sb.build(fed_sb.Config())])
def test_what_leaves_and_what_is_remembered_is_made_of_the_noisy_steps_alone(
    llama, algorithm: Algorithm
) -> None:
    """Without noise and clipped to nearly nothing, nothing of an example is in either."""
    plain = broadcast(llama)
    sent = replace(plain, extra=plain.adapter.times(0.0))
    (result,) = tuned(llama, clipped(1e-6), visit("a", 1, [2]), algorithm=algorithm, sent=sent)
    assert norm_of(result.delta) <= 1e-5
    for part in (result.memory, result.extra):
        assert all(float(np.abs(tensor).max()) <= 1e-5 for tensor in part.values())


def test_the_tunings_own_clip_is_off(llama) -> None:
    plain = gradient(llama, clipped(0.5), visit("a", 1, [0, 2, 5]))
    close(gradient(llama, clipped(0.5), visit("a", 1, [0, 2, 5]), tuning={"clip_norm": 1e-3}), plain)


def test_no_progress_tells_a_loss(llama) -> None:
    heard: list[tune.Progress] = []
    tuned(llama, clipped(0.5), visit("a", 1, [0, 2]), watch=heard.append)
    assert [progress.loss for progress in heard] == [0.0]


@pytest.mark.parametrize("batch", [[1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("packed", [True, False])
def test_an_example_with_nothing_to_train_is_a_gradient_of_zero_and_no_failure(llama, batch, packed) -> None:
    data = bases.tokens(1, LENGTHS)
    mask = data.loss_mask.copy()
    mask[data.offsets[1] : data.offsets[3]] = False
    less, base = replace(data, loss_mask=mask), replace(llama, proof=replace(llama.proof, unpacked=""))
    base = base if packed else replace(llama, proof=replace(llama.proof, unpacked="a test"))
    found = gradient(base, clipped(0.5), visit("a", 1, batch, data=less))
    close(found, gradient(base, clipped(0.5), visit("a", 1, [n for n in batch if n == 0], data=less)))


# --- what is refused


@pytest.mark.parametrize("norm", [1e-30, 1e-7, 1e10, 1e300])
def test_a_norm_that_float32_cannot_clip_to_is_refused(norm: float) -> None:
    """Squares of gradients of 1e-24 are 0 in float32: they would pass a norm of 1e-30 unclipped."""
    with pytest.raises(SettingsError, match=r"privacy\.examples\.norm is .* between 1e-06 and 1e\+09"):
        clipped(norm)


def test_a_gradient_whose_squares_are_0_in_float32_is_within_the_smallest_norm(llama) -> None:
    sent = broadcast(llama)
    small = replace(sent, adapter=sent.adapter.times(1e-24))
    moved = gradient(llama, clipped(example_privacy.MIN_NORM), visit("a", 1, [0]), sent=small)
    assert 0 < norm_of(moved) < example_privacy.MIN_NORM


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0])
@pytest.mark.parametrize("name", ["norm", "noise"])
def test_a_number_that_protects_nobody_is_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"privacy\.examples\.{name} is "):
        ExamplePrivacy(**{"norm": 1.0, "noise": 1.0, name: value})


def test_an_objective_of_pairs_is_refused(llama) -> None:
    pairs = replace(DEFAULT_TRAINING.objective, group_size=2)
    with pytest.raises(SettingsError, match="protects single examples"):
        tuned(llama, clipped(1.0), visit("a", 1, [0]), training=SGD._replace(objective=pairs))


def test_an_objective_is_asked_for_each_example_by_itself(llama) -> None:
    asked: list[int] = []

    def weights(scored):
        asked.append(len(scored.targets))
        return np.full(len(scored.targets), 1 / max(1, int(scored.targets.sum())))

    objective = replace(DEFAULT_TRAINING.objective, weights=weights)
    tuned(llama, clipped(1.0), visit("a", 1, [0, 2, 5]), training=SGD._replace(objective=objective))
    assert asked == [1, 1, 1]


def test_the_layers_keep_nothing_of_a_pass(llama) -> None:
    tuned(llama, clipped(1.0), visit("a", 1, [0, 2]))
    layer = llama.model.get_submodule(llama.targets[0].module)
    assert layer.rows.a is layer.rows.b is None
    assert torch.is_tensor(layer.a)


def test_stacked_experts_are_refused_by_name(llama) -> None:
    stacked = replace(llama.targets[0], parameter="down_proj", experts=2)
    with pytest.raises(SettingsError, match=r"down_proj of base .* stacks the matrices of experts"):
        example_privacy.require_possible(replace(llama, targets=(stacked,)), SGD.objective)


def test_a_layer_whose_tokens_were_routed_is_refused(llama) -> None:
    """As in an expert of its own: nobody knows which example a token there belongs to."""
    layer = llama.model.get_submodule(llama.targets[0].module)
    examples = [pass_plan.Segment(adapter=n, start=3 * n, stop=3 * n + 3) for n in range(2)]
    segment = pass_plan.Segment(adapter=0, start=0, stop=6)
    plan = pass_plan.packed([3, 3], [segment], torch.device("cpu"), examples=examples)
    with pass_plan.use_plan(plan), pytest.raises(BaseError, match="routes tokens between its layers"):
        layer(torch.zeros(5, llama.targets[0].inputs))
