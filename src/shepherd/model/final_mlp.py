"""Run the last layer's feed-forward only at the positions whose states are read.

Attention is the only part of a decoder that passes information from one token to another, so the output of
the last feed-forward for a token that predicts nothing is never used. In tuning that is most tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from shepherd.model.pass_plan import active_plan, use_plan


def skip_unread_positions(network: nn.Module) -> None:
    """Have the last layer's `mlp`, if the architecture has one, skip positions whose states are not read."""
    blocks = [
        m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) and hasattr(m[-1], "mlp")
    ]
    if len(blocks) == 1:
        mlp: Any = blocks[0][-1].mlp
        mlp.forward = partial(_forward_read_positions, mlp, mlp.forward)


def _forward_read_positions(
    mlp: Any, forward: Callable[..., Any], hidden: Tensor, *more: Any, **options: Any
) -> Any:
    """(1, N, width) -> (1, N, width), zero at positions that are not read.

    A feed-forward that takes or returns more than the states (Bloom takes the residual, Llama 4 returns its
    router's scores) runs unchanged.
    """
    plan = active_plan()
    if plan is None or plan.read is None or plan.output_positions is None or more or options:
        return forward(hidden, *more, **options)
    with use_plan(plan.read):
        found = forward(hidden.index_select(1, plan.output_positions))
    if not isinstance(found, Tensor):
        mlp.forward = forward  # from now on
        return forward(hidden)
    return found.new_zeros(hidden.shape).index_copy(1, plan.output_positions, found)
