"""The walk through the graph gives the gradients of the autograd engine; it needs no CUDA build."""

from __future__ import annotations

import pytest
import torch

from shepherd.model import lora, pass_plan
from shepherd.model.attention import PACKED
from shepherd.model.base import attention_impl, hidden_states
from shepherd.training.loss import weighted_loss
from tests.gpu_rehearsal.fake_gpu import _walk
from tests.model import bases


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mixtral"])
def test_it_is_the_engines_backward_pass(kind: str, tmp_path) -> None:
    base = bases.load(bases.save({**bases.CONFIGS, **bases.MIXTURES}[kind], tmp_path))
    adapters = lora.stacked([bases.random_adapter(base, seed) for seed in (1, 2)], base.device)
    factors = {name: factor.requires_grad_() for name, factor in adapters.items()}
    lora.bind_adapters(base.model, base.targets, factors)
    segments = [pass_plan.Segment(adapter=k, start=7 * k, stop=7 * k + 7) for k in range(2)]
    plan = pass_plan.packed([4, 3, 7], segments, base.device, parents=[-1, 0, -1])
    positions = torch.from_numpy(pass_plan.positions([4, 3, 7], [-1, 0, -1]))
    with pass_plan.use_plan(plan), attention_impl(base, PACKED):
        states = hidden_states(base, torch.arange(4, 18), positions)
        loss, _ = weighted_loss(base, states, torch.arange(5, 19), torch.rand(14))
        walked = _walk([(loss, torch.ones(()))])
        loss.backward()
    assert {id(leaf) for leaf in walked} == {id(factor) for factor in factors.values()}
    for factor in factors.values():
        torch.testing.assert_close(walked[factor], factor.grad)
