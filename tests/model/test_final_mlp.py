"""The last feed-forward sees the places that are read, and no pass notices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shepherd.model import final_mlp, lora, pass_plan
from shepherd.model.attention import PACKED
from shepherd.model.base import Base, attention_impl, hidden_states
from tests.model import bases

READ = torch.tensor([2, 5, 6, 11])


def states(base: Base, read: torch.Tensor | None) -> torch.Tensor:
    """States of a packed batch of two clients' examples, 5 and 7 tokens long."""
    lora.bind_adapters(
        base.model, base.targets, lora.stacked([bases.random_adapter(base, k) for k in (1, 2)], base.device)
    )
    segments = [pass_plan.Segment(adapter=k, start=5 * k, stop=5 + 7 * k) for k in range(2)]
    plan = pass_plan.packed([5, 7], segments, base.device, output_positions=read)
    positions = torch.from_numpy(pass_plan.positions([5, 7]))
    with torch.no_grad(), pass_plan.use_plan(plan), attention_impl(base, PACKED):
        return hidden_states(base, torch.arange(4, 16), positions)


@pytest.mark.parametrize("name", bases.CONFIGS)
def test_what_is_read_is_the_same_and_the_rest_is_left_out(name, tmp_path) -> None:
    base = bases.load(bases.save(bases.CONFIGS[name], tmp_path))
    whole, some = states(base, None), states(base, READ)
    torch.testing.assert_close(some[READ], whole[READ], rtol=1e-5, atol=1e-5)
    others = np.setdiff1d(np.arange(12), READ)
    assert ((some[others] - whole[others]).abs().amax(1) > 1e-3).all()


def test_segments_are_narrowed_to_the_places_that_are_read() -> None:
    segments = [pass_plan.Segment(adapter=k, start=5 * k, stop=5 * k + 5, dropout_seed=k) for k in range(3)]
    read = torch.tensor([2, 4, 11])
    plan = pass_plan.packed([15], segments, READ.device, output_positions=read, training=True).read
    assert plan is not None
    assert [(s.adapter, s.start, s.stop, s.dropout_seed) for s in plan.segments] == [
        (0, 0, 2, 0),
        (1, 2, 2, 1),
        (2, 2, 3, 2),
    ]
    assert (plan.size, plan.training, plan.output_positions) == (3, True, None)


def test_a_feed_forward_that_looks_at_other_tokens_is_noticed(tmp_path, monkeypatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    honest = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: honest(self, x + x.cumsum(-2)))
    base = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path))
    assert "its examples get different states packed" in base.proof.unpacked


class Gated(torch.nn.Module):
    """A feed-forward that gives its router's scores as well."""

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * hidden, hidden.sum(-1)


class Residual(torch.nn.Module):
    """One that takes what it is added to."""

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return hidden + residual


def test_a_feed_forward_of_another_form_runs_as_it_is() -> None:
    hidden = torch.randn(1, 12, 4)
    plan = pass_plan.packed(
        [12], [pass_plan.Segment(adapter=0, start=0, stop=12)], READ.device, output_positions=READ
    )
    for mlp, given in ((Gated(), (hidden,)), (Residual(), (hidden, hidden))):
        expected = mlp(*given)
        layer = torch.nn.Module()
        layer.mlp = mlp
        final_mlp.skip_unread_positions(torch.nn.ModuleList([layer]))
        with pass_plan.use_plan(plan):
            for _ in range(2):
                torch.testing.assert_close(mlp(*given), expected)
