"""What a machine can hold: how many clients to tune at once, in how many processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from shepherd.model import layout, lora
from shepherd.model.base import Base, hidden_states, tuning_attention
from shepherd.training import stack

USABLE = 0.6  # of the memory that is free, the rest is for the backward pass and everybody else
PROCESS = 500 * 2**20  # bytes that PyTorch and transformers take in a process of their own
LONG = 6e12  # operations, about a minute of a core: below it, starting processes costs more than it saves
COPIES = 6  # of an adapter a client: values, gradients, two moments, and the update on its way
# What decides the tokens of a pass on a processor; measured in docs/benchmarks.md.
LAYER = 2.5e8  # operations in the time that a layer takes in every pass, however few its tokens are
PREFIX = 40  # tokens that a template writes before each example, computed once a row
OVERHEAD = 0.04  # of a pass's time, that both together may take
PROCESSOR_PASS, CUDA_PASS = (512, 4096), 16384  # tokens: the least and the most, and the one number


def use_threads(count: Literal["auto"] | int) -> None:
    """Compute with `count` processor threads; "auto" is one for each core this process may use."""
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1 if count == "auto" else count)


def threads() -> int:
    """The processor threads in use."""
    return torch.get_num_threads()


def free_bytes(device: torch.device) -> int:
    """Memory that a tuning may take on this device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How a run's work is laid out on the machine. More than one worker are processes beside this one."""

    workers: int
    stack_size: int
    micro_batch_tokens: int


def sizes(
    base: Base,
    *,
    clients: int,
    step_tokens: float,
    all_tokens: float,
    micro_batch: int,
    workers: int | None = None,
    stack_size: int | None = None,
) -> Sizes:
    """Choose what is not given, from the memory that is free and the cores there are.

    Measures what one token leaves for the backward pass by running a short row once.

    Args:
        clients: of one round.
        step_tokens: tokens of one client's optimiser step, on average.
        all_tokens: that the whole run tunes on, about.
        micro_batch: tokens of one pass; fewer where so many would not fit.
    """
    kept = bytes_per_token(base)
    free = USABLE * free_bytes(base.device)
    if workers is None:
        workers = _workers(base, clients, all_tokens, free, micro_batch * kept)
    workers = min(workers, math.ceil(clients / (stack_size or 1)))
    share = free / workers - (workers > 1) * (PROCESS + weight_bytes(base))
    micro_batch = max(1, min(micro_batch, int(share / kept)))
    if stack_size is None:
        fits = int((share - micro_batch * kept) / (COPIES * adapter_bytes(base)))
        wanted = round(2 * micro_batch / max(1.0, step_tokens))
        stack_size = _even(clients, workers, max(1, min(fits, wanted)))
    return Sizes(workers=workers, stack_size=stack_size, micro_batch_tokens=micro_batch)


def micro_batch(base: Base) -> int:
    """Tokens of one forward pass: on a processor the fewest that are about as fast as more.

    Follows the base's sizes and nothing measured, so that a site and a simulation choose the same.
    """
    if base.device.type != "cpu":
        return CUDA_PASS
    model = base.model
    ends = {
        id(end.weight): end.weight.numel()
        for end in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    layers = model.config.get_text_config().num_hidden_layers
    fixed = layers * LAYER / (4 * max(1, parameters(base) - sum(ends.values())))  # in tokens
    wanted = math.log2((fixed + PREFIX) / OVERHEAD)
    least, most = PROCESSOR_PASS
    return int(min(most, max(least, 2 ** round(wanted))))


def _workers(base: Base, clients: int, tokens: float, free: float, pass_bytes: int) -> int:
    if base.device.type != "cpu" or 6 * parameters(base) * tokens < LONG:
        return 1
    fits = int(free / (PROCESS + weight_bytes(base) + pass_bytes + COPIES * adapter_bytes(base)))
    return max(1, min(threads(), clients, fits))


def _even(clients: int, workers: int, most: int) -> int:
    """Clients of a group, at most `most`, so that every worker gets as many groups as the others.

    >>> _even(10, 2, 3)
    3
    >>> _even(10, 2, 10)
    5
    >>> _even(5, 1, 10)
    5
    >>> _even(6, 2, 2)
    1
    """
    turns = math.ceil(clients / (workers * most))
    while True:
        size = math.ceil(clients / (workers * turns))
        if size == 1 or math.ceil(clients / size) == workers * turns:
            return size
        turns += 1


def parameters(base: Base) -> int:
    """Of the frozen base."""
    return sum(weight.numel() for weight in base.model.parameters())


def weight_bytes(base: Base) -> int:
    """Of the frozen base in memory."""
    return sum(weight.nbytes for weight in base.model.parameters())


def adapter_bytes(base: Base) -> int:
    """Of one adapter in float32."""
    return sum(4 * int(np.prod(shape)) for shape in base.shapes.values())


def bytes_per_token(base: Base) -> int:
    """Bytes that the forward pass keeps for the backward pass, for each token of a row.

    From rows of two lengths, since a part is kept once a pass, such as copies of stacked experts' factors.
    Neither is longer than what the base reads.
    """
    many = min(96, base.max_length or 96)
    few = many // 3
    return (_kept_bytes(base, many) - _kept_bytes(base, few)) // (many - few)


def _kept_bytes(base: Base, tokens: int) -> int:
    """That the forward pass over one row keeps, the base's own weights apart."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    cohort = stack.build([base.zero], lambda name: True, base.device)
    lora.bind_adapters(base.model, base.sites, cohort.all)
    ids = torch.zeros(tokens, dtype=torch.long, device=base.device)
    if base.packed:
        plan = layout.packed([tokens], [layout.Segment(adapter=0, start=0, stop=tokens)], base.device)
        positions = torch.arange(tokens, device=base.device)
    else:
        plan, ids, positions = layout.padded(1, tokens, 0), ids.unsqueeze(0), None
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        layout.running(plan),
        tuning_attention(base),
    ):
        hidden_states(base, ids, positions)
    return sum(size for pointer, size in kept.items() if pointer not in weights)
