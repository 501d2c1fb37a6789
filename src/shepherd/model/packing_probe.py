"""A probe of a base: a small copy of it with examples of two clients, on which the proof measures."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shepherd.core import Adapter
from shepherd.core.adapter import is_a
from shepherd.errors import BaseError
from shepherd.model import lora
from shepherd.model.base import Base

MAX_WHOLE_BYTES = 2**30  # in float32, up to which a base is proven whole
SHORT_TOKENS = 16  # that a longer window or chunk is shortened to
MAX_PROBE_TOKENS = 8192  # of an example, where shortening breaks the base
SHARED_TOKENS = 4  # that the first two examples begin with
BORDER_KEYS = re.compile(r"(window|window_size|window_len|chunk_size|index_topk|compress_rate)$")
SCALE_KEYS = re.compile(r"floor_scale$")  # tokens from which attention is scaled; some count across examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A copy of the base, examples of two clients, and a stack of their adapters."""

    base: Base
    layers: int | None
    """Number of leading layers in the copy; None for all."""
    slim: bool
    """Whether long windows and chunks are shortened in the copy."""
    examples: list[Tensor]
    stack: Mapping[str, Tensor]


def label(base: Base) -> str:
    """The base in messages: its name and its model type."""
    return f"base {base.name} ({base.model.config.model_type})"


def make_probe(base: Base, longest: int | None, *, slim: bool) -> Probe:
    """Make a probe of a base; with `slim`, of few layers and with short windows.

    Args:
        longest: tokens of the longest example; None for any length.

    Raises:
        BaseError: a window or chunk is too long to be measured and cannot be shortened.
    """
    layers = _layers_needed(base.model) if slim else None
    network = copy_network(base.model, torch.float32, layers)
    top = longest_border(network, longest or math.inf, shorten=slim)
    if top > MAX_PROBE_TOKENS:
        raise BaseError(
            f"{label(base)} has a window or chunk of {top} tokens, too long to prove what happens beyond it;"
            f" set data.max_tokens = {top}"
        )
    there = {name for name, _ in network.named_modules()}
    targets = tuple(target for target in base.targets if target.module in there)
    base = replace(base, model=network, dtype=torch.float32, targets=targets)
    top += top % 2  # even, so that the last token of each is read
    lengths = [min(length, base.max_length or length) for length in (top + 12, top + 10, top + 8, 6)]
    rng = np.random.default_rng(0)
    size = len(network.get_input_embeddings().weight)
    examples = [torch.from_numpy(rng.integers(0, size, length)).to(base.device) for length in lengths]
    examples[1][:SHARED_TOKENS] = examples[0][:SHARED_TOKENS]
    stack = lora.stacked([_adapter(base, seed) for seed in range(2)], base.device)
    return Probe(base=base, layers=layers, slim=slim, examples=examples, stack=stack)


def _adapter(base: Base, seed: int) -> Adapter:
    """An adapter as after some tuning: A as initialised, B no longer zero."""
    rng = np.random.default_rng(seed)
    first = lora.fresh(base.targets, base.adapter.rank, seed)
    return Adapter({name: a if is_a(name) else rng.normal(0, 0.02, a.shape) for name, a in first.items()})


def copy_network(network: Any, dtype: torch.dtype | None, layers: int | None = None) -> Any:
    """A copy with the first `layers` layers and weights in `dtype`; unchanged weights are shared.

    A quantised linear module becomes a random one of its shape, since the proof concerns the order of tokens.
    """
    known: dict[int, Any] = {}  # by the id of what they replace, as `copy.deepcopy` expects
    stack = _layers(network)
    dropped = {id(weight) for layer in stack[layers:] for weight in layer.parameters()} if layers else set()
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point():
            known[id(module)] = _random_linear(module, dtype)
    for weight in network.parameters():
        if id(weight) not in dropped and weight.is_floating_point():
            known[id(weight)] = nn.Parameter(weight.detach().to(dtype or weight.dtype), requires_grad=False)
    if layers:
        known[id(stack)] = nn.ModuleList([copy.deepcopy(layer, known) for layer in stack[:layers]])
    made = copy.deepcopy(network, known)
    if layers:
        made.config.get_text_config().num_hidden_layers = layers
    for module in made.modules() if dtype else ():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and dtype == torch.float32:
                module._buffers[name] = buffer.to(dtype)
    return made


def _random_linear(module: nn.Linear, dtype: torch.dtype | None) -> nn.Linear:
    device = module.weight.device
    linear = nn.Linear(
        module.in_features, module.out_features, module.bias is not None, device=device, dtype=dtype
    )
    with torch.no_grad():
        linear.weight.normal_(0, module.in_features**-0.5)
    return linear.requires_grad_(False)


def _layers(network: Any) -> nn.ModuleList:
    """The decoder's layers: the module list with most weights; empty if there is none."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=_size, default=nn.ModuleList())


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _layers_needed(network: Any) -> int | None:
    """Number of leading layers that include every kind of layer; None for all, as for a small base."""
    stack = _layers(network)
    if (
        4 * _size(network) <= MAX_WHOLE_BYTES
        or len(stack) != network.config.get_text_config().num_hidden_layers
    ):
        return None
    kinds = [_kind(network, index, layer) for index, layer in enumerate(stack)]
    return 1 + max(kinds.index(kind) for kind in kinds)


def _kind(network: Any, index: int, layer: nn.Module) -> tuple[Any, ...]:
    """What distinguishes a layer from others: its modules, their settings and windows, and its type."""
    types = getattr(network.config.get_text_config(), "layer_types", None)
    parts = [
        (name, type(module), *sorted((k, v) for k, v in vars(module).items() if _is_setting(k, v)))
        for name, module in layer.named_modules()
    ]
    return types[index] if types else None, *parts


def _is_setting(name: str, value: Any) -> bool:
    return isinstance(value, (bool, str)) or (isinstance(value, int) and bool(BORDER_KEYS.search(name)))


def longest_border(network: Any, longest: float, *, shorten: bool) -> int:
    """Longest window or chunk below `longest` tokens, after shortening with `shorten`; 0 for none.

    A scale is shortened whatever `longest` is: a packed batch reaches it even if no example does.
    """
    top = 0
    configs = {id(c): c for m in network.modules() if (c := getattr(m, "config", None)) is not None}
    text = network.config.get_text_config()
    for holder in (text, *configs.values(), *network.modules()):
        for name, value in list(vars(holder).items()):
            if SCALE_KEYS.search(name) and type(value) in (int, float) and value > SHORT_TOKENS:
                setattr(holder, name, SHORT_TOKENS)
            if BORDER_KEYS.search(name) and type(value) is int and 0 < value < longest:
                if shorten and value > SHORT_TOKENS:
                    setattr(holder, name, SHORT_TOKENS)
                top = max(top, getattr(holder, name))
    return top
