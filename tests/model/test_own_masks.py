"""Packed attention against the block-diagonal masks that transformers makes from position ids by itself.

transformers detects resets in `position_ids` where there is neither a mask nor a cache. That is the same
attention for whole examples, and a reference of its own. It knows no shared prefix, and its mask is as wide
as the pass, so it replaces nothing here (decision 63).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shepherd.model import lora, pass_plan
from shepherd.model.attention import PACKED
from shepherd.model.base import Base, attention_impl, hidden_states
from tests.model import bases

LENGTHS = [7, 12, 3, 9]
KINDS = {**bases.CONFIGS, **bases.MIXTURES}


def states(base: Base, how: str, parents: list[int] | None = None) -> Tensor:
    size = sum(LENGTHS)
    adapters = lora.stacked([bases.random_adapter(base, seed) for seed in (1, 2)], base.device)
    lora.bind_adapters(base.model, base.targets, adapters)
    border = sum(LENGTHS[:2])
    segments = [
        pass_plan.Segment(adapter=0, start=0, stop=border),
        pass_plan.Segment(adapter=1, start=border, stop=size),
    ]
    plan = pass_plan.packed(LENGTHS, segments, base.device, parents=parents)
    positions = torch.from_numpy(pass_plan.positions(LENGTHS, parents))
    ids = torch.arange(size) % (bases.VOCABULARY - 4) + 4
    with torch.no_grad(), pass_plan.use_plan(plan), attention_impl(base, how):
        return hidden_states(base, ids, positions)


@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, "eager") for kind in KINDS if kind != "gpt_oss"), ("llama", "sdpa"), ("mistral", "sdpa")],
)
def test_whole_examples_are_attended_to_alike(kind: str, how: str, tmp_path) -> None:
    base = bases.load(bases.save(KINDS[kind], tmp_path))
    torch.testing.assert_close(states(base, PACKED), states(base, how), rtol=1e-4, atol=1e-4)


def test_where_an_architecture_gives_its_mask_no_positions_examples_see_each_other(tmp_path) -> None:
    base = bases.load(bases.save(KINDS["gpt_oss"], tmp_path))
    first = LENGTHS[0]
    ours, theirs = states(base, PACKED), states(base, "eager")
    torch.testing.assert_close(ours[:first], theirs[:first], rtol=1e-4, atol=1e-4)
    assert ((ours[first:] - theirs[first:]).abs().amax(1) > 1e-2).all()


def test_a_shared_prefix_is_not_what_transformers_makes_of_the_positions(llama: Base) -> None:
    after = [-1, 0, 0, -1]
    assert not torch.allclose(states(llama, PACKED, after), states(llama, "sdpa", after), atol=1e-2)
