"""Rows of examples as the tensors of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.data import openings
from shepherd.data.tokens import Tokens
from shepherd.model import layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Whole examples of one client for one pass; `client` is its place in the cohort."""

    client: int
    examples: NDArray[np.int64]
    tokens: int
    """Of the examples, each counted whole."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One pass as tensors: N tokens, and M predictions of trained tokens."""

    ids: Tensor  # (N,) packed; (n, width) as a batch
    positions: Tensor | None  # (N,) packed; None where the model counts them, in a batch
    read: Tensor  # (U,) the places, ascending and each once
    places: Tensor  # (M,) whose hidden states predict a trained token, in the flattened ids; two may be one
    at: Tensor  # (M,) which of `read` each of these places is
    turns: tuple[Tensor, ...]  # the predictions (M,) in turns, in each of which a place is read once
    targets: Tensor  # (M,)
    owners: Tensor  # (M,) the client's place in the cohort
    examples: NDArray[np.int64]  # (M,) which example, counted through the rows as they are given
    counts: tuple[int, ...]  # predictions of each row, which stand one row after the other
    layout: layout.Layout


def line_of(
    data: Sequence[Tokens], rows: Sequence[Row], device: torch.device, *, training: bool, share: bool = True
) -> Line:
    """Lay rows end to end; `data[k]` holds the examples of the rows of client k.

    With `share`, an opening that examples of a row have in common is laid once. A token's states depend on
    the tokens before it alone, so that changes nothing but rounding; where dropout treats each example's
    tokens in its own way it must be off.
    """
    stretches: list[NDArray[Any]] = []
    after, segments, spots, targets = [], [], [], []
    start = 0
    for row in rows:
        examples = [data[row.client].example(int(i)) for i in row.examples]
        cut, follows, places = _stretches([ids for ids, _ in examples], share)
        after += [-1 if one < 0 else len(stretches) + one for one in follows]
        stretches += cut
        for (ids, trained), places_of_it in zip(examples, places, strict=True):
            predicting = np.flatnonzero(trained[1:])  # a token predicts the next one of its own example
            spots.append(start + places_of_it[predicting])
            targets.append(ids[predicting + 1])
        stop = start + sum(map(len, cut))
        segments.append(layout.Segment(adapter=row.client, start=start, stop=stop, dropout_seed=row.seed))
        start = stop
    predicting_at = np.concatenate(spots)
    read, at = np.unique(predicting_at, return_inverse=True)
    lengths, counts = [len(ids) for ids in stretches], [len(found) for found in spots]
    rows_of = np.repeat(np.arange(len(rows)), [len(row.examples) for row in rows])
    clients = np.array([row.client for row in rows])[rows_of]
    return Line(
        ids=_tensor(np.concatenate(stretches), device),
        positions=_tensor(layout.positions(lengths, after), device),
        read=_tensor(read, device),
        places=_tensor(predicting_at, device),
        at=_tensor(at, device),
        turns=_turns(at, device),
        targets=_tensor(np.concatenate(targets), device),
        owners=_tensor(np.repeat(clients, counts), device),
        examples=np.repeat(np.arange(len(counts)), counts),
        counts=tuple(np.bincount(rows_of, weights=counts, minlength=len(rows)).astype(int).tolist()),
        layout=layout.packed(
            lengths, segments, device, after=after, read=_tensor(read, device), training=training
        ),
    )


def batch_of(data: Tokens, row: Row, device: torch.device, *, training: bool) -> Line:
    """The examples of one row as a batch, padded on the right, for a base that cannot run packed.

    What stands at the padding is never seen: it comes after every token of its example.
    """
    examples = [data.example(int(i)) for i in row.examples]
    width = max(len(ids) for ids, _ in examples)
    ids = np.stack([np.pad(ids, (0, width - len(ids)), mode="edge") for ids, _ in examples])
    predicting = [np.flatnonzero(trained[1:]) for _, trained in examples]
    counts = [len(found) for found in predicting]
    targets = [own[found + 1] for (own, _), found in zip(examples, predicting, strict=True)]
    read = np.concatenate([n * width + found for n, found in enumerate(predicting)])
    return Line(
        ids=_tensor(ids, device),
        positions=None,
        read=_tensor(read, device),
        places=_tensor(read, device),
        at=_tensor(np.arange(len(read)), device),
        turns=_turns(np.arange(len(read)), device),
        targets=_tensor(np.concatenate(targets), device),
        owners=_tensor(np.full(sum(counts), row.client), device),
        examples=np.repeat(np.arange(len(counts)), counts),
        counts=(sum(counts),),
        layout=layout.padded(len(ids), width, row.client, dropout_seed=row.seed, training=training),
    )


def _stretches(
    examples: Sequence[NDArray[Any]], share: bool
) -> tuple[list[NDArray[Any]], list[int], list[NDArray[np.int64]]]:
    """Ids to lay end to end; which stretch each goes on after, or -1; where each example's tokens stand."""
    alone = [openings.Group(tokens=0, members=tuple(range(len(examples))))]
    stretches: list[NDArray[Any]] = []
    after: list[int] = []
    places = [np.zeros(0, np.int64)] * len(examples)
    size = 0
    for group in openings.groups(examples) if share else alone:
        head, opening = np.arange(size, size + group.tokens), -1
        if group.tokens:
            opening = len(stretches)
            stretches.append(examples[group.members[0]][: group.tokens])
            after.append(-1)
            size += group.tokens
        for i in group.members:
            own = examples[i][group.tokens :]
            stretches.append(own)
            after.append(opening)
            places[i] = np.concatenate([head, np.arange(size, size + len(own))])
            size += len(own)
    return stretches, after, places


def _turns(places: NDArray[Any], device: torch.device) -> tuple[Tensor, ...]:
    """Where each place stands for the first time, for the second, and so on."""
    order = np.argsort(places, kind="stable")
    times = np.bincount(places)
    turn = np.empty(len(places), np.int64)
    turn[order] = np.arange(len(places)) - np.repeat(np.cumsum(times) - times, times)
    return tuple(_tensor(np.flatnonzero(turn == each), device) for each in range(int(times.max(initial=0))))


def at_places(states: Tensor, line: Line) -> Tensor:
    """The states (U, width) of what is read, as each prediction takes them, (M, width).

    Where a place is taken several times, as of an opening that is trained on, the gradients are added in
    the order of the predictions and in float32; `index_select` leaves the order open on CUDA.
    """
    return _AtPlaces.apply(states, line.at, line.turns)  # type: ignore[no-any-return, no-untyped-call]


class _AtPlaces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Tensor, turns: tuple[Tensor, ...]) -> Tensor:
        ctx.places, ctx.turns, ctx.size = places, turns, len(states)
        return states.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = outer
        total = slopes.new_zeros(ctx.size, slopes.shape[1], dtype=torch.float32)
        for turn in ctx.turns:
            total.index_add_(0, ctx.places.index_select(0, turn), slopes.index_select(0, turn).float())
        return total.to(slopes.dtype), None, None


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)
