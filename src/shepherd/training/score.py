"""Response loss of adapters on examples, without gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from shepherd.core import Adapter
from shepherd.data.pack import batches, pack
from shepherd.data.tokens import Tokens
from shepherd.io.progress import stage
from shepherd.model import lora, pass_plan
from shepherd.model.base import Base, hidden_states, tuning_attention
from shepherd.training.loss import capped, token_losses
from shepherd.training.packed_batch import PackedBatch, Row, pack_batch, pad_batch, prediction_states


def losses(
    base: Base,
    adapters: Sequence[Adapter],
    data: Tokens,
    *,
    micro_batch: int,
    cap_nats: float = math.inf,
    what: str = "held-out examples",
) -> NDArray[np.float64]:
    """Summed loss of each example's trained tokens, in nats: (adapters, n).

    Args:
        micro_batch: tokens of one forward pass.
        cap_nats: largest loss that one token counts for.
        what: name of the examples in the progress display.

    Raises:
        AdapterError: an adapter does not fit the base.
        DataError: an example has more tokens than the base reads.
    """
    base.require_reads(int(data.lengths.max(initial=0)), "the examples to score")
    for adapter in adapters:
        lora.require_fits(base.targets, adapter, f"an adapter for base {base.name}")
    sums = np.zeros((len(adapters), len(data)))
    stack = lora.stacked(lora.of_one_rank(base.targets, adapters), base.device)
    lora.bind_adapters(base.model, base.targets, stack)
    with (
        torch.no_grad(),
        tuning_attention(base),
        stage(f"scoring {len(data):,} {what}", len(data)) as now,
    ):
        if base.packed:
            for members in pack(data.lengths.tolist(), max(1, micro_batch // len(adapters))):
                rows = [_row(k, data, members) for k in range(len(adapters))]
                batch = pack_batch([data] * len(adapters), rows, base.device, training=False)
                found = _sums(base, batch, len(adapters) * len(members), cap_nats)
                sums[:, members] = found.reshape(len(adapters), -1)
                now.advance(len(members))
        else:
            for members in batches(data.lengths.tolist(), micro_batch):
                for k in range(len(adapters)):
                    batch = pad_batch(data, _row(k, data, members), base.device, training=False)
                    sums[k, members] = _sums(base, batch, len(members), cap_nats)
                now.advance(len(members))
    return sums


def _row(adapter: int, data: Tokens, members: Sequence[int]) -> Row:
    return Row(client=adapter, examples=np.asarray(members), tokens=int(data.lengths[members].sum()))


def _sums(base: Base, batch: PackedBatch, examples: int, cap_nats: float) -> NDArray[np.float64]:
    """Each example's summed loss, (examples,)."""
    with pass_plan.use_plan(batch.plan):
        states = hidden_states(base, batch.ids, batch.positions).index_select(0, batch.output_positions)
        hidden = prediction_states(states, batch)
        every = capped(token_losses(base, hidden, batch.targets), cap_nats)
    sums = np.bincount(batch.examples, weights=every.double().cpu().numpy(), minlength=examples)
    return sums.astype(np.float64, copy=False)
