"""The rank of a pair of LoRA factors: A (r, in) has r rows, and B (out, r) has r columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter, is_a, is_b
from shepherd.core.messages import Update
from shepherd.errors import AdapterError


def of_rank(name: str, shape: tuple[int, ...], rank: int | None) -> tuple[int, ...]:
    """The shape of a factor at a rank that is no larger: rows of A, columns of B; None keeps it.

    >>> of_rank("q.lora_A.weight", (8, 64), 4), of_rank("q.lora_B.weight", (64, 8), 4)
    ((4, 64), (64, 4))
    """
    if rank is None:
        return shape
    if is_a(name):
        return (min(rank, shape[0]), *shape[1:])
    return (*shape[:-1], min(rank, shape[-1])) if is_b(name) else shape


def padded(adapter: Adapter, ranks: int) -> Adapter:
    """The adapter with this many ranks of zeros after its own; its product stays the same.

    >>> padded(Adapter({"q.lora_A.weight": [[1, 2]]}), 1)["q.lora_A.weight"].tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    """
    if not ranks:
        return adapter
    more = {True: ((0, ranks), (0, 0)), False: ((0, 0), (0, ranks))}
    return Adapter({name: np.pad(tensor, more[is_a(name)]) for name, tensor in adapter.items()})


def unpadded(adapter: Adapter, ranks: int) -> Adapter:
    """The adapter without this many of its last ranks.

    >>> unpadded(Adapter({"q.lora_A.weight": [[1, 2], [0, 0]]}), 1)["q.lora_A.weight"].tolist()
    [[1.0, 2.0]]
    """
    if not ranks:
        return adapter
    axes = {name: 0 if is_a(name) else -1 for name in adapter}
    shapes = {name: of_rank(name, t.shape, t.shape[axes[name]] - ranks) for name, t in adapter.items()}
    return Adapter({name: corner(tensor, shapes[name]) for name, tensor in adapter.items()})


def corner(tensor: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The first rows and columns of a tensor, as many as `shape` says; the tensor itself if that is all."""
    return tensor if tensor.shape == shape else tensor[tuple(map(slice, shape))]


def require_whole_rank(adapter: Adapter, update: Update) -> None:
    """Raise AdapterError, naming the client, if its update has another rank than the adapter."""
    for name, tensor in update.delta.items():
        whole = adapter[name].shape if name in adapter else tensor.shape
        if tensor.shape == whole:
            continue
        for axis, is_factor in enumerate((is_a, is_b)):
            rank = tensor.shape[axis] if tensor.ndim == 2 else 0
            if is_factor(name) and rank != whole[axis] and of_rank(name, whole, rank) == tensor.shape:
                raise AdapterError(
                    f"client {update.client} has rank {rank} in tensor {name} and the adapter rank"
                    f" {whole[axis]}, and factors are combined rank by rank; set [aggregation] name ="
                    ' "product", which takes unequal ranks'
                )
