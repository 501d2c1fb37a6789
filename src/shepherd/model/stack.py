"""K adapters side by side in one (K, P) buffer, and the optimiser that works on it row by row.

Everything here is elementwise or a reduction along a row, so no client's numbers reach another's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shepherd.core import Adapter
from shepherd.settings import TuningTable

EPSILON = 1e-8  # AdamW's, as in PyTorch


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """`values` and `grads` are (K, P); `tensors` are leaf views into them by name, (K, r, in) or (K, out, r).

    Tensors that are not trained this round stand in `frozen`, one copy seen K times.
    """

    values: Tensor
    grads: Tensor
    tensors: Mapping[str, Tensor]
    frozen: Mapping[str, Tensor]

    @property
    def all(self) -> dict[str, Tensor]:
        return {**self.tensors, **self.frozen}

    def grad(self, name: str) -> Tensor:
        """The gradient of one tensor, (K, ...); a view into `grads`."""
        grad = self.tensors[name].grad
        assert grad is not None
        return grad


def build(
    adapter: Adapter, trainable: Callable[[str], bool], clients: int, device: torch.device
) -> Stack:
    """`clients` copies of one adapter."""
    names = [name for name in adapter if trainable(name)]
    frozen = {
        name: torch.from_numpy(adapter[name].copy()).to(device).expand(clients, *adapter[name].shape)
        for name in adapter
        if name not in set(names)
    }
    row = np.concatenate([adapter[name].reshape(-1) for name in names]) if names else np.empty(0, "f4")
    values = torch.from_numpy(row).to(device).repeat(clients, 1)  # (K, P)
    grads = torch.zeros_like(values)
    tensors, start = {}, 0
    for name in names:
        stop = start + adapter[name].size
        shape = (clients, *adapter[name].shape)
        view = values[:, start:stop].view(shape).detach().requires_grad_()
        view.grad = grads[:, start:stop].view(shape)  # autograd adds into it in place
        tensors[name], start = view, stop
    return Stack(values=values, grads=grads, tensors=tensors, frozen=frozen)


def clip_rows(grads: Tensor, norm: float | None) -> Tensor:
    """Scale each row of (K, P) in place to at most `norm`; returns the norms before, (K,)."""
    norms = torch.linalg.vector_norm(grads, dim=1)
    if norm is not None:
        grads.mul_((norm / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))
    return norms


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW (arXiv 1711.05101) over the rows of a stack; a fresh one each visit."""

    first: Tensor  # (K, P)
    second: Tensor  # (K, P)
    betas: tuple[float, float]
    weight_decay: float

    @classmethod
    def fresh(cls, stack: Stack, tuning: TuningTable) -> AdamW:
        zeros = torch.zeros_like(stack.values)
        return cls(
            first=zeros, second=zeros.clone(), betas=tuning.betas, weight_decay=tuning.weight_decay
        )

    def step(self, stack: Stack, count: int, rates: Tensor) -> None:
        """The `count`-th step (from 1) with a learning rate a row, (K,); a rate of 0 leaves its row as is."""
        beta1, beta2 = self.betas
        rates = rates.unsqueeze(1)  # (K, 1)
        self.first.lerp_(stack.grads, 1 - beta1)
        self.second.mul_(beta2).addcmul_(stack.grads, stack.grads, value=1 - beta2)
        scale = (self.second / (1 - beta2**count)).sqrt_().add_(EPSILON)
        move = (self.first / (1 - beta1**count)).div_(scale)
        stack.values.sub_(move.add_(stack.values, alpha=self.weight_decay).mul_(rates))


def rate(tuning: TuningTable, step: int, steps: int) -> float:
    """The learning rate's share at step 0 .. steps - 1 of a visit; 0 after its end."""
    if step >= steps:
        return 0.0
    if step < tuning.warmup_steps:
        return (step + 1) / (tuning.warmup_steps + 1)
    length = max(1, steps - tuning.warmup_steps)
    return decay(tuning.schedule, (step - tuning.warmup_steps) / length, tuning.final_share)


def round_rate(tuning: TuningTable, round: int, rounds: int) -> float:
    """The learning rate of a round, 0 .. rounds - 1, before the schedule within the visit."""
    return tuning.learning_rate * decay(tuning.round_schedule, round / rounds, tuning.final_share)


def decay(schedule: str, progress: float, final: float) -> float:
    """From 1 at progress 0 to `final` at progress 1."""
    match schedule:
        case "linear":
            return 1 + (final - 1) * progress
        case "cosine":
            return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
        case _:
            return 1.0


def rows(stack: Stack, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Each client's trained tensors as arrays, by name."""
    host = {name: stack.tensors[name].detach().to("cpu").numpy() for name in names}
    return [{name: host[name][k] for name in names} for k in range(len(stack.values))]
