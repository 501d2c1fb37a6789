"""Useful floating-point operations of tuning, and the machine's measured peak of matrix products.

Useful is what the mathematics of LoRA tuning on the given examples needs, whoever does it: no padding,
no logits that train nothing, no recomputation. A multiply-add counts as two.

    for each token       4 P     the frozen linear layers: 2 P forward, 2 P the gradient by activations
                         6 A     the adapters: forward, gradient by activations, gradient by factors
    for each prediction  4 V d   the head, forward and gradient; V the vocabulary, d the width
    for each example     12 n (n + 1) / 2 H D a layer    scores and values, causal: 4 forward, 8 backward

P: weights of the base's linear layers but the head; A: an adapter's weights; H heads of D; n tokens.
The norms, activations and softmax count nothing. The first layer's gradient by its inputs, which nobody
needs, is counted: for 8 layers that is about one per cent too much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from shepherd.model import lora
from shepherd.settings import AdapterTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes that the formula needs; `targets` are the adapted modules."""

    linear: int
    adapter: int
    head: int
    attention: int
    """Layers * heads * head width."""
    targets: tuple[lora.Target, ...]


def shape_of(folder: str, adapter: AdapterTable) -> Shape:
    """The sizes from a base's configuration; no weight is loaded."""
    config = AutoConfig.from_pretrained(folder)
    everything = _targets(config, adapter.model_copy(update={"targets": "all-linear"}))
    targets = _targets(config, adapter)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linear=sum(target.inputs * target.outputs for target in everything),
        adapter=sum(adapter.rank * (target.inputs + target.outputs) for target in targets),
        head=config.vocab_size * config.hidden_size,
        attention=config.num_hidden_layers * config.num_attention_heads * width,
        targets=targets,
    )


def _targets(config: Any, adapter: AdapterTable) -> tuple[lora.Target, ...]:
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    return lora.attach(network, adapter)


def useful(shape: Shape, lengths: NDArray[np.int64], predictions: int) -> int:
    """FLOPs of one forward and backward pass over examples of these lengths."""
    tokens = int(lengths.sum())
    pairs = int((lengths * (lengths + 1) // 2).sum())
    return (
        tokens * (4 * shape.linear + 6 * shape.adapter)
        + predictions * 4 * shape.head
        + pairs * 12 * shape.attention
    )


def peak(dtype: torch.dtype, device: torch.device, sizes: Iterable[int], seconds: float = 1.0) -> float:
    """FLOP/s of the best of several square matrix products, each tried for about `seconds`."""
    return max(_speed(size, dtype, device, seconds) for size in sizes)


def _speed(size: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.mm(a, b)  # the first one sets up what the library keeps
    best, began = float("inf"), perf_counter()
    while perf_counter() - began < seconds:
        _finish(device)
        start = perf_counter()
        torch.mm(a, b, out=out)
        _finish(device)
        best = min(best, perf_counter() - start)
    return 2 * size**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
