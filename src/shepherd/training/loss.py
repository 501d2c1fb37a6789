"""Response loss: logits only where a trained token is predicted, computed in chunks, in float32."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shepherd.model.base import Base, logits

CHUNK_VALUES = 2**20  # float32 logits in memory at once: 4 MB, which fits a processor's cache
LOWEST = -1e4  # a token without any probability has the logarithm -inf, and adds 0 to a mean
MIN_CHUNK_ROWS, MAX_CHUNK_VALUES = 128, 2**24  # fewer rows would spend their time reading the head's weights
CUDA_CHUNK_VALUES = 2**26  # 256 MB; the kernels of a small chunk would take less time than their launches


def token_losses(base: Base, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target in nats, without a gradient: hidden (M, width), targets (M,) -> (M,)."""
    with torch.no_grad():
        parts = [
            F.cross_entropy(logits(base, h).float(), t, reduction="none")
            for h, t in zip(*_chunks(base, hidden, targets), strict=True)
        ]
    return torch.cat(parts)


def token_hits(base: Base, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target in nats, and whether it is the likeliest token: two of (M,).

    hidden (M, width), targets (M,).
    """
    with torch.no_grad():
        parts = []
        for h, t in zip(*_chunks(base, hidden, targets), strict=True):
            scores = logits(base, h).float()
            parts.append((F.cross_entropy(scores, t, reduction="none"), scores.argmax(-1) == t))
    losses, hits = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(hits)


def token_statistics(base: Base, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, and mean and deviation of those of the whole vocabulary: (3, M).

    Mean and deviation are over a token drawn as the model predicts it. hidden (M, width), targets (M,).
    """
    with torch.no_grad():
        parts = []
        for h, t in zip(*_chunks(base, hidden, targets), strict=True):
            logs = F.log_softmax(logits(base, h).float(), dim=-1)  # (m, vocabulary)
            shares = logs.exp()
            mean = (shares * logs.clamp(min=LOWEST)).sum(-1)
            square = (shares * (logs.clamp(min=LOWEST) - mean.unsqueeze(1)).square()).sum(-1)
            parts.append(torch.stack([logs.gather(1, t.unsqueeze(1)).squeeze(1), mean, square.sqrt()]))
    return torch.cat(parts, dim=1)


def weighted_loss(base: Base, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of the cross-entropies, differentiable in `hidden`, and the M losses themselves.

    Only one chunk of logits is in memory at a time: the gradient by `hidden` is taken chunk by chunk while
    the loss is computed, so nothing of the vocabulary's width is kept for the backward pass.
    """
    return _ChunkedLoss.apply(hidden, targets, weights, base)  # type: ignore[no-any-return, no-untyped-call]


def capped(losses: Tensor, nats: float) -> Tensor:
    """Cap each loss at `nats`; a loss that is not a number becomes `nats`."""
    if nats == math.inf:
        return losses
    return torch.nan_to_num(losses, nan=nats, posinf=nats).clamp(max=nats)


def _chunks(base: Base, *tensors: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    size = max(16, CHUNK_VALUES // vocabulary, min(MIN_CHUNK_ROWS, MAX_CHUNK_VALUES // vocabulary))
    if tensors[0].device.type == "cuda":
        size = max(size, CUDA_CHUNK_VALUES // vocabulary)
    return tuple(tensor.split(size) for tensor in tensors)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weights: Tensor, base: Base
    ) -> tuple[Tensor, Tensor]:
        losses, grads = [], []
        for h, t in zip(*_chunks(base, hidden, targets), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                scores = logits(base, h)  # (m, vocabulary)
            own = torch.arange(len(t), device=t.device), t
            powers = scores.detach().to(torch.float32, copy=True)
            top = powers.amax(-1, keepdim=True)
            reached = powers[own] - top[:, 0]
            total = powers.sub_(top).exp_().sum(-1)
            losses.append(total.log() - reached)
            slope = powers.div_(total.unsqueeze(1))  # of the cross-entropy by the scores: probabilities
            slope[own] -= 1
            grads.append(torch.autograd.grad(scores, h, slope.to(scores.dtype))[0])
        every = torch.cat(losses)
        # a row's weight scales its whole gradient, so it comes in where a row is narrow
        ctx.save_for_backward(torch.cat(grads).mul_(weights.unsqueeze(1)))
        ctx.mark_non_differentiable(every)
        return every @ weights, every

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grads,) = ctx.saved_tensors
        return grads * outer[0].to(grads.dtype), None, None, None
