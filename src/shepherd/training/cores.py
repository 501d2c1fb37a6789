"""B trained as Q R inside a visit: the optimiser steps on the core R, and the layers read B.

    B  =  B_0 + Q (R - R_0),    gradient of R  =  Q^T gradient of B

so the first step starts from the bits of the broadcast. See `shepherd.core.cores`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shepherd.core.cores import Bases
from shepherd.training.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """What the optimiser steps on: R (K, r, r) in place of each B that has a basis."""

    stack: Stack
    bases: Mapping[str, Tensor]
    """Q (out, r), float32, on the tensors' device."""
    starts: Mapping[str, tuple[Tensor, Tensor]]
    """B_0 (K, out, r) and R_0 (K, r, r)."""


def build(adapters: Stack, bases: Bases) -> Cores:
    """The cores of a stack of adapters before their first step."""
    device = adapters.values.device
    q = {name: torch.from_numpy(basis.astype(np.float32)).to(device) for name, basis in bases.items()}
    started = {name: tensor.detach().clone() for name, tensor in adapters.tensors.items()}
    first = {name: q[name].T @ tensor if name in q else tensor for name, tensor in started.items()}
    values = torch.cat([tensor.reshape(-1) for tensor in first.values()])
    grads = torch.zeros_like(values)
    tensors, start = {}, 0
    for name, tensor in first.items():
        stop = start + tensor.numel()
        tensors[name] = values[start:stop].view(tensor.shape)
        tensors[name].grad = grads[start:stop].view(tensor.shape)
        start = stop
    stack = Stack(values=values, grads=grads, tensors=tensors, frozen={})
    return Cores(stack=stack, bases=q, starts={name: (started[name], first[name].clone()) for name in q})


def pull(cores: Cores, adapters: Stack) -> None:
    """Take the gradients of the factors to the cores."""
    for name in adapters.tensors:
        grad, own = adapters.grad(name), cores.stack.grad(name)
        own.copy_(cores.bases[name].T @ grad if name in cores.bases else grad)


def push(cores: Cores, adapters: Stack) -> None:
    """Write the factors of the cores' values."""
    with torch.no_grad():
        for name, tensor in adapters.tensors.items():
            value = cores.stack.tensors[name]
            if name in cores.bases:
                whole, core = cores.starts[name]
                value = whole + cores.bases[name] @ (value - core)
            tensor.copy_(value)
