"""Causal attention inside each example of a packed line, as one of transformers' attention functions.

Examples of about the same length run together through PyTorch's scaled dot-product attention; a token
never sees another example, and the work is that of the examples' own lengths.
"""

from __future__ import annotations

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
    if layout is None or layout.order is None:
        raise BaseError("packed attention ran outside a packed pass; call it through the trainer")
    refused = [name for name in ("s_aux", "position_bias") if options.get(name) is not None]
    if refused:
        raise BaseError(f"this base's attention uses {refused[0]}, which packed training lacks; use another")
    lines = [states[0].transpose(0, 1) for states in (query, key, value)]  # (N, heads, D) each
    outputs = [
        _bucket_attention(bucket, *lines, scaling=scaling, window=sliding_window, softcap=softcap)
        for bucket in layout.buckets
    ]
    return torch.cat(outputs).index_select(0, layout.order).unsqueeze(0), None


def _bucket_attention(
    bucket: Bucket,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    q, k, v = (_rows(states, bucket) for states in (query, key, value))  # (n, heads, width, D)
    groups = q.shape[1] // k.shape[1]
    if softcap is not None:
        out = _softcapped(q, k, v, _visible(bucket.width, window, q.device), scaling, softcap, groups)
    elif q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        out = _BatchedProducts.apply(q, k, v, scale, _visible(bucket.width, window, q.device))  # type: ignore[no-untyped-call]
    elif window is not None and window < bucket.width:
        visible = _visible(bucket.width, window, q.device)
        out = F.scaled_dot_product_attention(q, k, v, visible, scale=scaling, enable_gqa=groups > 1)
    else:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=groups > 1)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, bucket.keep)  # (tokens, H, D)


def _rows(states: Tensor, bucket: Bucket) -> Tensor:
    rows = states.index_select(0, bucket.gather)  # (n * width, heads, D)
    return rows.view(bucket.count, bucket.width, *rows.shape[1:]).transpose(1, 2)


def _visible(width: int, window: int | None, device: torch.device) -> Tensor:
    place = torch.arange(width, device=device)
    distance = place[:, None] - place[None, :]  # (query, key)
    return (distance >= 0) & (distance < (window or width))


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scaling: float | None, cap: float, groups: int
) -> Tensor:
    """Gemma 2's cap * tanh(scores / cap) before the mask."""
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.float().softmax(-1).to(q.dtype) @ v


class _BatchedProducts(torch.autograd.Function):
    """Attention as plain batched products, for bfloat16 on a processor.

    PyTorch's fused kernel there spends two to ten times as long in the backward pass (docs/benchmarks.md).
    Query heads that share a key head stand as rows of one product, so keys are never repeated.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, visible: Tensor) -> Tensor:
        n, heads, width, size = query.shape
        pairs, groups = n * key.shape[1], heads // key.shape[1]
        q = query.reshape(pairs, groups * width, size)
        k, v = key.reshape(pairs, width, size), value.reshape(pairs, width, size)
        hidden = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, float("-inf"))
        mask = hidden.repeat(groups, 1).expand(pairs, groups * width, width)
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
        grad_v = torch.bmm(p.transpose(1, 2), grad)
        grad_p = torch.bmm(grad, v.transpose(1, 2))
        grad_s = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
        grad_q = torch.bmm(grad_s, k).mul_(ctx.scale)
        grad_k = torch.bmm(grad_s.transpose(1, 2), q).mul_(ctx.scale)
        query, key = ctx.shapes
        return grad_q.view(query), grad_k.view(key), grad_v.view(key), None, None


AttentionInterface.register(PACKED, packed_attention)
