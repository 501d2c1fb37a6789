"""Response loss of adapters on examples, and of each of their tokens, without gradients."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.core import Adapter
from shepherd.data.pack import batches, pack
from shepherd.data.tokens import Tokens
from shepherd.io.progress import stage
from shepherd.model import lora, pass_plan
from shepherd.model.base import Base, hidden_states, tuning_attention
from shepherd.model.transfer import to_device
from shepherd.training.loss import capped, token_hits, token_losses, token_statistics
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
    sums = np.zeros((len(adapters), len(data)))
    with closing(_passes(base, adapters, data, micro_batch, what)) as passes:
        for rows, members, batch, hidden in passes:
            every = capped(token_losses(base, hidden, batch.targets), cap_nats).double().cpu().numpy()
            found = np.bincount(batch.examples, weights=every, minlength=len(rows) * len(members))
            sums[np.ix_(rows, members)] = found.reshape(len(rows), -1)
    return sums


def continuations(
    base: Base,
    adapters: Sequence[Adapter],
    data: Tokens,
    *,
    micro_batch: int,
    what: str = "continuations",
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-likelihood of each example's trained tokens, in nats, and whether greedy search would write them.

    Returns:
        Two arrays of (adapters, n); other arguments and errors as for `losses`.
    """
    logs = np.zeros((len(adapters), len(data)))
    greedy = np.zeros((len(adapters), len(data)), dtype=np.bool_)
    with closing(_passes(base, adapters, data, micro_batch, what)) as passes:
        for rows, members, batch, hidden in passes:
            count = len(rows) * len(members)
            losses, hits = (each.cpu().numpy() for each in token_hits(base, hidden, batch.targets))
            summed = np.bincount(batch.examples, weights=losses, minlength=count)
            missed = np.bincount(batch.examples, weights=~hits, minlength=count)
            logs[np.ix_(rows, members)] = -summed.reshape(len(rows), -1)
            greedy[np.ix_(rows, members)] = missed.reshape(len(rows), -1) == 0
    return logs, greedy


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """How a model predicts each trained token of some examples, for K adapters and M tokens in all."""

    logs: NDArray[np.float64]
    """Log-probability of each token in nats, (K, M)."""
    means: NDArray[np.float64]
    """Mean log-probability of a token drawn as the model predicts it there, (K, M)."""
    deviations: NDArray[np.float64]
    """Standard deviation of the same, (K, M)."""
    offsets: NDArray[np.int64]
    """Tokens of example i are those from offsets[i] to offsets[i + 1], (n + 1,)."""


def token_scores(
    base: Base,
    adapters: Sequence[Adapter],
    data: Tokens,
    *,
    micro_batch: int,
    what: str = "examples",
) -> TokenScores:
    """Score each trained token by itself; arguments and errors as for `losses`."""
    counts = [int(data.example(index)[1][1:].sum()) for index in range(len(data))]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    found = np.zeros((3, len(adapters), int(offsets[-1])))
    with closing(_passes(base, adapters, data, micro_batch, what)) as passes:
        for rows, members, batch, hidden in passes:
            each = token_statistics(base, hidden, batch.targets).double().cpu().numpy()  # (3, M)
            places = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in members])
            found[:, np.asarray(rows)[:, None], places] = each.reshape(3, len(rows), -1)
    return TokenScores(logs=found[0], means=found[1], deviations=found[2], offsets=offsets)


def _passes(
    base: Base, adapters: Sequence[Adapter], data: Tokens, micro_batch: int, what: str
) -> Generator[tuple[Sequence[int], Sequence[int], PackedBatch, Tensor]]:
    """Adapters and examples of each pass, its batch, and the states that predict its trained tokens."""
    base.require_reads(int(data.lengths.max(initial=0)), "the examples to score")
    for adapter in adapters:
        lora.require_fits(base.targets, adapter, f"an adapter for base {base.name}")
    stack = lora.stacked(lora.of_one_rank(base.targets, adapters), base.device)
    lora.bind_adapters(base.model, base.targets, stack)
    every = range(len(adapters))
    with (
        torch.no_grad(),
        tuning_attention(base),
        stage(f"scoring {len(data):,} {what}", len(data)) as now,
    ):
        if base.packed:
            for members in pack(data.lengths.tolist(), max(1, micro_batch // len(adapters))):
                rows = [_row(k, data, members) for k in every]
                packed = pack_batch([data] * len(adapters), rows, base.device, training=False)
                batch = to_device(packed, base.device)
                with pass_plan.use_plan(batch.plan):
                    yield every, members, batch, _states(base, batch)
                now.advance(len(members))
        else:
            for members in batches(data.lengths.tolist(), micro_batch):
                for k in every:
                    padded = pad_batch(data, _row(k, data, members), training=False)
                    batch = to_device(padded, base.device)
                    with pass_plan.use_plan(batch.plan):
                        yield [k], members, batch, _states(base, batch)
                now.advance(len(members))


def _row(adapter: int, data: Tokens, members: Sequence[int]) -> Row:
    return Row(client=adapter, examples=np.asarray(members), tokens=int(data.lengths[members].sum()))


def _states(base: Base, batch: PackedBatch) -> Tensor:
    """The state that predicts each trained token, (M, width)."""
    states = hidden_states(base, batch.ids, batch.positions).index_select(0, batch.output_positions)
    return prediction_states(states, batch)
