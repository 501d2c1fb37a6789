"""Packed attention against attention written out for each example alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from shepherd.errors import BaseError
from shepherd.model import layout
from shepherd.model.attention import packed_attention

LENGTHS = [7, 1, 12, 5, 7, 11]
WIDTH = 6


def states(heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, heads, sum(LENGTHS), WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def written_out(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, cap: float | None
) -> Tensor:
    """softmax(cap(q k^T scale) + mask) v, example by example, (1, N, H, D)."""
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    outputs = []
    for start, stop in pairwise(np.cumsum([0, *LENGTHS]).tolist()):
        one = slice(start, stop)
        scores = q[0, :, one] @ k[0, :, one].transpose(1, 2) * (scaling or 1 / math.sqrt(WIDTH))
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        for i in range(stop - start):
            for j in range(stop - start):
                if j > i or (window is not None and i - j >= window):
                    scores[:, i, j] = -math.inf
        outputs.append(scores.softmax(-1) @ v[0, :, one])
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("scaling", "window", "cap"),
    [
        (None, None, None),
        (0.7, None, None),
        (None, 3, None),
        (None, 100, None),
        (0.3, None, 2.0),
        (0.3, 4, 2.0),
    ],
)
def test_it_equals_attention_written_out_and_so_do_its_gradients(
    kv_heads: int, scaling: float | None, window: int | None, cap: float | None
) -> None:
    q, k, v = states(4, 0), states(kv_heads, 1), states(kv_heads, 2)
    options = {"scaling": scaling, "sliding_window": window, "softcap": cap}
    with layout.running(layout.packed(LENGTHS, [], q.device)):
        out, weights = packed_attention(torch.nn.Module(), q, k, v, None, **options)
    expected = written_out(q, k, v, scaling, window, cap)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)  # the softcapped softmax is float32

    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)
    got = torch.autograd.grad((out * outer).sum(), (q, k, v))
    wanted = torch.autograd.grad((expected * outer).sum(), (q, k, v))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("scaling", "window"), [(None, None), (0.7, 4)])
def test_in_bfloat16_it_is_as_good_as_bfloat16_is(
    kv_heads: int, scaling: float | None, window: int | None
) -> None:
    exact = states(4, 0), states(kv_heads, 1), states(kv_heads, 2)
    rough = [t.detach().bfloat16().requires_grad_() for t in exact]
    with layout.running(layout.packed(LENGTHS, [], rough[0].device)):
        out, _ = packed_attention(torch.nn.Module(), *rough, None, scaling=scaling, sliding_window=window)
    expected = written_out(*exact, scaling, window, None)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = torch.autograd.grad((out * outer).sum(), rough)
    wanted = torch.autograd.grad((expected * outer).sum(), exact)
    for ours, theirs in zip((out, *got), (expected, *wanted), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_one_examples_tokens_do_not_touch_another() -> None:
    q, k, v = (states(2, seed).detach() for seed in range(3))
    with layout.running(layout.packed(LENGTHS, [], q.device)):
        before, _ = packed_attention(torch.nn.Module(), q, k, v, None)
        v[:, :, :7] = math.nan  # the first example, which shares a bucket with the fifth
        k[:, :, :7] = math.nan
        after, _ = packed_attention(torch.nn.Module(), q, k, v, None)
    assert after[:, :7].isnan().all()
    assert after[:, 7:].equal(before[:, 7:])


def test_it_refuses_to_run_outside_a_packed_pass() -> None:
    q = states(2, 0)
    with pytest.raises(BaseError, match="outside a packed pass"):
        packed_attention(torch.nn.Module(), q, q, q, None)
    with layout.running(layout.sequences([1])), pytest.raises(BaseError, match="outside a packed pass"):
        packed_attention(torch.nn.Module(), q, q, q, None)


@pytest.mark.parametrize("option", ["s_aux", "position_bias"])
def test_what_it_cannot_do_is_refused_by_name(option: str) -> None:
    q = states(2, 0)
    with layout.running(layout.packed(LENGTHS, [], q.device)), pytest.raises(BaseError, match=option):
        packed_attention(torch.nn.Module(), q, q, q, None, **{option: q})
