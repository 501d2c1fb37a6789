"""Fit a run to the memory of a machine: how many clients to tune in one pass, in how many processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from shepherd.machine import limits, malloc
from shepherd.model import lora, pass_plan
from shepherd.model.base import Base, hidden_states, tuning_attention
from shepherd.training import stack

USABLE_SHARE = 0.6  # of the free memory; the rest is for the backward pass and other programs
PROCESS_BYTES = 500 * 2**20  # that PyTorch and transformers take in a process of their own
KERNEL_BYTES = 700 * 2**20  # of compiled products, which oneDNN keeps, one for each shape; measured
MIN_PARALLEL_OPERATIONS = 6e12  # about a minute of a core; below, starting processes costs more than it saves
USUAL_LENGTH = 96  # tokens of an example, where nothing is known of them
ADAPTER_COPIES = 6  # per client: values, gradients, two moments, and the update on its way
# These decide the tokens of a pass on a processor; measured in docs/benchmarks.md.
LAYER_OPERATIONS = 2.5e8  # in the fixed time that a layer takes in every pass, however few its tokens are
PREFIX_TOKENS = 40  # that a template writes before each example, computed once a row
OVERHEAD_SHARE = 0.04  # of a pass's time that both together may take
MIN_CPU_PASS_TOKENS, MAX_CPU_PASS_TOKENS = 512, 4096
CUDA_PASS_TOKENS = 16384


def use_threads(count: Literal["auto"] | int) -> None:
    """Compute with `count` processor threads; "auto" is one for each physical core of this process."""
    torch.set_num_threads(limits.cores() if count == "auto" else count)


def threads() -> int:
    """Number of processor threads in use."""
    return torch.get_num_threads()


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return limits.available_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How a run's work is divided; with more than one worker, workers are processes apart from this one."""

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
    hosts: int = 1,
    stack_size: int | None = None,
    more_ranks: int = 0,
    token_bytes: int | None = None,
    free: int | None = None,
) -> Sizes:
    """Choose the sizes that are not given, from the free memory and the number of cores.

    Args:
        clients: clients of one round.
        step_tokens: tokens of one client's optimiser step, on average.
        all_tokens: estimated tokens that the whole run tunes on.
        micro_batch: tokens of one pass; fewer are chosen if this many do not fit.
        hosts: machines like this one that the workers are spread over evenly.
        more_ranks: ranks of a client's adapter in addition to the run's, as for `adapter_bytes`.
        token_bytes: what one token keeps for the backward pass; None measures it on a short row.
        free: memory to fit into, in bytes; None is what is free now.
    """
    kept = bytes_per_token(base) if token_bytes is None else token_bytes
    usable = USABLE_SHARE * (free_bytes(base.device) if free is None else free)
    if workers is None:
        workers = _workers(base, clients, all_tokens, usable, micro_batch * kept, more_ranks)
    workers = min(workers, math.ceil(clients / (stack_size or 1)))
    share = usable / math.ceil(workers / hosts) - (workers > 1) * (PROCESS_BYTES + weight_bytes(base))
    micro_batch = max(1, min(micro_batch, int(share / kept)))
    if stack_size is None:
        fits = int((share - micro_batch * kept) / (ADAPTER_COPIES * adapter_bytes(base, more_ranks)))
        preferred = round(2 * micro_batch / max(1.0, step_tokens))
        stack_size = _even_stack_size(clients, workers, max(1, min(fits, preferred)))
    return Sizes(workers=workers, stack_size=stack_size, micro_batch_tokens=micro_batch)


def micro_batch(base: Base) -> int:
    """Tokens of one forward pass: on a processor the fewest that are about as fast as more.

    Depends on the base's sizes and on no measurement, so that a site and a simulation choose the same.
    """
    if base.device.type != "cpu":
        return CUDA_PASS_TOKENS
    model = base.model
    ends = {
        id(end.weight): end.weight.numel()
        for end in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    layers = model.config.get_text_config().num_hidden_layers
    fixed = layers * LAYER_OPERATIONS / (4 * max(1, parameters(base) - sum(ends.values())))  # in tokens
    preferred = 2 ** round(math.log2((fixed + PREFIX_TOKENS) / OVERHEAD_SHARE))
    return int(min(MAX_CPU_PASS_TOKENS, max(MIN_CPU_PASS_TOKENS, preferred)))


def _workers(base: Base, clients: int, tokens: float, free: float, pass_bytes: int, more_ranks: int) -> int:
    if base.device.type != "cpu" or 6 * parameters(base) * tokens < MIN_PARALLEL_OPERATIONS:
        return 1
    adapters = ADAPTER_COPIES * adapter_bytes(base, more_ranks)
    fits = int(free / (PROCESS_BYTES + weight_bytes(base) + pass_bytes + adapters))
    return max(1, min(threads(), clients, fits))


def _even_stack_size(clients: int, workers: int, most: int) -> int:
    """Clients of a stack, at most `most`, so that every worker gets equally many stacks.

    >>> _even_stack_size(10, 2, 3)
    3
    >>> _even_stack_size(10, 2, 10)
    5
    >>> _even_stack_size(5, 1, 10)
    5
    >>> _even_stack_size(6, 2, 2)
    1
    """
    turns = math.ceil(clients / (workers * most))
    while True:
        size = math.ceil(clients / (workers * turns))
        if size == 1 or math.ceil(clients / size) == workers * turns:
            return size
        turns += 1


def kernel_bytes(base: Base) -> int:
    """Bytes of compiled kernels that a process which tunes this base comes to hold, measured in bfloat16."""
    compiled = base.device.type == "cpu" and base.dtype == torch.bfloat16
    return KERNEL_BYTES if compiled else 0


def peak_bytes(device: torch.device) -> int | None:
    """Most memory that a base on this device and its tuning have taken so far, in bytes; None if unknown.

    On CUDA, the most that PyTorch has held of the device's memory, and `PROCESS_BYTES` of the driver's
    context, which it does not see and a plan counts. Elsewhere the host's memory of this process and its
    worker processes, as the sum of each one's own peak: pages that they share are counted in each of them.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + PROCESS_BYTES
    process = psutil.Process()
    found = [_peak(each.pid) for each in (process, *process.children(recursive=True))]
    known = [peak for peak in found if peak is not None]
    return sum(known) if known else None


def _peak(pid: int) -> int | None:
    """The peak of one process as Linux reports it; None where there is no such report."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf8").splitlines()
    except OSError:  # another system, or a process that ended
        return None
    named = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(named[0]) * 1024 if named else None


def resident_bytes() -> int:
    """Memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def process_bytes(base: Base) -> int:
    """Memory of this process without the base's weights; for a base on a GPU, what a process takes there."""
    if base.device.type != "cpu":
        return PROCESS_BYTES
    malloc.release_free_memory()
    return max(0, resident_bytes() - weight_bytes(base))


def parameters(base: Base) -> int:
    """Number of parameters of the frozen base; of quantised weights, those that they stand for."""
    packed = {
        id(module.weight): module.in_features * module.out_features
        for module in base.model.modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }
    return sum(packed.get(id(weight), weight.numel()) for weight in base.model.parameters())


def weight_bytes(base: Base) -> int:
    """Bytes of the frozen base in memory."""
    return sum(weight.nbytes for weight in base.model.parameters())


def adapter_bytes(base: Base, more_ranks: int = 0) -> int:
    """Bytes of one adapter in float32.

    Args:
        more_ranks: ranks in addition to the run's: side ranks of the aggregation, or a client's own.
    """
    rank = base.adapter.rank
    return sum(4 * int(np.prod(shape)) // rank * (rank + more_ranks) for shape in base.shapes.values())


def bytes_per_token(base: Base, length: int = USUAL_LENGTH) -> int:
    """Bytes that the forward pass keeps for the backward pass, for each token of an example of this length.

    Measured on rows of two lengths, since some of it, such as copies of stacked experts' factors, is kept
    once a pass. Neither row is longer than what the base reads. Attention may keep its weights, which are
    more a token in longer examples.
    """
    many = max(3, min(length, base.max_length or length))
    few = many // 3
    return (_kept_bytes(base, many) - _kept_bytes(base, few)) // (many - few)


def _kept_bytes(base: Base, tokens: int) -> int:
    """Bytes that the forward pass over one row keeps, without the base's own weights."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    adapters = stack.build([base.zero], lambda name: True, base.device)
    lora.bind_adapters(base.model, base.targets, adapters.all)
    ids = torch.zeros(tokens, dtype=torch.long, device=base.device)
    if base.packed:
        plan = pass_plan.packed([tokens], [pass_plan.Segment(adapter=0, start=0, stop=tokens)], base.device)
        positions = torch.arange(tokens, device=base.device)
    else:
        plan, ids, positions = pass_plan.padded(1, tokens, 0), ids.unsqueeze(0), None
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        pass_plan.use_plan(plan),
        tuning_attention(base),
    ):
        hidden_states(base, ids, positions)
    return sum(size for pointer, size in kept.items() if pointer not in weights)
