"""K adapters side by side: views, clipping against PyTorch's, and rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from shepherd.core import Adapter
from shepherd.settings import TuningTable
from shepherd.training import stack
from shepherd.training.optimisers import adamw

CPU = torch.device("cpu")
SHAPES = {"q.lora_A.weight": (2, 5), "q.lora_B.weight": (4, 2), "v.lora_A.weight": (2, 3)}
K = 3


def adapter(seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    return Adapter({name: rng.normal(size=shape) for name, shape in SHAPES.items()})


ADAPTER = adapter()


def built(trainable=lambda name: True) -> stack.Stack:
    return stack.build([ADAPTER] * K, trainable, CPU)


def gradients(seed: int, scale: float = 1.0) -> list[dict[str, Tensor]]:
    """One a client."""
    generator = torch.Generator().manual_seed(seed)
    return [{n: scale * torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in range(K)]


def put(stacked: stack.Stack, grads: list[dict[str, Tensor]]) -> None:
    for name in stacked.tensors:
        stacked.grad(name).copy_(torch.stack([grad[name] for grad in grads]))


def test_a_stack_is_copies_of_one_adapter_and_its_rows_are_the_clients() -> None:
    stacked, first = built(), adapter()
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in stacked.tensors.values())
    for row in stack.trained_adapters(stacked, [ADAPTER] * K):
        assert Adapter(row) == first
    stacked.tensors["q.lora_A.weight"].detach()[1] += 1
    rows = [Adapter(row) for row in stack.trained_adapters(stacked, [ADAPTER] * K)]
    assert rows[0] == rows[2] == first
    assert rows[1] != first


def test_blocks_and_gradients_are_views_of_the_flat_buffers() -> None:
    stacked = built()
    for (name, tensor), values in zip(stacked.tensors.items(), stacked.blocks(stacked.values), strict=True):
        assert values.shape == tensor.shape == (K, *SHAPES[name])
        assert values.data_ptr() == tensor.data_ptr()
    sum((k + 1) * tensor.sum() for k, tensor in enumerate(stacked.tensors.values())).backward()
    for k, grad in enumerate(stacked.blocks(stacked.grads)):
        assert (grad == k + 1).all()


def test_what_is_not_trained_is_held_once_and_has_no_gradient() -> None:
    stacked = built(lambda name: "lora_B" in name)
    assert list(stacked.tensors) == ["q.lora_B.weight"]
    assert stacked.values.numel() == K * 8
    assert set(stacked.all) == set(SHAPES)
    for name, frozen in stacked.frozen.items():
        assert not frozen.requires_grad
        assert frozen.untyped_storage().nbytes() == 4 * math.prod(SHAPES[name])
        assert frozen.shape == (K, *SHAPES[name])


@pytest.mark.parametrize("norm", [0.01, 1.0, 1e6])
def test_clipping_equals_torchs_for_each_client(norm: float) -> None:
    stacked = built()
    grads = [{n: g * 10.0**k for n, g in grad.items()} for k, grad in enumerate(gradients(0))]
    put(stacked, grads)
    norms = stack.clip(stacked, norm)
    for k, grad in enumerate(grads):
        own = [torch.zeros(SHAPES[name]).requires_grad_() for name in SHAPES]
        for parameter, name in zip(own, SHAPES, strict=True):
            parameter.grad = grad[name].clone()
        before = torch.nn.utils.clip_grad_norm_(own, norm)
        assert norms[k].item() == pytest.approx(before.item(), rel=1e-6)
        for parameter, name in zip(own, SHAPES, strict=True):
            torch.testing.assert_close(stacked.grad(name)[k], parameter.grad)


def test_without_a_norm_nothing_is_clipped_and_the_norms_are_told() -> None:
    stacked, grads = built(), gradients(0, scale=100.0)
    put(stacked, grads)
    norms = stack.clip(stacked, None)
    for k, grad in enumerate(grads):
        assert norms[k].item() == pytest.approx(torch.cat([g.flatten() for g in grad.values()]).norm().item())
        assert all(stacked.grad(name)[k].equal(grad[name]) for name in SHAPES)


def test_a_gradient_that_is_not_finite_stays_with_its_client() -> None:
    stacked, grads = built(), gradients(0)
    grads[1]["q.lora_B.weight"][0, 0] = math.inf
    put(stacked, grads)
    stack.clip(stacked, 1.0)
    optimiser = adamw.build(adamw.Config())
    optimiser.step(stacked, optimiser.init(stacked), 1, torch.full((K,), 0.01))
    rows = stack.trained_adapters(stacked, [ADAPTER] * K)
    assert np.isnan(rows[1]["q.lora_B.weight"]).any()
    for name in SHAPES:
        assert np.isfinite(rows[0][name]).all()
        assert np.isfinite(rows[2][name]).all()


def test_a_gradient_whose_norm_overflows_is_no_zero() -> None:
    stacked, grads = built(), gradients(0)
    grads[1]["q.lora_B.weight"].fill_(1e30)  # finite, and its square is not
    put(stacked, grads)
    stack.clip(stacked, 1.0)
    assert stacked.grad("v.lora_A.weight")[1].isnan().all()
    assert all(stacked.grad(name)[k].isfinite().all() for name in SHAPES for k in (0, 2))


def shares(steps: int, **table: object) -> list[float]:
    tuning = TuningTable.model_validate(table)
    return [stack.rate(tuning, step, steps) for step in range(steps + 1)]


def test_schedules_within_a_visit_by_hand() -> None:
    assert shares(3) == [1, 1, 1, 0]  # after its end a visit does not move
    assert shares(4, schedule="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert shares(4, schedule="linear", final_share=0.2) == pytest.approx([1, 0.8, 0.6, 0.4, 0])
    half = math.sqrt(0.5) / 2
    assert shares(4, schedule="cosine") == pytest.approx([1, 0.5 + half, 0.5, 0.5 - half, 0])
    assert shares(2, schedule="cosine", final_share=0.5) == pytest.approx([1, 0.75, 0])
    assert shares(5, warmup_steps=3) == [0.25, 0.5, 0.75, 1, 1, 0]
    assert shares(4, warmup_steps=2, schedule="linear") == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0])
    assert shares(2, warmup_steps=5) == pytest.approx([1 / 6, 2 / 6, 0])  # shorter than its warm-up


def test_schedules_over_the_rounds_by_hand() -> None:
    def rates(**table: object) -> list[float]:
        tuning = TuningTable.model_validate({"learning_rate": 0.1, **table})
        return [stack.round_rate(tuning, round, 4) for round in range(4)]

    assert rates() == [0.1] * 4
    assert rates(schedule="linear") == [0.1] * 4  # that one is within the visit
    assert rates(round_schedule="linear") == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert rates(round_schedule="cosine", final_share=1.0) == pytest.approx([0.1] * 4)
    assert rates(round_schedule="cosine")[2] == pytest.approx(0.05)
