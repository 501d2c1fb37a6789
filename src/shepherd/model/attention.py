"""Packed attention: causal attention inside each example, as one of transformers' attention functions.

Examples of about the same length run together through PyTorch's scaled dot-product attention; a token
never sees another example, and the work is that of the examples' own lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from shepherd.errors import BaseError
from shepherd.model.pass_plan import Buckets, Varlen, active_plan

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before PyTorch 2.10
    varlen_attn = None
if varlen_attn is not None and not {"enable_gqa", "num_splits"} <= set(signature(varlen_attn).parameters):
    varlen_attn = None  # an earlier form

PACKED = "shepherd_packed"
WINDOW_UNUSED = ("moshi", "moshi_depth")  # whose configurations name a window that no mask has
BLOCK_QUERIES, MIN_BLOCKED_QUERIES = 64, 160  # below the second, blocks save no time
FLASH_CAPABILITY = (8, 0)  # Ampere
MAX_FLASH_SIZE = 256  # of a head
KEY_MULTIPLE = 32  # of keys: PyTorch's softmax in bfloat16 takes up to twice as long over a remainder


class Reach(NamedTuple):
    """How far back a query sees: `window` tokens including itself, nothing before its chunk; None: any."""

    window: int | None = None
    chunk: int | None = None


_computing: ContextVar[torch.dtype | None] = ContextVar("computing", default=None)


@contextmanager
def computing_as(dtype: torch.dtype) -> Iterator[None]:
    """Use the code path of `dtype`, whatever dtype the states have, but without its rounding."""
    token = _computing.set(dtype)
    try:
        yield
    finally:
        _computing.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Packed attention: query (1, H, N, D), key and value (1, H_kv, N, D) -> (1, N, H, D).

    The signature is that of transformers. `s_aux` (H,) are attention sinks: the score of a key without a
    value that every query of a head sees.

    Raises:
        BaseError: the architecture requires something that packed attention does not support.
    """
    plan = active_plan()
    if plan is None or plan.padding is None:
        raise BaseError("packed attention ran outside a packed pass; call it through the trainer")
    if key.shape[2] != plan.size:
        raise BaseError("its attention has keys besides those of the tokens, which packed attention lacks")
    if options.get("position_bias") is not None:
        raise BaseError("its attention adds a position bias, which packed attention lacks")
    padding = plan.padding
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    reach = _reach(module, options)
    bare = softcap is None and s_aux is None and reach.chunk is None
    if plan.varlen is not None and bare and varlen_takes(query, value):
        line = [states[0].transpose(0, 1) for states in (query, key, value)]  # (N, heads, D) each
        attended = varlen_attention(line[0], line[1], line[2], plan.varlen, scale=scale, window=reach.window)
        return attended.unsqueeze(0), None
    q = _rows(query, padding.queries)
    k, v = (_rows(states, padding.keys) for states in (key, value))
    outputs = [
        _attention(*parts, scale=scale, reach=reach, softcap=softcap, sinks=s_aux)
        for parts in zip(q, k, v, strict=True)
    ]
    together = torch.cat([out.transpose(1, 2).flatten(0, 1) for out in outputs])  # (P, H, D)
    return _Unpadded.apply(together, padding.queries.inverse).unsqueeze(0), None  # type: ignore[no-untyped-call]


def _reach(module: torch.nn.Module, options: Mapping[str, Any]) -> Reach:
    """The reach that the call gives; if it gives none, that of the layer's configuration.

    Qwen2-MoE, PhiMoE and Llama 4 pass their windows and chunks to the mask only.
    """
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds and layer is not None else None
    chunk = getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None
    masked = kind in (None, "sliding_attention") and getattr(config, "model_type", "") not in WINDOW_UNUSED
    own = getattr(config, "sliding_window", None) if masked else None
    return Reach(window=options.get("sliding_window", own) or None, chunk=chunk)


def varlen_takes(query: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's variable-length kernel (FlashAttention, on CUDA) computes attention of this kind."""
    size = query.shape[-1]
    fits = size == value.shape[-1] and size % 8 == 0 and size <= MAX_FLASH_SIZE
    return fits and query.dtype in (torch.bfloat16, torch.float16) and _has_flash(query.device)


@lru_cache(maxsize=8)
def _has_flash(device: torch.device) -> bool:
    if varlen_attn is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Varlen, *, scale: float, window: int | None
) -> Tensor:
    """Causal attention inside each span, prefix included: query (N, H, D), key and value (N, H_kv, D).

    The kernel lets the last query of a span see its last key, and each earlier one a key less: just what a
    span after a prefix needs. Its windows are counted without the token itself.
    """
    if spans.keys is not None:  # keys of a shared prefix in front of each span that continues it
        key, value = (_Padded.apply(states, spans.keys) for states in (key, value))  # type: ignore[no-untyped-call]
    # one split: the sums of a span must not depend on the longest other one (law 1)
    attended: Tensor = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        spans.query_ends,
        spans.key_ends,
        spans.most_queries,
        spans.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
        num_splits=1,
    )
    return attended


def _rows(line: Tensor, buckets: Buckets) -> list[Tensor]:
    """(1, heads, N, D) -> (count, heads, width, D) per bucket."""
    flat: Tensor = _Padded.apply(line[0].transpose(0, 1), buckets)  # type: ignore[no-untyped-call]
    parts = flat.split([count * width for count, width in buckets.shapes])  # (count * width, heads, D) each
    return [
        part.view(*shape, *part.shape[1:]).transpose(1, 2)
        for part, shape in zip(parts, buckets.shapes, strict=True)
    ]


class _Padded(torch.autograd.Function):
    """The batch's tokens in their buckets. Padding has no gradient, so the backward pass only selects."""

    @staticmethod
    def forward(ctx: Any, line: Tensor, buckets: Buckets) -> Tensor:
        ctx.buckets = buckets
        return line.index_select(0, buckets.gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        buckets: Buckets = ctx.buckets
        line = grads[0].index_select(0, buckets.inverse)
        for first, places in buckets.copies:  # (spans, past); `index_add_` has no fixed order on CUDA
            copies = grads[0].index_select(0, places.flatten()).unflatten(0, places.shape)
            line[first : first + places.shape[1]] += copies.sum(0, dtype=torch.float32)
        return line, None


class _Unpadded(torch.autograd.Function):
    """The tokens of the buckets in the batch's order; padding is dropped and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(padded)
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        padded = grads[0].new_zeros(ctx.size, *grads[0].shape[1:])
        return padded.index_copy_(0, places, grads[0]), None


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    reach: Reach,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention: q (count, H, width, D), k and v (count, H_kv, past + width, D) -> the shape of q."""
    width, past, groups = q.shape[2], k.shape[2] - q.shape[2], q.shape[1] // k.shape[1]
    if softcap is not None or sinks is not None:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return _explicit_attention(q, k, v, _visible(width, past, reach, q.device), scale, softcap, sinks)
    if q.device.type == "cpu" and (_computing.get() or q.dtype) == torch.bfloat16:
        return _BatchedProducts.apply(q, k, v, scale, reach)  # type: ignore[no-any-return, no-untyped-call]
    if past or any(bound is not None and bound < width for bound in reach):
        visible = _visible(width, past, reach, q.device)
        return F.scaled_dot_product_attention(q, k, v, visible, scale=scale, enable_gqa=groups > 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups > 1)


def _visible(width: int, past: int, reach: Reach, device: torch.device) -> Tensor:
    """Which keys the queries see, `past` of the prefix and then their own: (width, past + width)."""
    place = torch.arange(past + width, device=device)
    queries, keys = place[past:, None], place[None, :]
    seen = queries >= keys
    if reach.window is not None:
        seen &= queries - keys < reach.window
    if reach.chunk is not None:
        seen &= queries // reach.chunk == keys // reach.chunk
    return seen


def _explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with Gemma 2's cap * tanh(scores / cap), or with GPT-OSS's sinks (H,) as a further column."""
    scores = q @ k.transpose(2, 3) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    shares = scores.float().softmax(-1).to(q.dtype)
    return shares[..., : k.shape[2]] @ v


class _BatchedProducts(torch.autograd.Function):
    """Attention as plain batched products, a block of queries at a time, for bfloat16 on a processor.

    PyTorch's fused kernel there spends two to ten times as long in the backward pass (decision 8). Query
    heads that share a key head are rows of one product, so keys are never repeated; a block uses only the
    keys up to its end, since causality hides the rest.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, reach: Reach) -> Tensor:
        n, heads, width, size = query.shape
        pairs, groups, past = n * key.shape[1], heads // key.shape[1], key.shape[2] - width
        q = query.reshape(pairs, groups, width, size)
        k, v = _pad_keys(key), _pad_keys(value)  # (pairs, keys, D)
        out, shares = q.new_empty(pairs, groups, width, v.shape[2]), []
        for start, stop in _blocks(width, past):
            seen = _round_up_keys(past + stop)
            mask = _block_mask(start, stop, past, reach, groups, q.dtype).expand(pairs, -1, -1)
            scores = torch.baddbmm(
                mask, _query_block(q, start, stop), k[:, :seen].transpose(1, 2), alpha=scale
            )
            p = scores.softmax(-1)  # (pairs, groups * block, seen)
            out[:, :, start:stop] = torch.bmm(p, v[:, :seen]).view(pairs, groups, -1, v.shape[2])
            shares.append(p)
        ctx.save_for_backward(q, k, v, *shares)
        ctx.scale, ctx.shapes, ctx.past = scale, (query.shape, key.shape, value.shape), past
        return out.view(n, heads, width, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        pairs, groups, width, size = q.shape
        grad, grad_q = grads[0].reshape(pairs, groups, width, -1), torch.empty_like(q)
        exact = torch.float32 if len(shares) > 1 else q.dtype  # in which the blocks are summed
        grad_k, grad_v = torch.zeros_like(k, dtype=exact), torch.zeros_like(v, dtype=exact)
        for p, (start, stop) in zip(shares, _blocks(width, ctx.past), strict=True):
            rows, seen = _query_block(grad, start, stop), p.shape[-1]
            grad_p = torch.bmm(rows, v[:, :seen].transpose(1, 2))
            grad_s = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, start:stop] = torch.bmm(grad_s, k[:, :seen]).view(pairs, groups, -1, size)
            grad_k[:, :seen] += torch.bmm(grad_s.transpose(1, 2), _query_block(q, start, stop))
            grad_v[:, :seen] += torch.bmm(p.transpose(1, 2), rows)
        query, key, value = ctx.shapes
        return (
            grad_q.mul_(ctx.scale).view(query),
            grad_k[:, : key[2]].mul_(ctx.scale).to(q.dtype).reshape(key),
            grad_v[:, : key[2]].to(q.dtype).reshape(value),
            None,
            None,
        )


def _blocks(width: int, past: int = 0) -> list[tuple[int, int]]:
    """Start and stop of each block of queries, at even numbers of keys; a short example is one block.

    >>> _blocks(100), _blocks(200), _blocks(200, past=44)
    ([(0, 100)], [(0, 64), (64, 128), (128, 192), (192, 200)], [(0, 52), (52, 116), (116, 180), (180, 200)])
    """
    if width < MIN_BLOCKED_QUERIES:
        return [(0, width)]
    starts = [0, *range(BLOCK_QUERIES - past % KEY_MULTIPLE, width, BLOCK_QUERIES)]
    return list(pairwise([*starts, width]))


def _round_up_keys(keys: int) -> int:
    return -(-keys // KEY_MULTIPLE) * KEY_MULTIPLE


def _pad_keys(states: Tensor) -> Tensor:
    """(count, heads, keys, D) -> (count * heads, keys, D), padded to KEY_MULTIPLE with unseen keys."""
    count, heads, keys, size = states.shape
    even = states.new_zeros(count, heads, _round_up_keys(keys), size)
    even[:, :, :keys] = states
    return even.flatten(0, 1)


def _query_block(states: Tensor, start: int, stop: int) -> Tensor:
    """Queries start .. stop - 1: (pairs, groups, width, D) -> (pairs, groups * block, D)."""
    return states[:, :, start:stop].flatten(1, 2)


@lru_cache(maxsize=32)
def _block_mask(start: int, stop: int, past: int, reach: Reach, groups: int, dtype: torch.dtype) -> Tensor:
    """0 where a query start .. stop - 1 sees a key, else -inf: (groups * block, past + stop, padded)."""
    visible = _visible(stop, past, reach, torch.device("cpu"))[start:]
    visible = F.pad(visible, (0, _round_up_keys(past + stop) - past - stop))
    hidden = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
    return hidden.repeat(groups, 1)


AttentionInterface.register(PACKED, packed_attention)
