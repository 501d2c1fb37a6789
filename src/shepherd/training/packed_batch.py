"""Rows of examples as the tensors of one pass: packed, or padded for a base that cannot run packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.core import seed_for
from shepherd.data import shared_prefix
from shepherd.data.tokens import Tokens
from shepherd.model import pass_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Whole examples of one client for one pass; `client` is its index in the stack."""

    client: int
    examples: NDArray[np.int64]
    tokens: int
    """Tokens of all examples, each counted whole."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One pass as tensors: N tokens, and M predictions of trained tokens at U different positions."""

    ids: Tensor  # (N,) packed; (n, width) padded
    positions: Tensor | None  # (N,) of tokens in their examples; None if padded: the model counts them
    output_positions: Tensor  # (U,) whose states are read, ascending, in the flattened ids
    output_index: Tensor  # (M,) the output position of each prediction; two predictions may share one
    occurrences: tuple[Tensor, ...]  # predictions that are the first, second, ... at their output position
    targets: Tensor  # (M,) the trained tokens that are predicted
    examples: NDArray[np.int64]  # (M,) the example of each, counted through the rows
    counts: tuple[int, ...]  # predictions of each row; they are in the order of the rows
    plan: pass_plan.PassPlan


def pack_batch(
    data: Sequence[Tokens],
    rows: Sequence[Row],
    device: torch.device,
    *,
    training: bool,
    share: bool = True,
    apart: bool = False,
) -> PackedBatch:
    """Pack rows end to end, on the processor; `data[k]` holds the examples of the rows of client k.

    `model.transfer.to_device` takes it to `device`, whose kernels the plan is for.

    With `share`, a prefix that examples of a row have in common is packed once. A token's states depend only
    on the tokens before it, so this changes nothing but rounding; with dropout, which must treat each
    example's tokens separately, it must be off.

    With `apart`, the plan names each example, so that its gradients are kept apart; no prefix is shared then,
    since its gradients would belong to several examples.
    """
    share = share and not apart
    spans: list[NDArray[Any]] = []
    parents, segments, spots, targets = [], [], [], []
    start = 0
    for row in rows:
        examples = [data[row.client].example(int(i)) for i in row.examples]
        own, own_parents, places = _spans([ids for ids, _ in examples], share)
        parents += [-1 if parent < 0 else len(spans) + parent for parent in own_parents]
        spans += own
        for (ids, trained), example_places in zip(examples, places, strict=True):
            predicting = np.flatnonzero(trained[1:])  # a token predicts the next one of its own example
            spots.append(start + example_places[predicting])
            targets.append(ids[predicting + 1])
        stop = start + sum(map(len, own))
        segments.append(pass_plan.Segment(adapter=row.client, start=start, stop=stop, dropout_seed=row.seed))
        start = stop
    read, index = np.unique(np.concatenate(spots), return_inverse=True)
    output_positions = _tensor(read)
    lengths, counts = [len(ids) for ids in spans], [len(found) for found in spots]
    ends = np.cumsum([0, *lengths]).tolist()
    row_of_example = np.repeat(np.arange(len(rows)), [len(row.examples) for row in rows])
    return PackedBatch(
        ids=_tensor(np.concatenate(spans)),
        positions=_tensor(pass_plan.positions(lengths, parents)),
        output_positions=output_positions,
        output_index=_tensor(index),
        occurrences=_occurrences(index),
        targets=_tensor(np.concatenate(targets)),
        examples=np.repeat(np.arange(len(counts)), counts),
        counts=tuple(np.bincount(row_of_example, weights=counts, minlength=len(rows)).astype(int).tolist()),
        plan=pass_plan.packed(
            lengths,
            segments,
            pass_plan.CPU,
            parents=parents,
            output_positions=output_positions,
            training=training,
            examples=_by_example(rows, ends, spans) if apart else (),
            cuda=device.type == "cuda",
        ),
    )


def pad_batch(data: Tokens, row: Row, *, training: bool, apart: bool = False) -> PackedBatch:
    """Pad the examples of one row on the right, on the processor, for a base that cannot run packed.

    The padding is never seen: it comes after every token of its example.
    """
    examples = [data.example(int(i)) for i in row.examples]
    texts = [ids for ids, _ in examples]
    width = max(map(len, texts))
    ids = np.stack([np.pad(ids, (0, width - len(ids)), mode="edge") for ids, _ in examples])
    predicting = [np.flatnonzero(trained[1:]) for _, trained in examples]
    counts = [len(found) for found in predicting]
    targets = [own[found + 1] for (own, _), found in zip(examples, predicting, strict=True)]
    read = np.concatenate([n * width + found for n, found in enumerate(predicting)])
    index = np.arange(len(read))
    return PackedBatch(
        ids=_tensor(ids),
        positions=None,
        output_positions=_tensor(read),
        output_index=_tensor(index),
        occurrences=_occurrences(index),
        targets=_tensor(np.concatenate(targets)),
        examples=np.repeat(np.arange(len(counts)), counts),
        counts=(sum(counts),),
        plan=pass_plan.padded(
            len(ids),
            width,
            row.client,
            dropout_seed=row.seed,
            training=training,
            examples=_by_example([row], range(0, len(ids) * width + 1, width), texts) if apart else (),
        ),
    )


def _by_example(
    rows: Sequence[Row], ends: Sequence[int], texts: Sequence[NDArray[Any]]
) -> list[pass_plan.Segment]:
    """A segment for each example. Its seed depends on its tokens, and neither on its place in the row nor on
    its number, which is another in a worker process that is sent fewer examples."""
    seeds = [row.seed for row in rows for _ in row.examples]
    seeds = [seed_for(seed, crc32(text.tobytes())) for seed, text in zip(seeds, texts, strict=True)]
    return [
        pass_plan.Segment(adapter=number, start=start, stop=stop, dropout_seed=seed)
        for number, (seed, (start, stop)) in enumerate(zip(seeds, pairwise(ends), strict=True))
    ]


def _spans(
    examples: Sequence[NDArray[Any]], share: bool
) -> tuple[list[NDArray[Any]], list[int], list[NDArray[np.int64]]]:
    """The ids of each span, the parent of each or -1, and the places of each example's tokens in the row."""
    alone = [shared_prefix.PrefixGroup(tokens=0, members=tuple(range(len(examples))))]
    spans: list[NDArray[Any]] = []
    parents: list[int] = []
    places = [np.zeros(0, np.int64)] * len(examples)
    size = 0
    for group in shared_prefix.group_by_prefix(examples) if share else alone:
        prefix, parent = np.arange(size, size + group.tokens), -1
        if group.tokens:
            parent = len(spans)
            spans.append(examples[group.members[0]][: group.tokens])
            parents.append(-1)
            size += group.tokens
        for i in group.members:
            own = examples[i][group.tokens :]
            spans.append(own)
            parents.append(parent)
            places[i] = np.concatenate([prefix, np.arange(size, size + len(own))])
            size += len(own)
    return spans, parents, places


def _occurrences(index: NDArray[Any]) -> tuple[Tensor, ...]:
    """Which entries of `index` are the first with their value, which the second, and so on."""
    order = np.argsort(index, kind="stable")
    times = np.bincount(index)
    occurrence = np.empty(len(index), np.int64)
    occurrence[order] = np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)
    return tuple(_tensor(np.flatnonzero(occurrence == each)) for each in range(int(times.max(initial=0))))


def prediction_states(states: Tensor, batch: PackedBatch) -> Tensor:
    """The state of each prediction, (M, width), from those at the output positions, (U, width).

    Where several predictions share a position, as in a prefix that is trained, their gradients are added in
    the order of the predictions and in float32; `index_select` has no fixed order on CUDA.
    """
    return _Repeat.apply(states, batch.output_index, batch.occurrences)  # type: ignore[no-any-return, no-untyped-call]


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor, occurrences: tuple[Tensor, ...]) -> Tensor:
        ctx.index, ctx.occurrences, ctx.size = index, occurrences, len(states)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = outer
        total = slopes.new_zeros(ctx.size, slopes.shape[1], dtype=torch.float32)
        for members in ctx.occurrences:
            total.index_add_(0, ctx.index.index_select(0, members), slopes.index_select(0, members).float())
        return total.to(slopes.dtype), None, None


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
