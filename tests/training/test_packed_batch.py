"""Whatever is laid once, each prediction stands after the tokens that come before it in its own example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shepherd.data.shared_prefix import MIN_PREFIX_TOKENS
from shepherd.data.tokens import Tokens
from shepherd.training.packed_batch import PackedBatch, Row, pack_batch, prediction_states

CPU = torch.device("cpu")


def tokens(seed: int, sizes: list[int], prefix: int = MIN_PREFIX_TOKENS + 3, every: bool = False) -> Tokens:
    """Examples of `sizes` tokens of their own after a shared prefix; some with a token in front."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(4, 60, prefix)
    ids = [np.concatenate([[2] * (i % 2), shared, rng.integers(4, 60, n)]) for i, n in enumerate(sizes)]
    trained = [np.arange(len(one)) >= (1 if every else len(one) // 2) for one in ids]
    offsets = np.cumsum([0, *map(len, ids)])
    return Tokens(
        ids=np.concatenate(ids).astype(np.int32), loss_mask=np.concatenate(trained), offsets=offsets
    )


def predicting(batch: PackedBatch) -> Tensor:
    """The position of the token that makes each prediction, (M,)."""
    return batch.output_positions[batch.output_index]


def seen_from(batch: PackedBatch, place: int) -> list[int]:
    """The ids that the token at `place` of the batch attends to, by the plan's keys."""
    keys = batch.plan.padding.keys
    start, at = 0, int(keys.inverse[place])
    for count, width in keys.shapes:
        if at < start + count * width:
            first = start + (at - start) // width * width
            return batch.ids[keys.gather[first : at + 1]].tolist()
        start += count * width
    raise AssertionError(place)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.booleans(), st.booleans())
def test_each_prediction_sees_its_own_example_up_to_itself(sizes, every, share) -> None:
    data = [tokens(k, sizes, every=every) for k in range(2)]
    order = np.arange(len(sizes))
    whole = int(data[0].lengths.sum())
    rows = [Row(client=1, examples=order[::-1], tokens=whole), Row(client=0, examples=order, tokens=whole)]
    batch = pack_batch(data, rows, CPU, training=True, share=share)
    laid = [data[row.client].example(int(i)) for row in rows for i in row.examples]
    expected = [(n, t) for n, (_, trained) in enumerate(laid) for t in np.flatnonzero(trained) if t]
    found = list(
        zip(batch.examples.tolist(), predicting(batch).tolist(), batch.targets.tolist(), strict=True)
    )
    assert len(found) == len(expected)
    for (example, t), (which, place, target) in zip(expected, found, strict=True):
        ids = laid[example][0]
        assert which == example
        assert target == ids[t]
        assert batch.positions[place] == t - 1
        assert seen_from(batch, place) == ids[:t].tolist()
    assert batch.counts == tuple(sum(n // len(sizes) == row for n, _ in expected) for row in range(2))


def test_an_opening_is_laid_once_a_row_and_only_where_it_may_be() -> None:
    data = [tokens(0, [4, 5, 6, 7])] * 2
    rows = [Row(client=k, examples=np.arange(4), tokens=int(data[k].lengths.sum()), seed=k) for k in range(2)]
    shared = pack_batch(data, rows, CPU, training=True)
    apart = pack_batch(data, rows, CPU, training=True, share=False)
    whole = rows[0].tokens
    assert len(apart.ids) == 2 * whole
    saved = (MIN_PREFIX_TOKENS + 3) + (
        MIN_PREFIX_TOKENS + 4
    )  # one of two, twice: the second form has a token more in front
    assert len(shared.ids) == 2 * (whole - saved)
    assert [(s.adapter, s.start, s.stop, s.dropout_seed) for s in shared.plan.segments] == [
        (0, 0, whole - saved, 0),
        (1, whole - saved, 2 * (whole - saved), 1),
    ]


@pytest.mark.parametrize("share", [True, False])
def test_places_count_from_zero_in_every_example(share: bool) -> None:
    data = tokens(0, [3, 2, 4])
    batch = pack_batch(
        [data], [Row(client=0, examples=np.arange(3), tokens=0)], CPU, training=True, share=share
    )
    ends = [int(batch.positions[place]) for place in predicting(batch)]
    lengths = data.lengths.tolist()
    assert ends == [t - 1 for n in lengths for t in range(n // 2, n)]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.booleans())
def test_each_place_is_read_once_and_gradients_are_added_in_order(sizes, every) -> None:
    """Against index_select's own backward in float64, whose order is of no matter there."""
    data = [tokens(k, sizes, every=every) for k in range(2)]
    rows = [Row(client=k, examples=np.arange(len(sizes)), tokens=0) for k in (1, 0)]
    batch = pack_batch(data, rows, CPU, training=True)
    assert batch.output_positions.tolist() == sorted(set(predicting(batch).tolist()))
    assert torch.equal(batch.plan.output_positions, batch.output_positions)
    assert sorted(torch.cat(batch.occurrences).tolist()) == list(range(len(predicting(batch))))
    for members in batch.occurrences:
        assert len(set(batch.output_index[members].tolist())) == len(members)
    assert sum(batch.counts) == len(predicting(batch))
    slopes = torch.randn(len(predicting(batch)), 3, generator=torch.Generator().manual_seed(0))
    ours, plain = (torch.randn(len(batch.output_positions), 3).requires_grad_() for _ in range(2))
    (prediction_states(ours, batch) * slopes).sum().backward()
    (plain.double().index_select(0, batch.output_index) * slopes).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    assert torch.equal(prediction_states(ours, batch), ours[batch.output_index])


def test_gradients_in_bfloat16_are_added_in_float32() -> None:
    data = [tokens(0, [3] * 40, every=True)]
    batch = pack_batch(data, [Row(client=0, examples=np.arange(40), tokens=0)], CPU, training=True)
    assert len(batch.occurrences) > 10
    states = torch.zeros(len(batch.output_positions), 1, dtype=torch.bfloat16, requires_grad=True)
    slopes = torch.full((len(predicting(batch)), 1), 1.0, dtype=torch.bfloat16)
    slopes[batch.occurrences[0]] = 256.0  # beside it, 1 is lost in bfloat16
    (prediction_states(states, batch) * slopes).sum().backward()
    expected = (
        torch.zeros(len(batch.output_positions), 1)
        .index_add_(0, batch.output_index, slopes.float())
        .bfloat16()
    )
    assert torch.equal(states.grad, expected)
