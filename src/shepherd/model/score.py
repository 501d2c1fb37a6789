"""Response loss of adapters on examples, in packed passes without a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from shepherd.core import Adapter, require_shapes, shapes_of
from shepherd.data.pack import pack
from shepherd.data.tokens import Tokens
from shepherd.model import layout, lora
from shepherd.model.attention import PACKED
from shepherd.model.base import Base, attending, hidden_states
from shepherd.model.line import Row, line_of
from shepherd.model.loss import token_losses
from shepherd.progress import stage


def losses(base: Base, adapters: Sequence[Adapter], data: Tokens, *, micro_batch: int) -> NDArray[np.float64]:
    """Each example's summed loss over its trained tokens, in nats: (adapters, n).

    Raises:
        AdapterError: an adapter does not fit the base.
    """
    for adapter in adapters:
        require_shapes(base.shapes, shapes_of(adapter), f"an adapter for base {base.name}")
    sums = np.zeros((len(adapters), len(data)))
    lora.hang(base.model, base.sites, lora.stacked(adapters, base.device))
    with (
        torch.no_grad(),
        attending(base, PACKED),
        stage(f"scoring {len(data):,} held-out examples", len(data)) as now,
    ):
        for members in pack(data.lengths.tolist(), max(1, micro_batch // len(adapters))):
            sums[:, members] = _row_losses(base, len(adapters), data, np.asarray(members))
            now.advance(len(members))
    return sums


def _row_losses(base: Base, adapters: int, data: Tokens, members: NDArray[np.int64]) -> NDArray[np.float64]:
    tokens = int(data.lengths[members].sum())
    rows = [Row(client=k, examples=members, tokens=tokens) for k in range(adapters)]
    line = line_of([data] * adapters, rows, base.device, training=False)
    with layout.running(line.layout):
        hidden = hidden_states(base, line.ids, line.positions).index_select(0, line.places)
        every = token_losses(base, hidden, line.targets)
    size = adapters * len(members)
    sums = np.bincount(line.examples, weights=every.double().cpu().numpy(), minlength=size)
    return sums.reshape(adapters, len(members)).astype(np.float64, copy=False)
