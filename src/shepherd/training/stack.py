"""A stack of K adapters that are tuned in one pass, each by itself; clipping and learning-rate schedules.

Everything here is elementwise or a reduction within a client, so no client's numbers reach another's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.core import Adapter, corner, of_rank
from shepherd.settings import TuningTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """K adapters: `values` and `grads` are flat, one block per tensor; `tensors` are leaf views of blocks.

    A block is (K, r, in) or (K, out, r). Tensors that are not trained this round are in `frozen`, expanded
    from one copy.
    """

    values: Tensor
    grads: Tensor
    tensors: Mapping[str, Tensor]
    frozen: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """For tensors that are not trained as a whole: True where they are, (K, ...), bool."""
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    """The values of these tensors before the first step, (K, ...)."""

    @property
    def all(self) -> dict[str, Tensor]:
        """All tensors by name, trained and frozen."""
        return {**self.tensors, **self.frozen}

    def grad(self, name: str) -> Tensor:
        """The gradient of one tensor, (K, ...); a view into `grads`."""
        grad = self.tensors[name].grad
        assert grad is not None
        return grad

    def blocks(self, flat: Tensor) -> Iterator[Tensor]:
        """Split a flat buffer like `values` into its tensors, each (K, ...)."""
        start = 0
        for tensor in self.tensors.values():
            stop = start + tensor.numel()
            yield flat[start:stop].view(tensor.shape)
            start = stop


def build(
    adapters: Sequence[Adapter],
    trainable: Callable[[str], bool],
    device: torch.device,
    ranks: Sequence[int | None] = (),
) -> Stack:
    """Stack the clients' adapters, at the largest rank among them.

    If all start from one adapter, tensors that are not trained are expanded from one copy.

    Args:
        ranks: how many ranks of its adapter each client trains, the first ones; None, or no entry, for all.

    Raises:
        AdapterError: two of them differ in names, or in shapes by more than the rank.
    """
    copies = {name: side_by_side([adapter[name] for adapter in adapters], device) for name in adapters[0]}
    names = [name for name in copies if trainable(name)]
    values = torch.cat([copies[name].reshape(-1) for name in names]) if names else torch.empty(0)
    grads = torch.zeros_like(values)
    tensors, start = {}, 0
    for name in names:
        stop = start + copies[name].numel()
        view = values[start:stop].view(copies[name].shape).detach().requires_grad_()
        view.grad = grads[start:stop].view(copies[name].shape)  # autograd adds into it in place
        tensors[name], start = view, stop
    frozen = {name: copies[name] for name in copies if name not in tensors}
    own = ranks or [None] * len(adapters)
    masks = {name: mask for name in tensors if (mask := _mask(name, adapters, own, device)) is not None}
    fixed = {name: tensors[name].detach().clone() for name in masks}
    return Stack(values=values, grads=grads, tensors=tensors, frozen=frozen, masks=masks, fixed=fixed)


def side_by_side(tensors: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Stack K tensors to (K, ...), padded with zeros to the largest; a shared tensor is one expanded copy."""
    first = tensors[0]
    if all(tensor is first for tensor in tensors):
        return torch.from_numpy(first.copy()).to(device).expand(len(tensors), *first.shape)
    shape = tuple(max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True))
    whole = np.zeros((len(tensors), *shape), first.dtype)
    for own, tensor in zip(whole, tensors, strict=True):
        own[tuple(map(slice, tensor.shape))] = tensor
    return torch.from_numpy(whole).to(device)


def _mask(
    name: str, adapters: Sequence[Adapter], ranks: Sequence[int | None], device: torch.device
) -> Tensor | None:
    """True where a client trains the entry, (K, ...); None if all clients train all of it."""
    shapes = [adapter[name].shape for adapter in adapters]
    trained = [of_rank(name, shape, rank) for shape, rank in zip(shapes, ranks, strict=True)]
    if len({*shapes, *trained}) == 1:
        return None
    whole = tuple(map(max, *shapes)) if len(shapes) > 1 else shapes[0]
    mask = np.zeros((len(shapes), *whole), bool)
    for own, shape in zip(mask, trained, strict=True):
        own[tuple(map(slice, shape))] = True
    return torch.from_numpy(mask).to(device)


def keep_fixed(stack: Stack) -> None:
    """Set the entries that are not trained back: weight decay moves what has no gradient."""
    with torch.no_grad():
        for name, mask in stack.masks.items():
            torch.where(mask, stack.tensors[name], stack.fixed[name], out=stack.tensors[name])


def clip(stack: Stack, norm: float) -> Tensor:
    """Clip each client's gradient in place to `norm` (0: no limit); returns the norms before, (K,)."""
    squares = [grad.flatten(1).square().sum(1) for grad in stack.blocks(stack.grads)]  # (K,) each
    norms = torch.stack(squares).sum(0).sqrt_()
    if norm:
        scale = (norm / (norms + 1e-6)).clamp(max=1.0)
        # else a gradient that overflows would count as none
        scale = torch.where(norms.isfinite(), scale, math.nan)
        for grad in stack.blocks(stack.grads):
            grad.mul_(scale.view(-1, 1, 1))
    return norms


def rate(tuning: TuningTable, step: int, steps: int) -> float:
    """Learning-rate multiplier at step 0 .. steps - 1 of a visit; 0 after its end."""
    if step >= steps:
        return 0.0
    if step < tuning.warmup_steps:
        return (step + 1) / (tuning.warmup_steps + 1)
    length = max(1, steps - tuning.warmup_steps)
    return decay(tuning.schedule, (step - tuning.warmup_steps) / length, tuning.final_share)


def round_rate(tuning: TuningTable, round: int, rounds: int) -> float:
    """Learning rate of a round, 0 .. rounds - 1, before the schedule within a visit is applied."""
    return tuning.learning_rate * decay(tuning.round_schedule, round / rounds, tuning.final_share)


def decay(schedule: str, progress: float, final: float) -> float:
    """Multiplier of a schedule, from 1 at progress 0 to `final` at progress 1."""
    match schedule:
        case "linear":
            return 1 + (final - 1) * progress
        case "cosine":
            return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
        case _:
            return 1.0


def trained_adapters(
    stack: Stack, starts: Sequence[Adapter], ranks: Sequence[int | None] = ()
) -> list[Adapter]:
    """Trained tensors of each client, at the rank that it trained."""
    host = {name: tensor.detach().to("cpu").numpy() for name, tensor in stack.tensors.items()}
    own = ranks or [None] * len(starts)
    return [
        Adapter({name: corner(host[name][k], of_rank(name, start[name].shape, rank)) for name in host})
        for k, (start, rank) in enumerate(zip(starts, own, strict=True))
    ]
