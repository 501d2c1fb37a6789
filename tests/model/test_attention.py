"""Packed attention against attention written out for each example alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shepherd.errors import BaseError
from shepherd.model import attention, pass_plan
from shepherd.model.attention import Reach, packed_attention

LENGTHS = [7, 1, 12, 5, 7, 11]
WIDTH = 6


def states(heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, heads, sum(LENGTHS), WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    window: int | None,
    cap: float | None,
    lengths: Sequence[int] = LENGTHS,
    sinks: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """softmax(cap(q k^T scale) + mask) v, example by example, (1, N, H, D)."""
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    outputs = []
    for start, stop in pairwise(np.cumsum([0, *lengths]).tolist()):
        one = slice(start, stop)
        scores = q[0, :, one] @ k[0, :, one].transpose(1, 2) * (scaling or 1 / math.sqrt(WIDTH))
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        for i in range(stop - start):
            for j in range(stop - start):
                if j > i or (window is not None and i - j >= window) or (chunk and i // chunk > j // chunk):
                    scores[:, i, j] = -math.inf
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(-1, stop - start, 1)], -1)
        outputs.append(scores.softmax(-1)[..., : stop - start] @ v[0, :, one])
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
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device)):
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
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], rough[0].device)):
        out, _ = packed_attention(torch.nn.Module(), *rough, None, scaling=scaling, sliding_window=window)
    expected = written_out(*exact, scaling, window, None)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = torch.autograd.grad((out * outer).sum(), rough)
    wanted = torch.autograd.grad((expected * outer).sum(), exact)
    for ours, theirs in zip((out, *got), (expected, *wanted), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


# examples as stretches: two prefixes, of 7 and of 5 tokens, and those that go on after them
AFTER = [-1, -1, 0, -1, 0, 3]


def spread(line: Tensor) -> Tensor:
    """A line in which prefixes are shared -> each stretch with its prefix, end to end: (1, H, M, D)."""
    parts = line.split(LENGTHS, dim=2)
    wholes = [
        part if of < 0 else torch.cat([parts[of], part], 2) for part, of in zip(parts, AFTER, strict=True)
    ]
    return torch.cat(wholes, 2)


def written_out_shared(q: Tensor, k: Tensor, v: Tensor, *options: float | int | None, **more: Any) -> Tensor:
    """The result of `written_out` for the own tokens of each span, with its prefix."""
    pasts = [0 if of < 0 else LENGTHS[of] for of in AFTER]
    sizes = [past + own for past, own in zip(pasts, LENGTHS, strict=True)]
    whole = written_out(*(spread(t) for t in (q, k, v)), *options, lengths=sizes, **more)
    own = [part[:, past:] for part, past in zip(whole.split(sizes, dim=1), pasts, strict=True)]
    return torch.cat(own, 1)


@pytest.mark.parametrize(
    ("scaling", "window", "cap"), [(None, None, None), (0.7, 8, None), (0.3, None, 2.0), (0.3, 8, 2.0)]
)
@pytest.mark.parametrize("exact", [True, False])
def test_a_shared_prefix_is_seen_by_all_that_continue_it(
    scaling: float | None, window: int | None, cap: float | None, exact: bool
) -> None:
    q, k, v = states(4, 0), states(2, 1), states(2, 2)
    own = (q, k, v) if exact else tuple(t.detach().bfloat16().requires_grad_() for t in (q, k, v))
    options = {"scaling": scaling, "sliding_window": window, "softcap": cap}
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device, parents=AFTER)):
        out, _ = packed_attention(torch.nn.Module(), *own, None, **options)
    expected = written_out_shared(q, k, v, scaling, window, cap)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = torch.autograd.grad((out * outer).sum(), own)
    wanted = torch.autograd.grad((expected * outer).sum(), (q, k, v))
    for ours, theirs in zip((out, *got), (expected, *wanted), strict=True):
        assert (ours - theirs).norm() < (1e-6 if exact else 0.02) * theirs.norm()


@pytest.mark.parametrize("after", [AFTER, None])
@pytest.mark.parametrize("window", [None, 5])
def test_blocks_of_queries_change_nothing(after, window, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KEY_MULTIPLE", 4)
    monkeypatch.setattr(
        attention, "_block_mask", attention._block_mask.__wrapped__
    )  # nothing kept for an EVEN of 4
    own = [states(heads, seed).detach().bfloat16().requires_grad_() for seed, heads in enumerate((4, 2, 2))]
    found = []
    for worth in (999, 3):
        monkeypatch.setattr(attention, "MIN_BLOCKED_QUERIES", worth)
        monkeypatch.setattr(attention, "BLOCK_QUERIES", 4)
        with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], own[0].device, parents=after)):
            out, _ = packed_attention(torch.nn.Module(), *own, None, sliding_window=window)
        outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
        found.append((out, *torch.autograd.grad((out * outer).sum(), own)))
    for whole, blocks in zip(*found, strict=True):
        assert (whole - blocks).norm() < 0.01 * whole.norm()


def test_one_examples_tokens_do_not_touch_another() -> None:
    q, k, v = (states(2, seed).detach() for seed in range(3))
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device)):
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
    with (
        pass_plan.use_plan(pass_plan.sequences([1])),
        pytest.raises(BaseError, match="outside a packed pass"),
    ):
        packed_attention(torch.nn.Module(), q, q, q, None)


SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("after", [None, "shared"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_a_sink_is_a_further_key_without_a_value(window: int | None, exact: bool, after: str | None) -> None:
    q, k, v = states(4, 0), states(2, 1), states(2, 2)
    own = (q, k, v) if exact else tuple(t.detach().bfloat16().requires_grad_() for t in (q, k, v))
    stretches = AFTER if after else None
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device, parents=stretches)):
        out, _ = packed_attention(torch.nn.Module(), *own, None, sliding_window=window, s_aux=SINKS)
    written = written_out_shared if after else written_out
    expected = written(q, k, v, None, window, None, sinks=SINKS)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = torch.autograd.grad((out * outer).sum(), own)
    wanted = torch.autograd.grad((expected * outer).sum(), (q, k, v))
    for ours, theirs in zip((out, *got), (expected, *wanted), strict=True):
        assert (ours - theirs).norm() < (1e-6 if exact else 0.02) * theirs.norm()


@pytest.mark.parametrize("after", [None, "shared"])
@pytest.mark.parametrize("exact", [True, False])
def test_a_query_sees_nothing_before_its_chunk(exact: bool, after: str | None) -> None:
    """Chunks of Llama 4: counted from each example's first token."""
    module = torch.nn.Module()
    module.layer_idx = 1
    module.config = SimpleNamespace(
        layer_types=["full_attention", "chunked_attention"], attention_chunk_size=5, sliding_window=None
    )
    q, k, v = states(4, 0), states(2, 1), states(2, 2)
    own = (q, k, v) if exact else tuple(t.detach().bfloat16().requires_grad_() for t in (q, k, v))
    stretches = AFTER if after else None
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device, parents=stretches)):
        out, _ = packed_attention(module, *own, None)
    written = written_out_shared if after else written_out
    expected = written(q, k, v, None, None, None, chunk=5)
    assert (out - expected).norm() < (1e-6 if exact else 0.02) * expected.norm()


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ({"sliding_window": 7}, {}, Reach(7, None)),  # PhiMoE
        ({"sliding_window": 7}, {"sliding_window": None}, Reach()),  # the call knows better
        ({"sliding_window": 7}, {"sliding_window": 3}, Reach(3, None)),
        ({"sliding_window": 7, "layer_types": ["full_attention"]}, {}, Reach()),
        ({"sliding_window": 7, "layer_types": ["sliding_attention"]}, {}, Reach(7, None)),  # Qwen2-MoE
        ({"attention_chunk_size": 9, "layer_types": ["chunked_attention"]}, {}, Reach(None, 9)),
        ({"attention_chunk_size": 9, "layer_types": ["full_attention"]}, {}, Reach()),
    ],
)
def test_what_the_call_does_not_say_the_layers_configuration_does(config, options, expected) -> None:
    module = torch.nn.Module()
    module.layer_idx, module.config = 0, SimpleNamespace(**config)
    assert attention._reach(module, options) == expected


def test_what_it_cannot_do_is_refused_by_name() -> None:
    q = states(2, 0)
    with (
        pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device)),
        pytest.raises(BaseError, match="a position bias"),
    ):
        packed_attention(torch.nn.Module(), q, q, q, None, position_bias=q)


def dense_varlen(
    q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int, **options: Any
) -> Tensor:
    """What PyTorch documents of `varlen_attn`, span by span: windows are aligned at the last key."""
    assert options["enable_gqa"] == (q.shape[1] != k.shape[1])
    assert (ends_q.dtype, ends_k.dtype) == (torch.int32, torch.int32)
    assert (most_q, most_k) == (int(ends_q.diff().max()), int(ends_k.diff().max()))
    assert all(states.is_contiguous() for states in (q, k, v))
    groups, (left, right) = q.shape[1] // k.shape[1], options["window_size"]
    spans = []
    for (a, b), (c, d) in zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True):
        keys, values = (t[c:d].repeat_interleave(groups, 1).transpose(0, 1) for t in (k, v))
        scores = q[a:b].transpose(0, 1) @ keys.transpose(1, 2) * options["scale"]
        place = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        seen = torch.arange(d - c)[None] <= place + right
        if left >= 0:
            seen &= torch.arange(d - c)[None] >= place - left
        spans.append((scores.masked_fill(~seen, -math.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(spans)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("after", [None, AFTER])
@pytest.mark.parametrize(("scaling", "window"), [(None, None), (0.7, 8), (None, 100)])
def test_the_variable_length_kernel_is_called_rightly(kv_heads, after, scaling, window, monkeypatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", dense_varlen)
    monkeypatch.setattr(attention, "varlen_takes", lambda query, value: True)
    own = q, k, v = states(4, 0), states(kv_heads, 1), states(kv_heads, 2)
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device, parents=after, cuda=True)):
        out, _ = packed_attention(torch.nn.Module(), q, k, v, None, scaling=scaling, sliding_window=window)
    written = written_out if after is None else written_out_shared
    expected = written(q, k, v, scaling, window, None)
    torch.testing.assert_close(out, expected)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)
    got = torch.autograd.grad((out * outer).sum(), own)
    wanted = torch.autograd.grad((expected * outer).sum(), own)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "options", [{"softcap": 2.0}, {"s_aux": torch.zeros(4, dtype=torch.float64)}, {"chunk": 5}]
)
def test_what_the_kernel_lacks_takes_the_buckets(options, monkeypatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", None)  # not callable
    monkeypatch.setattr(attention, "varlen_takes", lambda query, value: True)
    if chunk := options.get("chunk"):
        options = {}
        monkeypatch.setattr(attention, "_reach", lambda module, options: Reach(None, chunk))
    q, k, v = states(4, 0), states(4, 1), states(4, 2)
    with pass_plan.use_plan(pass_plan.packed(LENGTHS, [], q.device, cuda=True)):
        out, _ = packed_attention(torch.nn.Module(), q, k, v, None, **options)
    assert out.shape == (1, sum(LENGTHS), 4, WIDTH)


def test_on_a_processor_the_kernel_is_never_chosen() -> None:
    q = torch.zeros(3, 2, 8, dtype=torch.bfloat16)
    assert not attention.varlen_takes(q, q)
    assert pass_plan.packed(LENGTHS, [], q.device).varlen is None
