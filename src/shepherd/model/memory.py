"""What a machine can hold: how many clients to tune at once, and an allocator that keeps its pages."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import psutil
import torch
from torch import Tensor

from shepherd.core import Adapter
from shepherd.model import layout, lora, stack
from shepherd.model.attention import PACKED
from shepherd.model.base import Base, attending, hidden_states

USABLE = 0.6  # of the memory that is free, the rest is for the backward pass and everybody else
COPIES = 6  # of an adapter a client: values, gradients, two moments, and the update on its way


def keep_pages() -> bool:
    """Tell glibc to keep freed memory instead of giving it back and faulting it in again each layer.

    Returns whether there was a glibc to tell. Numbers are those of malloc.h.
    """
    trim_threshold, mmap_max = -1, -4
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def use_threads(count: int | None) -> None:
    """Compute with `count` processor threads; None is one for each core this process may use."""
    torch.set_num_threads(count or psutil.cpu_count(logical=False) or 1)


def threads() -> int:
    """The processor threads in use."""
    return torch.get_num_threads()


def free_bytes(device: torch.device) -> int:
    """Memory that a tuning may take on this device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def fitting_micro_batch(base: Base, tokens: int) -> int:
    """`tokens`, or fewer where a pass of so many would not fit into the memory that is free.

    Measures what one token leaves for the backward pass by running a short row once.
    """
    fits = int(USABLE * free_bytes(base.device) / bytes_per_token(base))
    return max(1, min(tokens, fits))


def cohort_size(base: Base, micro_batch: int, step_tokens: float) -> int:
    """How many clients to tune at once: enough that their steps fill two passes, and no more than fit.

    Args:
        micro_batch: tokens of one pass.
        step_tokens: tokens of one client's optimiser step, on average.
    """
    adapter_bytes = sum(4 * int(np.prod(shape)) for shape in base.shapes.values())
    left = USABLE * free_bytes(base.device) - micro_batch * bytes_per_token(base)
    fits = int(left / (COPIES * adapter_bytes))
    return max(1, min(fits, round(2 * micro_batch / max(1.0, step_tokens))))


def bytes_per_token(base: Base, tokens: int = 64) -> int:
    """Bytes that the forward pass keeps for the backward pass, for each token of a row."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    zero = Adapter({name: np.zeros(shape) for name, shape in base.shapes.items()})
    cohort = stack.build(zero, lambda name: True, 1, base.device)
    lora.hang(base.model, base.sites, cohort.all)
    plan = layout.packed([tokens], [layout.Segment(adapter=0, start=0, stop=tokens)], base.device)
    places = torch.arange(tokens, device=base.device)
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        layout.running(plan),
        attending(base, PACKED),
    ):
        hidden_states(base, torch.zeros_like(places), places)
    return sum(size for pointer, size in kept.items() if pointer not in weights) // tokens
