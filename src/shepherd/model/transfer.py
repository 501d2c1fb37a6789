"""Many small tensors to a device in one copy that nothing waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
ALIGNMENT_BYTES = 16  # of each tensor in the common buffer, whatever its dtype


def to_device(value: T, device: torch.device) -> T:
    """`value` with every tensor of it on a device; itself where that is the processor.

    Tensors are looked for in dataclasses and tuples. They travel as one buffer, from pinned memory to CUDA: a
    copy from other memory would wait there for all the work before it. What is the same tensor, or the same
    dataclass, stays the same.
    """
    if device.type == "cpu":
        return value
    found = list({id(tensor): tensor for tensor in _tensors(value)}.values())
    ends = np.cumsum([0, *(-(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for tensor in found)])
    buffer = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    places = [slice(start, start + t.nbytes) for t, (start, _) in zip(found, pairwise(ends), strict=True)]
    for tensor, place in zip(found, places, strict=True):
        buffer[place].view(tensor.dtype).copy_(tensor.reshape(-1))
    there = buffer.to(device, non_blocking=True)
    moved = {
        id(tensor): there[place].view(tensor.dtype).view(tensor.shape)
        for tensor, place in zip(found, places, strict=True)
    }
    return _replaced(value, moved)  # type: ignore[no-any-return]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _replaced(value: Any, known: dict[int, Any]) -> Any:
    """The value with what is in `known`, by the id of the original, in its place."""
    if isinstance(value, tuple):
        return tuple(_replaced(each, known) for each in value)
    if id(value) not in known and is_dataclass(value) and not isinstance(value, type):
        own = {field.name: _replaced(getattr(value, field.name), known) for field in fields(value)}
        known[id(value)] = replace(value, **own)
    return known.get(id(value), value)
