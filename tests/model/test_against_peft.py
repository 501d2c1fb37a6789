"""The cohort layer against PEFT: same logits, same gradients, same step, for each architecture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.data.shared_prefix import MIN_PREFIX_TOKENS
from shepherd.model import files
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING
from shepherd.training.optimisers import adamw
from tests.model import bases
from tests.model.in_peft import in_peft, peft_gradients, peft_loss

LENGTHS = [9, 4, 13, 7]


@pytest.fixture(params=[*bases.CONFIGS, "mixtral", "qwen3_moe", "olmoe"], scope="module")
def base(request, tmp_path_factory) -> Base:
    config = {**bases.CONFIGS, **bases.MIXTURES}[request.param]
    stacks = bases.STACKS if request.param in bases.MIXTURES else ()
    return bases.load(bases.save(config, tmp_path_factory.mktemp(request.param)), target_parameters=stacks)


@pytest.mark.parametrize("prefix", [0, MIN_PREFIX_TOKENS + 3])
def test_logits_and_gradients_equal_pefts(base, tmp_path, prefix) -> None:
    adapter, data = bases.random_adapter(base, 1), bases.beginning_alike(bases.tokens(0, LENGTHS), prefix)
    model = in_peft(base, adapter, tmp_path)
    loss = peft_loss(model, data)
    loss.backward()
    expected = peft_gradients(model)

    caught: dict[str, np.ndarray] = {}
    plain = fedavg.build(fedavg.Config())

    def catch(name, grad, param, broadcast, memory, step):
        caught[name] = grad[0].numpy().copy()
        return grad

    visit = tune.Visit(client="a", data=data, batches=[np.arange(len(data))])
    broadcast = Broadcast(round=0, adapter=adapter, seed=0)
    (tuned,) = bases.tuned(
        base,
        broadcast,
        replace(plain, correct=catch),
        [visit],
        TuningTable(),
        learning_rate=0.01,
        micro_batch_tokens=3 * prefix + 16,
    )

    assert tuned.report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert caught.keys() == expected.keys()
    for name, grad in expected.items():
        np.testing.assert_allclose(caught[name], grad, atol=2e-6 + 1e-4 * np.abs(grad).max(), err_msg=name)


def test_three_steps_equal_pefts_with_torchs_adamw(base, tmp_path) -> None:
    adapter, data = bases.random_adapter(base, 2), bases.tokens(1, LENGTHS)
    steps = [np.array([0, 1]), np.array([2]), np.array([3, 0])]
    tuning = TuningTable(clip_norm=0.5)
    visit = tune.Visit(client="a", data=data, batches=steps)
    broadcast = Broadcast(round=0, adapter=adapter, seed=0)
    optimiser = adamw.build(adamw.Config(betas=(0.8, 0.95), weight_decay=0.1))
    (tuned,) = bases.tuned(
        base,
        broadcast,
        fedavg.ALGORITHM,
        [visit],
        tuning,
        learning_rate=0.01,
        training=DEFAULT_TRAINING._replace(optimiser=optimiser),
    )

    model = in_peft(base, adapter, tmp_path)
    factors = [p for n, p in model.named_parameters() if "lora_" in n]
    reference = torch.optim.AdamW(factors, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for step in steps:
        reference.zero_grad()
        peft_loss(model, data.take(step)).backward()
        torch.nn.utils.clip_grad_norm_(factors, 0.5)
        reference.step()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            name = name.replace(".default", "")
            moved = parameter.detach().numpy() - adapter[name]
            np.testing.assert_allclose(tuned.delta[name], moved, atol=2e-4, err_msg=name)


def test_written_folder_reads_back_to_the_bit_and_gives_the_same_logits(base, tmp_path) -> None:
    adapter = bases.random_adapter(base, 3)
    model = in_peft(base, adapter, tmp_path)
    assert files.read(tmp_path, base) == adapter
    rewritten = tmp_path / "again"
    model.save_pretrained(rewritten)  # PEFT's own writing
    assert files.read(rewritten, base) == adapter
