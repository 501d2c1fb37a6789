"""Causal attention inside each example of a packed line, as one of transformers' attention functions.

Examples of about the same length run together through PyTorch's scaled dot-product attention; a token
never sees another example, and the work is that of the examples' own lengths.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from shepherd.errors import BaseError
from shepherd.model.layout import Bucket, current

PACKED = "shepherd_packed"
BLOCK, WORTH_BLOCKS = 64, 160  # queries of a block; the width from which blocks save time


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (1, H, N, D), key and value (1, H_kv, N, D) -> (1, N, H, D).

    Raises:
        BaseError: the architecture asks for something that packed attention does not do.
    """
    layout = current()
    if layout is None or layout.padding is None:
        raise BaseError("packed attention ran outside a packed pass; call it through the trainer")
    refused = [name for name in ("s_aux", "position_bias") if options.get(name) is not None]
    if refused:
        raise BaseError(f"this base's attention uses {refused[0]}, which packed training lacks; use another")
    padding = layout.padding
    sizes = [bucket.count * bucket.width for bucket in padding.buckets]
    q, k, v = (
        _Padded.apply(states[0].transpose(0, 1), padding.gather, padding.places).split(sizes)  # type: ignore[no-untyped-call]
        for states in (query, key, value)
    )  # (count * width, heads, D) a bucket
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = [
        _attention(*(_rows(x, bucket) for x in parts), scale=scale, window=sliding_window, softcap=softcap)
        for bucket, *parts in zip(padding.buckets, q, k, v, strict=True)
    ]
    together = torch.cat([out.transpose(1, 2).flatten(0, 1) for out in outputs])  # (P, H, D)
    return _Unpadded.apply(together, padding.places).unsqueeze(0), None  # type: ignore[no-untyped-call]


def _rows(states: Tensor, bucket: Bucket) -> Tensor:
    """(count * width, heads, D) -> (count, heads, width, D)."""
    return states.view(bucket.count, bucket.width, *states.shape[1:]).transpose(1, 2)


class _Padded(torch.autograd.Function):
    """The line's tokens in their buckets. No padding has a gradient, so going back is a selection, too."""

    @staticmethod
    def forward(ctx: Any, line: Tensor, gather: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return line.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return grads[0].index_select(0, places), None, None


class _Unpadded(torch.autograd.Function):
    """The tokens of the buckets back in the line's order; padding is dropped and gets no gradient."""

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
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of whole examples: (count, heads, width, D) each -> (count, H, width, D)."""
    width, groups = q.shape[2], q.shape[1] // k.shape[1]
    if softcap is not None:
        return _softcapped(q, k, v, _visible(width, window, q.device), scale, softcap, groups)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _BatchedProducts.apply(q, k, v, scale, window)  # type: ignore[no-any-return, no-untyped-call]
    if window is not None and window < width:
        visible = _visible(width, window, q.device)
        return F.scaled_dot_product_attention(q, k, v, visible, scale=scale, enable_gqa=groups > 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups > 1)


def _visible(width: int, window: int | None, device: torch.device) -> Tensor:
    place = torch.arange(width, device=device)
    distance = place[:, None] - place[None, :]  # (query, key)
    return (distance >= 0) & (distance < (window or width))


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, cap: float, groups: int
) -> Tensor:
    """Gemma 2's cap * tanh(scores / cap) before the mask."""
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * scale
    scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.float().softmax(-1).to(q.dtype) @ v


class _BatchedProducts(torch.autograd.Function):
    """Attention as plain batched products, a block of queries at a time, for bfloat16 on a processor.

    PyTorch's fused kernel there spends two to ten times as long in the backward pass (decision 8). Query
    heads that share a key head stand as rows of one product, so keys are never repeated; a block meets only
    the keys up to its end, since causality hides the rest.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        n, heads, width, size = query.shape
        pairs, groups = n * key.shape[1], heads // key.shape[1]
        q = query.reshape(pairs, groups, width, size)
        k, v = key.reshape(pairs, width, size), value.reshape(pairs, width, size)
        out, shares = torch.empty_like(q), []
        for start, stop in _blocks(width):
            mask = _hidden(start, stop, window, groups, q.dtype).expand(pairs, -1, -1)
            scores = torch.baddbmm(mask, _rows_of(q, start, stop), k[:, :stop].transpose(1, 2), alpha=scale)
            p = scores.softmax(-1)  # (pairs, groups * block, stop)
            out[:, :, start:stop] = torch.bmm(p, v[:, :stop]).view(pairs, groups, -1, size)
            shares.append(p)
        ctx.save_for_backward(q, k, v, *shares)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape)
        return out.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        pairs, groups, width, size = q.shape
        grad, grad_q = grads[0].reshape(q.shape), torch.empty_like(q)
        # (D, rows) x (rows, keys), since a product whose first factor is a wide transpose is slow here
        grad_k, grad_v = q.new_zeros(2, pairs, size, width, dtype=torch.float32)
        for p, (start, stop) in zip(shares, _blocks(width), strict=True):
            rows = _rows_of(grad, start, stop)
            grad_p = torch.bmm(rows, v[:, :stop].transpose(1, 2))
            grad_s = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, start:stop] = torch.bmm(grad_s, k[:, :stop]).view(pairs, groups, -1, size)
            grad_k[:, :, :stop] += torch.bmm(_turned(_rows_of(q, start, stop)), grad_s)
            grad_v[:, :, :stop] += torch.bmm(_turned(rows), p)
        query, key = ctx.shapes
        return (
            grad_q.mul_(ctx.scale).view(query),
            grad_k.mul_(ctx.scale).transpose(1, 2).to(q.dtype).reshape(key),
            grad_v.transpose(1, 2).to(q.dtype).reshape(key),
            None,
            None,
        )


def _blocks(width: int) -> list[tuple[int, int]]:
    """Where the blocks of queries start and stop; a short example is one block.

    >>> _blocks(100), _blocks(200)
    ([(0, 100)], [(0, 64), (64, 128), (128, 192), (192, 200)])
    """
    if width < WORTH_BLOCKS:
        return [(0, width)]
    return [(start, min(start + BLOCK, width)) for start in range(0, width, BLOCK)]


def _rows_of(states: Tensor, start: int, stop: int) -> Tensor:
    """Queries start .. stop - 1: (pairs, groups, width, D) -> (pairs, groups * block, D)."""
    return states[:, :, start:stop].flatten(1, 2)


@lru_cache(maxsize=32)
def _hidden(start: int, stop: int, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
    """0 where a query start .. stop - 1 sees a key 0 .. stop - 1, else -inf: (groups * block, stop)."""
    visible = _visible(stop, window, torch.device("cpu"))[start:]
    hidden = torch.zeros(stop - start, stop, dtype=dtype).masked_fill_(~visible, float("-inf"))
    return hidden.repeat(groups, 1)


def _turned(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2).contiguous()


AttentionInterface.register(PACKED, packed_attention)
