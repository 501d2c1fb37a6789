"""LoRA layers that hold a stack of adapters over one frozen base: row k of a batch belongs to adapter k.

`y = base(x) + scale * B_k A_k dropout(x)` for every token of the rows of adapter k (LoRA, arXiv
2106.09685), in linear modules and in each expert of a mixture whose matrices are stacked in one parameter.
One forward pass trains K clients, and their gradients are never mixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shepherd.core import Adapter, Payload, require_same_layout, require_shapes, seed_for, shapes_of
from shepherd.errors import AdapterError, BaseError
from shepherd.model import text_path
from shepherd.model.pass_plan import PassPlan, Segment, active_plan
from shepherd.settings import AdapterTable

PREFIX = "base_model.model."  # PEFT's names start with it
EXPERTS = ("num_experts", "has_gate", "has_bias", "is_transposed", "_apply_gate")
"""Attributes that transformers' `use_experts_implementation` gives a module, and that its `forward` reads."""

REFUSED_BY_PEFT = {
    kind: "out_proj" for kind in ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
}
"""Model type -> linear modules that PEFT never adapts, since fused kernels read their weights directly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target of the adapters: a linear module, or a parameter that stacks one matrix per expert."""

    module: str
    inputs: int
    outputs: int
    parameter: str = ""
    """Name of the stacked parameter in a module of experts; "" for a linear module."""
    experts: int = 1
    wrappers: int = 0
    """Number of PEFT's wrappers outside this target's: PEFT wraps a module once per parameter."""

    @property
    def name_a(self) -> str:
        """PEFT name of the factor A."""
        return f"{self._prefix}.lora_A.weight"

    @property
    def name_b(self) -> str:
        """PEFT name of the factor B."""
        return f"{self._prefix}.lora_B.weight"

    @property
    def _prefix(self) -> str:
        return f"{PREFIX}{self.module}{'.base_layer' * self.wrappers}"


class StackedLinear(nn.Module):
    """A frozen linear module with a stack of K adapters: A (K, r, in), B (K, out, r), float32."""

    a: Tensor
    b: Tensor

    def __init__(self, base: nn.Module, *, scale: float, dropout: float, index: int = 0) -> None:
        super().__init__()
        self.base = base
        self.index = index
        self.scale = scale
        self.dropout = dropout

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):  # some architectures read their dtype
            return getattr(self.base, name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); the active plan says which tokens belong to which adapter."""
        plan = active_plan()
        if plan is None:
            return self.base(x)  # type: ignore[no-any-return]
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        segments = _in_tokens(plan, len(flat))
        keep = _dropout_mask(flat, segments, self.dropout if plan.training else 0.0, self.index)
        passed, low = _Down.apply(flat, self.a, segments, keep)  # type: ignore[no-untyped-call]
        y: Tensor = self.base(passed if flat.requires_grad else flat)  # flat, since it is added to in place
        y = _Up.apply(y, low, self.b, segments, self.scale)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


class StackedExperts(nn.Module):
    """Frozen experts, some of whose stacked parameters carry a stack of K adapters, float32.

    `factors` holds, by parameter, A (K, E r, in) and B (K, out, r E), laid out as in PEFT's `ParamWrapper`:
    the rows of A are expert by expert, the columns of B rank by rank. The change of expert e for adapter k
    is scale * B_ke A_ke, which is never computed as a matrix.
    """

    factors: dict[str, tuple[Tensor, Tensor]]

    def __init__(self, base: nn.Module, *, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.factors = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # the block around the experts may read their attributes
            return getattr(super().__getattr__("base"), name)

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(tokens, width), each token's experts and their weights (tokens, choices) -> (tokens, width)."""
        plan = active_plan()
        if plan is None:
            return self.base(hidden, chosen, weights)  # type: ignore[no-any-return]
        base: Any = self.base
        tokens, choices = chosen.shape
        routed = _route(chosen, _in_tokens(plan, tokens), base.num_experts)
        x = hidden.unsqueeze(1).expand(-1, choices, -1).reshape(tokens * choices, -1)
        x = x.index_select(0, routed.pairs)  # each pair once, so that gradients are summed in a fixed order
        x = self._product(x, "gate_up_proj" if base.has_gate else "up_proj", routed)
        x = base._apply_gate(x) if base.has_gate else base.act_fn(x)
        x = self._product(x, "down_proj", routed)
        if getattr(base, "has_post_expert_norm", False):
            x = base.post_expert_norm(x)
        x = x * weights.reshape(-1, 1).index_select(0, routed.pairs)
        y = x.new_zeros(tokens * choices, x.shape[1]).index_copy(0, routed.pairs, x)
        return y.view(tokens, choices, -1).sum(1).to(hidden.dtype)

    def _product(self, x: Tensor, name: str, routed: _Routed) -> Tensor:
        """(pairs, in) -> (pairs, out), by the matrix of each pair's expert and the factors of its adapter."""
        stack: Tensor = getattr(self.base, name)  # (E, out, in), or (E, in, out) where transposed
        matrices = stack if self.base.is_transposed else stack.transpose(1, 2)
        if name not in self.factors:
            return self._frozen(x, matrices, name, routed)
        a, b = self.factors[name]
        experts = len(stack)
        a = a.reshape(len(a) * experts, -1, a.shape[2])  # (K E, r, in)
        b = b.unflatten(2, (-1, experts)).permute(0, 3, 1, 2).flatten(0, 1)  # (K E, out, r)
        passed, low = _Down.apply(x, a, routed.segments, None)  # type: ignore[no-untyped-call]
        y = self._frozen(passed if x.requires_grad else x, matrices, name, routed)
        return _Up.apply(y, low, b, routed.segments, self.scale)  # type: ignore[no-any-return, no-untyped-call]

    def _frozen(self, x: Tensor, matrices: Tensor, name: str, routed: _Routed) -> Tensor:
        parts = zip(x.split(routed.counts), matrices, strict=True)
        y = torch.cat([part @ matrix for part, matrix in parts])  # an expert without tokens gives no row
        if self.base.has_bias:
            y = y + getattr(self.base, f"{name}_bias").index_select(0, routed.experts)
        return y


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routed:
    """Pairs of a token and one of its experts, sorted by expert and then by segment."""

    pairs: Tensor  # (P,) which of the (tokens * choices)
    experts: Tensor  # (P,)
    counts: list[int]  # (E,) pairs of each expert
    segments: tuple[Segment, ...]  # of the pairs; adapter k at expert e counts as adapter k E + e


def _route(chosen: Tensor, segments: Sequence[Segment], experts: int) -> _Routed:
    """Sort the choices by expert and segment; those without an expert (numbers of E or more) are left out."""
    stops = torch.tensor([s.stop for s in segments], device=chosen.device)
    tokens = torch.arange(len(chosen), device=chosen.device)
    owners = torch.searchsorted(stops, tokens, right=True)  # (tokens,) the segment of each
    key = (chosen * len(segments) + owners.unsqueeze(1)).reshape(-1)
    pairs = key.argsort(stable=True)
    counts = key.bincount(minlength=experts * len(segments))[: experts * len(segments)].tolist()
    found, start = [], 0
    for index, count in enumerate(counts):
        expert, owner = divmod(index, len(segments))
        if count:
            adapter = segments[owner].adapter * experts + expert
            found.append(Segment(adapter=adapter, start=start, stop=start + count))
        start += count
    pairs = pairs[:start]
    each = [sum(counts[e : e + len(segments)]) for e in range(0, len(counts), len(segments))]
    return _Routed(
        pairs=pairs,
        experts=chosen.reshape(-1).index_select(0, pairs),
        counts=each,
        segments=tuple(found),
    )


def _in_tokens(plan: PassPlan, tokens: int) -> tuple[Segment, ...]:
    if tokens == plan.size:
        return plan.segments
    if len(plan.segments) == 1:  # all tokens are one client's, whatever a router chose
        return (replace(plan.segments[0], start=0, stop=tokens),)
    each, left = divmod(tokens, plan.size)
    if left:
        raise BaseError(
            "this base routes tokens between its layers (a mixture of experts?), so the clients' rows cannot be"
            " separated there; set other adapter.targets, such as the attention's"
        )
    return tuple(Segment(adapter=s.adapter, start=s.start * each, stop=s.stop * each) for s in plan.segments)


def _dropout_mask(x: Tensor, segments: Sequence[Segment], p: float, index: int) -> Tensor | None:
    """Mask (tokens, in) of 0 or 1 / (1 - p), drawn from each row's and layer's own seed (law 1)."""
    if p == 0.0:
        return None
    mask = torch.empty_like(x)
    for segment in segments:
        generator = torch.Generator(x.device).manual_seed(seed_for(segment.dropout_seed, index))
        mask[segment.start : segment.stop].bernoulli_(1 - p, generator=generator)
    return mask.div_(1 - p)


class _Down(torch.autograd.Function):
    """x (tokens, in) -> x itself for the base, and A_k dropout(x), (r, n) per segment, end to end.

    The base's gradient by x passes through here, and the stack's is added to it in place. The low-rank side
    is (r, n), because products with a transposed tall matrix are slow on a processor.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, segments: tuple[Segment, ...], keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        a = a.to(x.dtype)
        dropped = x if keep is None else x * keep
        low = x.new_empty(x.shape[0] * a.shape[1])
        for s, part in _segment_parts(low, segments, a.shape[1]):
            torch.mm(a[s.adapter], dropped[s.start : s.stop].T, out=part)
        ctx.save_for_backward(x, a, keep)
        ctx.segments = segments
        return x, low

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_low = grads
        x, a, keep = ctx.saved_tensors
        grad_a = torch.zeros(a.shape, device=x.device) if ctx.needs_input_grad[1] else None
        for s, part in _segment_parts(grad_low, ctx.segments, a.shape[1]):
            rows = slice(s.start, s.stop)
            if grad_a is not None:
                grad_a[s.adapter] += part @ (x[rows] if keep is None else x[rows] * keep[rows])  # (r, in)
            if grad_x is not None and keep is None:
                grad_x[rows].addmm_(part.T, a[s.adapter])
            elif grad_x is not None:
                grad_x[rows] += (part.T @ a[s.adapter]) * keep[rows]
        return grad_x, grad_a, None, None


class _Up(torch.autograd.Function):
    """y (tokens, out) + scale * B_k low, in place, one product per segment; `low` is from `_Down`."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, low: Tensor, b: Tensor, segments: tuple[Segment, ...], scale: float
    ) -> Tensor:
        ctx.mark_dirty(y)
        b = (b * scale).to(y.dtype)
        for s, part in _segment_parts(low, segments, b.shape[2]):
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
            _segment_parts(low, ctx.segments, b.shape[2]), _segment_parts(grad_low, ctx.segments, b.shape[2]), strict=True
        )
        for (s, part), (_, grad_part) in parts:
            rows = grad[s.start : s.stop]
            torch.mm(b[s.adapter].T, rows.T, out=grad_part)
            if grad_b is not None:
                grad_b[s.adapter] += (part @ rows).T
        return grad, grad_low, None if grad_b is None else grad_b.mul_(ctx.scale), None, None


def _segment_parts(low: Tensor, segments: Sequence[Segment], rank: int) -> Iterator[tuple[Segment, Tensor]]:
    """Each segment's (r, n) in the flat (r * tokens,)."""
    for s in segments:
        yield s, low[rank * s.start : rank * s.stop].view(rank, s.stop - s.start)


def attach(model: nn.Module, table: AdapterTable) -> tuple[Target, ...]:
    """Replace every target by an adapted layer; returns the targets in the model's order.

    Raises:
        BaseError: a name of a target matches no linear module or stacked parameter that text reaches, or the
            base has none.
    """
    towers = text_path.towers(model)
    linear = _linear_targets(model, table.targets, towers)
    stacked = _parameter_targets(model, table.target_parameters, towers)
    scale = scaling(table)
    targets: list[Target] = []
    for name, module in list(model.named_modules()):
        layer: nn.Module
        if name in linear:
            inputs, outputs = widths(module) or (0, 0)
            targets.append(Target(module=name, inputs=inputs, outputs=outputs))
            layer = StackedLinear(module, scale=scale, dropout=table.dropout, index=len(targets))
        elif name in stacked:
            targets += _targets_of(name, module, stacked[name])
            layer = StackedExperts(module, scale=scale)
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
    return tuple(targets)


def _targets_of(name: str, module: Any, parameters: Sequence[str]) -> Iterator[Target]:
    for index, parameter in enumerate(parameters):
        experts, *sizes = getattr(module, parameter).shape
        inputs, outputs = sizes if module.is_transposed else reversed(sizes)
        yield Target(
            module=name,
            inputs=inputs,
            outputs=outputs,
            parameter=parameter,
            experts=experts,
            wrappers=len(parameters) - 1 - index,  # PEFT wraps them in the module's order
        )


def scaling(table: AdapterTable) -> float:
    """The scale of an adapter: alpha / r, or alpha / sqrt(r) if rank-stabilised (arXiv 2312.03732)."""
    return table.alpha / (math.sqrt(table.rank) if table.rank_stabilised else table.rank)


def widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear module, quantised or not; None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if isinstance(module, nn.Linear) and _gives_one_tensor(module):
        return module.in_features, module.out_features
    return None


def _gives_one_tensor(module: nn.Linear) -> bool:
    """Whether a subclass of `nn.Linear` is a plain linear module: Falcon's is, Llama 4's router is not."""
    kind = type(module)
    if kind.forward is nn.Linear.forward or ".modeling_" not in kind.__module__:
        return True
    try:
        y = module(module.weight.new_zeros(1, module.in_features))
    except RuntimeError:
        return False
    return isinstance(y, Tensor) and y.shape == (1, module.out_features)


def stacks(module: nn.Module) -> tuple[str, ...]:
    """Parameters of a module of experts that stack one matrix per expert; () for any other module."""
    if not all(hasattr(module, name) for name in EXPERTS):
        return ()
    names = {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}
    found = [name for name, p in module.named_parameters(recurse=False) if name in names and p.ndim == 3]
    return tuple(found) if len(found) == len(names) else ()


def _linear_targets(model: nn.Module, targets: str | Sequence[str], towers: Sequence[str]) -> set[str]:
    """The names of the linear modules to adapt."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    found = {
        name
        for name, module in model.named_modules()
        if widths(module) is not None and module is not head and not text_path.within(name, towers)
    }
    if isinstance(targets, str):
        found -= {name for refused in refused_by_peft(model) for name in found if _matches(name, refused)}
        if not found:
            raise BaseError("this base has no linear module to adapt; use another base")
        return found
    for target in targets:
        if not any(_matches(name, target) for name in found):
            kinds = sorted({name.rpartition(".")[2] for name in found})
            raise BaseError(f"adapter.targets names {target!r}, {_why_not_linear(model, target, towers, kinds)}")
    return {name for name in found if any(_matches(name, target) for target in targets)}


def refused_by_peft(model: nn.Module) -> tuple[str, ...]:
    """Names of linear modules that PEFT refuses to adapt in a model of this type."""
    refused = REFUSED_BY_PEFT.get(model.config.model_type)  # type: ignore[union-attr, arg-type]
    there = refused and any(_matches(name, refused) for name, _ in model.named_modules())
    return (refused,) if refused and there else ()


def _why_not_linear(model: nn.Module, target: str, towers: Sequence[str], kinds: Sequence[str]) -> str:
    """Why no linear module can be adapted by this name, and what to write instead."""
    if not re.fullmatch(r"[\w.-]+", target):
        return f"a pattern, which is not supported; list the names of modules: {kinds}"
    for name, module in model.named_modules():
        if not _matches(name, target):
            continue
        if module is model.get_output_embeddings():  # type: ignore[operator]
            return "the head, which cannot be adapted: the loss is computed from it directly; remove it"
        if tower := text_path.within(name, towers):
            return f"which is only in {tower}, where text never goes; name modules of the text part: {kinds}"
        if names := [f"{name}.{parameter}" for parameter in stacks(module)]:
            return f"experts without linear modules; set adapter.target_parameters = {suffixes(names)}"
        return f"which is not a linear module but a {type(module).__name__}; the linear ones are {kinds}"
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if _matches(name, target) and leaf in stacks(model.get_submodule(owner)):
            return f"a stack of experts' matrices; set adapter.target_parameters = {suffixes([name])}"
        if _matches(name, target):
            shape = tuple(parameter.shape)
            return f"which is not a linear module but a parameter {shape}; the linear modules are {kinds}"
    return f"which this base lacks; it has {kinds}"


def _parameter_targets(model: nn.Module, targets: Sequence[str], towers: Sequence[str]) -> dict[str, list[str]]:
    """Module -> its stacked parameters that are adapted, in the module's order."""
    found: dict[str, list[str]] = {}
    for target in targets:
        hits = [name for name, _ in model.named_parameters() if _matches(name, target)]
        reached = [name for name in hits if not text_path.within(name, towers)]
        if not reached:
            raise BaseError(f"adapter.target_parameters names {target!r}, {_why_no_stack(model, hits, towers)}")
        for name in reached:
            owner, _, leaf = name.rpartition(".")
            if leaf not in stacks(model.get_submodule(owner)):
                kind = type(model.get_submodule(owner)).__name__
                raise BaseError(
                    f"adapter.target_parameters names {target!r}, a parameter of {owner} ({kind}), which does"
                    " not follow transformers' interface for experts, so the clients' tokens cannot be"
                    f" separated there; remove it{_suggest_parameters(model, towers)}"
                )
    for name, module in model.named_modules():
        chosen = [p for p in stacks(module) if any(_matches(f"{name}.{p}", target) for target in targets)]
        if chosen and not text_path.within(name, towers):
            found[name] = chosen
    return found


def _why_no_stack(model: nn.Module, hits: Sequence[str], towers: Sequence[str]) -> str:
    if hits:
        return f"which is only in {text_path.within(hits[0], towers)}, where text never goes; remove it"
    return f"which this base lacks; remove it{_suggest_parameters(model, towers)}"


def _suggest_parameters(model: nn.Module, towers: Sequence[str]) -> str:
    names = [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        for parameter in stacks(module)
        if not text_path.within(name, towers)
    ]
    return f", or set it to {suffixes(names)}" if names else " (this base has no stacked experts)"


def suffixes(names: Sequence[str]) -> list[str]:
    """The parts of names after the layer's number, each once and sorted.

    >>> suffixes(["model.layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj"])
    ['mlp.experts.down_proj']
    """
    return sorted({re.split(r"\.\d+\.", name)[-1] for name in names})


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def shapes(targets: Sequence[Target], rank: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of an adapter for these targets; each expert's matrix has this rank."""
    found = {}
    for target in targets:
        found[target.name_a] = (rank * target.experts, target.inputs)
        found[target.name_b] = (target.outputs, rank * target.experts)
    return found


def require_fits(targets: Sequence[Target], adapter: Adapter, what: str) -> None:
    """Raise AdapterError, naming the tensor, unless an adapter fits these targets, each at any rank.

    A is (r, in) and B (out, r), or (r experts, in) and (out, r experts), with one r for both.
    """
    expected = {}
    for target in targets:
        rank = max(1, adapter[target.name_a].shape[0] // target.experts) if target.name_a in adapter else 1
        expected.update(shapes([target], rank))
    require_shapes(expected, shapes_of(adapter), what)


def fresh(targets: Sequence[Target], rank: int, seed: int) -> Adapter:
    """A new adapter: A from U(-1/sqrt(in), 1/sqrt(in)) as in PEFT's default, B zero."""
    tensors: dict[str, Any] = {}
    for name, shape in shapes(targets, rank).items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(shape[1])
            rng = np.random.default_rng(seed_for(seed, "adapter", name))
            tensors[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        else:
            tensors[name] = np.zeros(shape, np.float32)
    return Adapter(tensors)


def layers(
    model: nn.Module, targets: Sequence[Target]
) -> Iterator[tuple[Target, StackedLinear | StackedExperts]]:
    """Each target with its adapted layer, in order; a layer of experts comes once for each of its targets."""
    for target in targets:
        layer = model.get_submodule(target.module)
        assert isinstance(layer, StackedLinear | StackedExperts)
        yield target, layer


def bind_adapters(model: nn.Module, targets: Sequence[Target], stack: Mapping[str, Tensor]) -> None:
    """Let every layer read its factors from `stack`: name -> (K, ...)."""
    for target, layer in layers(model, targets):
        a, b = stack[target.name_a], stack[target.name_b]
        if isinstance(layer, StackedExperts):
            layer.factors[target.parameter] = a, b
        else:
            layer.a, layer.b = a, b


def stacked(adapters: Sequence[Payload], device: torch.device) -> dict[str, Tensor]:
    """Stack K adapters: name -> (K, ...), in their own dtype.

    Raises:
        AdapterError: the adapters differ in names or shapes.
    """
    if not adapters:
        raise AdapterError("there is no adapter to stack; give at least one")
    for adapter in adapters[1:]:
        require_same_layout(adapters[0], adapter, "a stack of adapters")
    return {
        name: torch.from_numpy(np.stack([adapter[name] for adapter in adapters])).to(device)
        for name in adapters[0]
    }
