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
    """Attention as plain batched products, for bfloat16 on a processor.

    PyTorch's fused kernel there spends two to ten times as long in the backward pass (decision 8). Query
    heads that share a key head stand as rows of one product, so keys are never repeated.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        n, heads, width, size = query.shape
        pairs, groups = n * key.shape[1], heads // key.shape[1]
        q = query.reshape(pairs, groups * width, size)
        k, v = key.reshape(pairs, width, size), value.reshape(pairs, width, size)
        mask = _hidden(width, window, groups, q.dtype).expand(pairs, -1, -1)
        p = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(
            -1
        )  # (pairs, groups * width, width)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape)
        return torch.bmm(p, v).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        grad = grads[0].reshape(q.shape)
        grad_p = torch.bmm(grad, v.transpose(1, 2))
        grad_s = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
        grad_q = torch.bmm(grad_s, k)
        # (D, rows) x (rows, width), since a product whose first factor is a wide transpose is slow here
        grad_k = _turned(torch.bmm(_turned(q), grad_s))
        grad_v = _turned(torch.bmm(_turned(grad), p))
        query, key = ctx.shapes
        return (
            grad_q.mul_(ctx.scale).view(query),
            grad_k.mul_(ctx.scale).view(key),
            grad_v.view(key),
            None,
            None,
        )


@lru_cache(maxsize=64)
def _hidden(width: int, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key, else -inf: (groups * width, width)."""
    visible = _visible(width, window, torch.device("cpu"))
    return torch.zeros(width, width, dtype=dtype).masked_fill_(~visible, float("-inf")).repeat(groups, 1)


def _turned(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2).contiguous()


AttentionInterface.register(PACKED, packed_attention)
