"""Local optimisers over a stack against PyTorch's own, client by client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from shepherd.config import PartTable
from shepherd.core import Adapter
from shepherd.errors import SettingsError
from shepherd.plugins import built
from shepherd.training import stack
from shepherd.training.local import OPTIMISER
from shepherd.training.optimiser import Optimiser

SHAPES = {"q.lora_A.weight": (2, 5), "q.lora_B.weight": (4, 2), "v.lora_A.weight": (2, 3)}
RATES = [0.1, 0.003, 0.03]
STEPS = 40
Theirs = Callable[[Any, float], torch.optim.Optimizer]


def adamw(betas: tuple[float, float], decay: float) -> Theirs:
    return lambda own, rate: torch.optim.AdamW(own, lr=rate, betas=betas, weight_decay=decay)


def sgd(momentum: float) -> Theirs:
    return lambda own, rate: torch.optim.SGD(own, lr=rate, momentum=momentum)


OPTIMISERS: Mapping[str, tuple[PartTable, Theirs]] = {
    "adamw": (PartTable(name="adamw"), adamw((0.9, 0.999), 0.0)),
    "adamw, decaying": (
        PartTable(name="adamw", betas=[0.7, 0.95], weight_decay=0.2),
        adamw((0.7, 0.95), 0.2),
    ),
    "sgd": (PartTable(name="sgd"), sgd(0.0)),
    "sgd, momentum": (PartTable(name="sgd", momentum=0.9), sgd(0.9)),
}


def optimiser(table: PartTable) -> Optimiser:
    made: Optimiser = built(OPTIMISER, table)
    return made


def adapter() -> Adapter:
    rng = np.random.default_rng(0)
    return Adapter({name: rng.normal(size=shape) for name, shape in SHAPES.items()})


def gradients(seed: int, clients: int) -> list[dict[str, torch.Tensor]]:
    scale = 10.0 ** (seed % 5 - 3)
    generator = torch.Generator().manual_seed(seed)
    return [
        {n: scale * torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in range(clients)
    ]


def run(ours: Optimiser, rates: list[float], steps: int = STEPS) -> list[Adapter]:
    """Each client's adapter after some steps along gradients of its own."""
    starts = [adapter()] * len(rates)
    stacked = stack.build(starts, lambda name: True, torch.device("cpu"))
    state = ours.init(stacked)
    for step in range(steps):
        grads = gradients(step, len(rates))
        for name in stacked.tensors:
            stacked.grad(name).copy_(torch.stack([grad[name] for grad in grads]))
        state = ours.step(stacked, state, step + 1, torch.tensor(rates))
    return stack.trained_adapters(stacked, starts)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_forty_steps_equal_torchs_with_a_rate_a_client(name: str) -> None:
    table, theirs = OPTIMISERS[name]
    found = run(optimiser(table), RATES)
    for k, rate in enumerate(RATES):
        own = {n: torch.tensor(t).requires_grad_() for n, t in adapter().items()}
        reference = theirs(list(own.values()), rate)
        for step in range(STEPS):
            for tensor, parameter in own.items():
                parameter.grad = gradients(step, len(RATES))[k][tensor]
            reference.step()
        for tensor, parameter in own.items():
            expected = parameter.detach().numpy()
            np.testing.assert_allclose(found[k][tensor], expected, rtol=2e-5, atol=2e-6)


def test_sgds_decay_is_apart_from_the_gradient() -> None:
    """Its decay is AdamW's: x (1 - lr decay), whatever the momentum is."""
    plain, decayed = (
        run(optimiser(PartTable(name="sgd", momentum=0.9, weight_decay=decay)), [0.01], steps=1)[0]
        for decay in (0.0, 0.5)
    )
    for name, tensor in adapter().items():
        np.testing.assert_allclose(decayed[name], plain[name] - 0.01 * 0.5 * tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_at_a_rate_of_zero_no_bit_moves_and_the_others_are_as_without_it(name: str) -> None:
    ours = optimiser(OPTIMISERS[name][0])
    still, moved, other = run(ours, [0.0, 0.01, 0.0], steps=3)
    assert still == other == adapter()
    assert moved != adapter()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_one_is_plain_exactly_if_its_change_is_the_sum_of_rate_times_gradient(name: str) -> None:
    ours = optimiser(OPTIMISERS[name][0])
    (found,) = run(ours, [0.01], steps=3)
    summed = [
        np.allclose(
            found[tensor],
            start - 0.01 * sum(gradients(step, 1)[0][tensor].numpy() for step in range(3)),
            rtol=1e-4,
            atol=1e-7,
        )
        for tensor, start in adapter().items()
    ]
    assert ours.plain == all(summed)


def test_a_key_of_another_optimiser_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"the optimiser 'sgd'.*betas"):
        optimiser(PartTable(name="sgd", betas=[0.9, 0.999]))
    with pytest.raises(SettingsError, match=r"no optimiser called 'adam'.*did you mean 'adamw'"):
        optimiser(PartTable(name="adam"))
