"""The cohort layer against PEFT: same logits, same gradients, same step, for each architecture."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Broadcast
from shepherd.data.tokens import Tokens
from shepherd.model import files, tune
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from tests.model import bases

LENGTHS = [9, 4, 13, 7]


@pytest.fixture(params=list(bases.CONFIGS), scope="module")
def base(request, tmp_path_factory) -> Base:
    return bases.load(bases.save(bases.CONFIGS[request.param], tmp_path_factory.mktemp(request.param)))


def in_peft(base: Base, adapter: Adapter, folder) -> peft.PeftModel:
    files.write(folder, adapter, base)
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=True).eval()


def padded(data: Tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = int(data.lengths.max())
    ids = torch.zeros(len(data), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i in range(len(data)):
        example, trained = data.example(i)
        n = len(example)
        ids[i, :n] = torch.from_numpy(example.astype(np.int64))
        labels[i, :n] = torch.where(torch.from_numpy(np.array(trained)), ids[i, :n], -100)
        mask[i, :n] = 1
    return ids, labels, mask


def peft_loss(model: peft.PeftModel, data: Tokens) -> torch.Tensor:
    ids, labels, mask = padded(data)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


def peft_gradients(model: peft.PeftModel) -> dict[str, np.ndarray]:
    return {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


def test_logits_and_gradients_equal_pefts(base, tmp_path) -> None:
    adapter, data = bases.random_adapter(base, 1), bases.tokens(0, LENGTHS)
    model = in_peft(base, adapter, tmp_path)
    loss = peft_loss(model, data)
    loss.backward()
    expected = peft_gradients(model)

    caught: dict[str, np.ndarray] = {}
    plain = fedavg.build(fedavg.Config())

    def catch(name, grad, param, broadcast, memory):
        caught[name] = grad[0].numpy().copy()
        return grad

    visit = tune.Visit(client="a", data=data, steps=[np.arange(len(data))])
    tuning = TuningTable(micro_batch_tokens=16)
    broadcast = Broadcast(round=0, adapter=adapter, seed=0)
    (tuned,) = tune.tune(base, broadcast, plain._replace(correct=catch), [visit], tuning, learning_rate=0.01)

    assert tuned.loss == pytest.approx(loss.item(), rel=1e-5)
    assert caught.keys() == expected.keys()
    for name, grad in expected.items():
        np.testing.assert_allclose(caught[name], grad, atol=2e-6 + 1e-4 * np.abs(grad).max(), err_msg=name)


def test_three_steps_equal_pefts_with_torchs_adamw(base, tmp_path) -> None:
    adapter, data = bases.random_adapter(base, 2), bases.tokens(1, LENGTHS)
    steps = [np.array([0, 1]), np.array([2]), np.array([3, 0])]
    tuning = TuningTable(weight_decay=0.1, clip_norm=0.5, betas=(0.8, 0.95))
    visit = tune.Visit(client="a", data=data, steps=steps)
    broadcast = Broadcast(round=0, adapter=adapter, seed=0)
    (tuned,) = tune.tune(base, broadcast, fedavg.build(fedavg.Config()), [visit], tuning, learning_rate=0.01)

    model = in_peft(base, adapter, tmp_path)
    factors = [p for n, p in model.named_parameters() if "lora_" in n]
    optimiser = torch.optim.AdamW(factors, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for step in steps:
        optimiser.zero_grad()
        peft_loss(model, data.take(step)).backward()
        torch.nn.utils.clip_grad_norm_(factors, 0.5)
        optimiser.step()
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
