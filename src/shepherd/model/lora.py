"""Row k belongs to adapter k: linear layers that hold a stack of LoRA factors over one frozen base.

`y = base(x) + scale * B_k A_k dropout(x)` for every token of the rows of adapter k (LoRA, arXiv
2106.09685). One forward pass trains K clients, and their gradients never meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shepherd.core import Adapter, seed_for
from shepherd.errors import AdapterError, BaseError
from shepherd.model.layout import Layout, Segment, current
from shepherd.settings import AdapterTable

PREFIX = "base_model.model."  # PEFT's names start with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One adapted linear module: its name in the base, and its input and output widths."""

    module: str
    inputs: int
    outputs: int

    @property
    def name_a(self) -> str:
        return f"{PREFIX}{self.module}.lora_A.weight"

    @property
    def name_b(self) -> str:
        return f"{PREFIX}{self.module}.lora_B.weight"


class CohortLinear(nn.Module):
    """A frozen linear module with a stack of K adapters: A (K, r, in), B (K, out, r), float32."""

    a: Tensor
    b: Tensor

    def __init__(self, base: nn.Module, *, scale: float, dropout: float, place: int = 0) -> None:
        super().__init__()
        self.base = base
        self.place = place
        self.scale = scale
        self.dropout = dropout

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):  # some architectures read them, for a dtype
            return getattr(self.base, name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); which tokens are whose is in the running layout."""
        layout = current()
        if layout is None:
            return self.base(x)  # type: ignore[no-any-return]
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        segments = _in_tokens(layout, len(flat))
        keep = _dropout_mask(flat, segments, self.dropout if layout.training else 0.0, self.place)
        passed, low = _Down.apply(flat, self.a, segments, keep)  # type: ignore[no-untyped-call]
        y: Tensor = self.base(passed if flat.requires_grad else flat)  # flat: added to in place, so no view
        y = _Up.apply(y, low, self.b, segments, self.scale)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


def _in_tokens(layout: Layout, tokens: int) -> tuple[Segment, ...]:
    if tokens == layout.places:
        return layout.segments
    if len(layout.segments) == 1:  # whatever a router chose, it is all one client's
        return (replace(layout.segments[0], start=0, stop=tokens),)
    each, left = divmod(tokens, layout.places)
    if left:
        raise BaseError(
            "this base routes tokens between its layers (a mixture of experts?), so rows cannot be told"
            " apart there; name other adapter.targets, such as the attention's"
        )
    return tuple(
        Segment(adapter=s.adapter, start=s.start * each, stop=s.stop * each) for s in layout.segments
    )


def _dropout_mask(x: Tensor, segments: Sequence[Segment], p: float, place: int) -> Tensor | None:
    """(tokens, in) holding 0 or 1 / (1 - p), each row's and layer's drawn from its own seed (law 1)."""
    if p == 0.0:
        return None
    mask = torch.empty_like(x)
    for segment in segments:
        generator = torch.Generator(x.device).manual_seed(seed_for(segment.dropout_seed, place))
        mask[segment.start : segment.stop].bernoulli_(1 - p, generator=generator)
    return mask.div_(1 - p)


class _Down(torch.autograd.Function):
    """x (tokens, in) -> x itself for the base, and A_k dropout(x), (r, n) a segment, laid end to end.

    Since the base's gradient by x comes back through here, the stack's is added to it in place. The low side
    stands as (r, n), because products with a long narrow matrix turned are slow on a processor.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, segments: tuple[Segment, ...], keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        a = a.to(x.dtype)
        dropped = x if keep is None else x * keep
        low = x.new_empty(x.shape[0] * a.shape[1])
        for s, part in _parts(low, segments, a.shape[1]):
            torch.mm(a[s.adapter], dropped[s.start : s.stop].T, out=part)
        ctx.save_for_backward(x, a, keep)
        ctx.segments = segments
        return x, low

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_low = grads
        x, a, keep = ctx.saved_tensors
        grad_a = torch.zeros(a.shape, device=x.device) if ctx.needs_input_grad[1] else None
        for s, part in _parts(grad_low, ctx.segments, a.shape[1]):
            rows = slice(s.start, s.stop)
            if grad_a is not None:
                grad_a[s.adapter] += part @ (x[rows] if keep is None else x[rows] * keep[rows])  # (r, in)
            if grad_x is not None and keep is None:
                grad_x[rows].addmm_(part.T, a[s.adapter])
            elif grad_x is not None:
                grad_x[rows] += (part.T @ a[s.adapter]) * keep[rows]
        return grad_x, grad_a, None, None


class _Up(torch.autograd.Function):
    """y (tokens, out) + scale * B_k low, in place, one product a segment; low as from `_Down`."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, low: Tensor, b: Tensor, segments: tuple[Segment, ...], scale: float
    ) -> Tensor:
        ctx.mark_dirty(y)
        b = (b * scale).to(y.dtype)
        for s, part in _parts(low, segments, b.shape[2]):
            y[s.start : s.stop].addmm_(part.T, b[s.adapter].T)
        ctx.save_for_backward(low, b)
        ctx.segments, ctx.scale = segments, scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # (tokens, out)
        low, b = ctx.saved_tensors
        grad_low = torch.empty_like(low)
        grad_b = torch.zeros(b.shape, device=b.device) if ctx.needs_input_grad[2] else None
        parts = zip(
            _parts(low, ctx.segments, b.shape[2]), _parts(grad_low, ctx.segments, b.shape[2]), strict=True
        )
        for (s, part), (_, grad_part) in parts:
            rows = grad[s.start : s.stop]
            torch.mm(b[s.adapter].T, rows.T, out=grad_part)
            if grad_b is not None:
                grad_b[s.adapter] += (part @ rows).T
        return grad, grad_low, None if grad_b is None else grad_b.mul_(ctx.scale), None, None


def _parts(low: Tensor, segments: Sequence[Segment], rank: int) -> Iterator[tuple[Segment, Tensor]]:
    """Each segment's (r, n) in the flat (r * tokens,)."""
    for s in segments:
        yield s, low[rank * s.start : rank * s.stop].view(rank, s.stop - s.start)


def attach(model: nn.Module, table: AdapterTable) -> tuple[Site, ...]:
    """Put a CohortLinear in the place of every target; returns the sites in the model's order.

    Raises:
        BaseError: a target names no linear module, or there is no linear module at all.
    """
    found = {name: module for name, module in model.named_modules() if _widths(module) is not None}
    chosen = _chosen(model, found, table.targets)
    scale = scaling(table)
    sites = []
    for name in chosen:
        module = found[name]
        widths = _widths(module)
        assert widths is not None
        sites.append(Site(module=name, inputs=widths[0], outputs=widths[1]))
        parent, _, leaf = name.rpartition(".")
        layer = CohortLinear(module, scale=scale, dropout=table.dropout, place=len(sites))
        setattr(model.get_submodule(parent), leaf, layer)
    return tuple(sites)


def scaling(table: AdapterTable) -> float:
    """alpha / r, or alpha / sqrt(r) where rank-stabilised (arXiv 2312.03732)."""
    return table.alpha / (math.sqrt(table.rank) if table.rank_stabilised else table.rank)


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear module, quantised ones too; None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    # routers also choose experts (Llama 4), grouped ones are several in one (DeepSeek-V4)
    other = any(word in type(module).__name__ for word in ("Router", "Grouped"))
    if isinstance(module, nn.Linear) and not other:
        return module.in_features, module.out_features
    return None


def _chosen(model: nn.Module, found: Mapping[str, nn.Module], targets: str | Sequence[str]) -> list[str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    bodies = {name: module for name, module in found.items() if module is not head}
    if isinstance(targets, str):
        if not bodies:
            raise BaseError("this base has no linear module to adapt; use another base")
        return list(bodies)
    heads = [name for name, module in found.items() if module is head]
    for target in targets:
        if any(_is(name, target) for name in heads):
            raise BaseError(
                f"adapter.targets names {target!r}, the head of this base, which is not adapted here, since"
                " the loss is computed from its weights a part at a time; leave it out"
            )
        if not any(_is(name, target) for name in bodies):
            kinds = sorted({name.rpartition(".")[2] for name in bodies})
            raise BaseError(f"adapter.targets names {target!r}, which this base lacks; it has {kinds}")
    return [name for name in bodies if any(_is(name, target) for target in targets)]


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def shapes(sites: Sequence[Site], rank: int) -> dict[str, tuple[int, int]]:
    """The names and shapes of an adapter for these sites."""
    pairs = ((s.name_a, (rank, s.inputs)) for s in sites), ((s.name_b, (s.outputs, rank)) for s in sites)
    return {name: shape for pair in zip(*pairs, strict=True) for name, shape in pair}


def fresh(sites: Sequence[Site], rank: int, seed: int) -> Adapter:
    """A new adapter: A from U(-1/sqrt(in), 1/sqrt(in)) as in PEFT's default, B zero."""
    tensors: dict[str, Any] = {}
    for name, shape in shapes(sites, rank).items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(shape[1])
            rng = np.random.default_rng(seed_for(seed, "adapter", name))
            tensors[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        else:
            tensors[name] = np.zeros(shape, np.float32)
    return Adapter(tensors)


def layers(model: nn.Module, sites: Sequence[Site]) -> Iterator[tuple[Site, CohortLinear]]:
    """The adapted layers, in order."""
    for site in sites:
        layer = model.get_submodule(site.module)
        assert isinstance(layer, CohortLinear)
        yield site, layer


def hang(model: nn.Module, sites: Sequence[Site], stack: Mapping[str, Tensor]) -> None:
    """Let every layer read its factors from `stack`: name -> (K, ...)."""
    for site, layer in layers(model, sites):
        layer.a, layer.b = stack[site.name_a], stack[site.name_b]


def stacked(adapters: Sequence[Adapter], device: torch.device) -> dict[str, Tensor]:
    """K adapters as one stack: name -> (K, ...), float32.

    Raises:
        AdapterError: the adapters differ in names or shapes.
    """
    if not adapters:
        raise AdapterError("there is no adapter to stack; give at least one")
    return {
        name: torch.from_numpy(np.stack([adapter[name] for adapter in adapters])).to(device)
        for name in adapters[0]
    }
