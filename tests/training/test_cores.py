"""B trained as Q R inside a visit, against AdamW on R with gradients of B from visits of one plain step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.model import bases as models
from tests.training.test_tune import RATE, visit

from shepherd.algorithms import fed_sb, ffa_lora
from shepherd.core import Adapter, Broadcast
from shepherd.core.cores import bases_of
from shepherd.settings import TuningTable
from shepherd.training.local import local_training

FED_SB, FFA = fed_sb.build(fed_sb.Config()), ffa_lora.build(ffa_lora.Config())
STEPS, DECAY = 3, 0.1


def tuned(base, algorithm, adapter, *visits, round=1, optimiser=None, **table) -> list[Adapter]:
    table = {"schedule": "constant", "clip_norm": 0.0, "optimiser": optimiser or {"name": "adamw"}, **table}
    settings = TuningTable.model_validate(table)
    sent = Broadcast(round=round, adapter=adapter, seed=0)
    results = models.tuned(
        base, sent, algorithm, visits, settings, learning_rate=RATE, training=local_training(settings)
    )
    return [result.delta for result in results]


def gradient(base, adapter, one, step) -> Adapter:
    """The gradient of every B at an adapter, from one plain step of one client."""
    alone = replace(one, batches=[one.batches[step]])
    (delta,) = tuned(base, FFA, adapter, alone, optimiser={"name": "sgd"})
    return delta.times(-1 / RATE)


def test_adamw_steps_on_the_core_and_its_change_alone_is_sent(llama) -> None:
    adapter = models.random_adapter(llama, 5)
    one = visit("a", 1, steps=STEPS)
    optimiser = {"name": "adamw", "weight_decay": DECAY}
    (sent,) = tuned(llama, FED_SB, adapter, one, optimiser=optimiser)
    bases = bases_of(FED_SB, adapter, 1)
    assert set(sent) == set(bases) == {name for name in adapter if "lora_B" in name}
    first = {name: q.T @ adapter[name] for name, q in bases.items()}
    cores = {name: torch.nn.Parameter(torch.tensor(core)) for name, core in first.items()}
    theirs = torch.optim.AdamW(cores.values(), lr=RATE, weight_decay=DECAY)
    now = adapter
    for step in range(STEPS):
        for name, grad in gradient(llama, now, one, step).items():
            cores[name].grad = torch.tensor(bases[name].T @ grad)
        theirs.step()
        moved = {n: bases[n] @ (core.detach().numpy() - first[n]) for n, core in cores.items()}
        now = Adapter({n: adapter[n] + moved[n] if n in moved else t for n, t in adapter.items()})
    for name, delta in sent.items():
        rank = adapter[name].shape[1]
        assert delta.shape == (rank, rank)
        due = cores[name].detach().numpy() - first[name]
        np.testing.assert_allclose(delta, due, atol=2e-2 * RATE, err_msg=name)
        assert np.abs(due).max() > 0.5 * RATE


def test_the_gradient_is_clipped_as_that_of_the_cores(llama) -> None:
    adapter, one = models.random_adapter(llama, 5), visit("a", 1, steps=1)
    (free,) = tuned(llama, FED_SB, adapter, one, optimiser={"name": "sgd"})
    norm = 0.5 * free.norm() / RATE
    (short,) = tuned(llama, FED_SB, adapter, one, optimiser={"name": "sgd"}, clip_norm=norm)
    assert short.norm() == pytest.approx(0.5 * free.norm(), rel=1e-3)


def test_clients_in_one_pass_train_the_cores_that_they_train_alone(llama) -> None:
    adapter = models.random_adapter(llama, 5)
    a, b = visit("a", 1), visit("b", 2)
    together = tuned(llama, FED_SB, adapter, a, b)
    for delta, one in zip(together, (a, b), strict=True):
        (alone,) = tuned(llama, FED_SB, adapter, one)
        for name in alone:
            np.testing.assert_allclose(delta[name], alone[name], atol=2e-2 * RATE)


def test_in_the_first_rounds_whole_factors_are_trained(llama) -> None:
    adapter = models.random_adapter(llama, 5)
    (sent,) = tuned(llama, FED_SB, adapter, visit("a", 1), round=0)
    assert {name: tensor.shape for name, tensor in sent.items()} == {
        name: tensor.shape for name, tensor in adapter.items()
    }
