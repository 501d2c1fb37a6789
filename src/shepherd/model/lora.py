"""LoRA adapters of a base: their targets, the adapted layers, and the names and shapes of their factors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shepherd.core import Adapter, Payload, require_same_layout, require_shapes, seed_for, shapes_of
from shepherd.core.adapter import is_a
from shepherd.errors import AdapterError, BaseError
from shepherd.model import text_path
from shepherd.model.lora_layers import Rows, StackedExperts, StackedLinear
from shepherd.settings import AdapterTable

PEFT_PREFIX = "base_model.model."  # PEFT's names start with it
EXPERT_ATTRIBUTES = ("num_experts", "has_gate", "has_bias", "is_transposed", "_apply_gate")
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
        return f"{PEFT_PREFIX}{self.module}{'.base_layer' * self.wrappers}"


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
    if not all(hasattr(module, name) for name in EXPERT_ATTRIBUTES):
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
        found -= {name for refused in refused_by_peft(model) for name in found if matches(name, refused)}
        if not found:
            raise BaseError("this base has no linear module to adapt; use another base")
        return found
    for target in targets:
        if not any(matches(name, target) for name in found):
            kinds = sorted({name.rpartition(".")[2] for name in found})
            raise BaseError(
                f"adapter.targets names {target!r}, {_why_no_linear(model, target, towers, kinds)}"
            )
    return {name for name in found if any(matches(name, target) for target in targets)}


def refused_by_peft(model: nn.Module) -> tuple[str, ...]:
    """Names of linear modules that PEFT refuses to adapt in a model of this type."""
    refused = REFUSED_BY_PEFT.get(model.config.model_type)  # type: ignore[union-attr, arg-type]
    there = refused and any(matches(name, refused) for name, _ in model.named_modules())
    return (refused,) if refused and there else ()


def _why_no_linear(model: nn.Module, target: str, towers: Sequence[str], kinds: Sequence[str]) -> str:
    """Why no linear module can be adapted by this name, and what to write instead."""
    if not re.fullmatch(r"[\w.-]+", target):
        return f"a pattern, which is not supported; list the names of modules: {kinds}"
    for name, module in model.named_modules():
        if not matches(name, target):
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
        if matches(name, target) and leaf in stacks(model.get_submodule(owner)):
            return f"a stack of experts' matrices; set adapter.target_parameters = {suffixes([name])}"
        if matches(name, target):
            shape = tuple(parameter.shape)
            return f"which is not a linear module but a parameter {shape}; the linear modules are {kinds}"
    return f"which this base lacks; it has {kinds}"


def _parameter_targets(
    model: nn.Module, targets: Sequence[str], towers: Sequence[str]
) -> dict[str, list[str]]:
    """Module -> its stacked parameters that are adapted, in the module's order."""
    found: dict[str, list[str]] = {}
    for target in targets:
        hits = [name for name, _ in model.named_parameters() if matches(name, target)]
        reached = [name for name in hits if not text_path.within(name, towers)]
        if not reached:
            raise BaseError(
                f"adapter.target_parameters names {target!r}, {_why_no_stack(model, hits, towers)}"
            )
        for name in reached:
            owner, _, leaf = name.rpartition(".")
            if leaf not in stacks(model.get_submodule(owner)):
                kind = type(model.get_submodule(owner)).__name__
                raise BaseError(
                    f"adapter.target_parameters names {target!r}, a parameter of {owner} ({kind}), which does"
                    " not follow transformers' interface for experts, so the clients' tokens cannot be"
                    f" separated there; remove it{_suggestion(model, towers)}"
                )
    for name, module in model.named_modules():
        chosen = [p for p in stacks(module) if any(matches(f"{name}.{p}", target) for target in targets)]
        if chosen and not text_path.within(name, towers):
            found[name] = chosen
    return found


def _why_no_stack(model: nn.Module, hits: Sequence[str], towers: Sequence[str]) -> str:
    if hits:
        return f"which is only in {text_path.within(hits[0], towers)}, where text never goes; remove it"
    return f"which this base lacks; remove it{_suggestion(model, towers)}"


def _suggestion(model: nn.Module, towers: Sequence[str]) -> str:
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


def matches(name: str, target: str) -> bool:
    """Whether a target names this module: by its whole name, or by the end of it."""
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


def ranks(targets: Sequence[Target], adapter: Adapter) -> dict[str, int]:
    """Name of A -> rank of each target's factors, for an adapter that fits the targets."""
    return {target.name_a: adapter[target.name_a].shape[0] // target.experts for target in targets}


def at_ranks(targets: Sequence[Target], adapter: Adapter, ranks: Mapping[str, int]) -> Adapter:
    """The adapter with its last ranks left out, or ranks of zeros after them, by the name of A."""
    if all(adapter[t.name_a].shape[0] == ranks[t.name_a] * t.experts for t in targets):
        return adapter
    tensors: dict[str, Any] = {}
    for target in targets:
        rank = ranks[target.name_a]
        by_expert = adapter[target.name_a].reshape(target.experts, -1, target.inputs)  # (E, r, in)
        by_rank = adapter[target.name_b].reshape(target.outputs, -1, target.experts)  # (out, r, E)
        tensors[target.name_a] = _at_rank(by_expert, rank).reshape(-1, target.inputs)
        tensors[target.name_b] = _at_rank(by_rank, rank).reshape(target.outputs, -1)
    return Adapter(tensors)


def _at_rank(tensor: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """(x, r, y) -> (x, rank, y)."""
    return np.pad(tensor[:, :rank], ((0, 0), (0, max(0, rank - tensor.shape[1])), (0, 0)))


def of_one_rank(targets: Sequence[Target], adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters at the largest rank that any of them has, with zeros in the ranks that one lacks."""
    each = [ranks(targets, adapter) for adapter in adapters]
    most = {name: max(own[name] for own in each) for name in each[0]} if each else {}
    return [at_ranks(targets, adapter, most) for adapter in adapters]


def first(targets: Sequence[Target], rank: int, seed: int) -> Adapter:
    """The adapter that a run with this seed begins with."""
    return fresh(targets, rank, seed_for(seed, "adapter"))


def fresh(targets: Sequence[Target], rank: int, seed: int) -> Adapter:
    """A new adapter: A from U(-1/sqrt(in), 1/sqrt(in)) as in PEFT's default, B zero."""
    tensors: dict[str, Any] = {}
    for name, shape in shapes(targets, rank).items():
        if is_a(name):
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


def for_answers(stack: Mapping[str, Tensor], scale: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """A stack for passes without a gradient: in the base's dtype, and with the scale in B.

    The layers would compute both in every pass, and an answer takes a pass for each of its tokens.
    """
    return {name: (t * scale if not is_a(name) else t).to(dtype) for name, t in stack.items()}


def bind_rows(model: nn.Module, targets: Sequence[Target], rows: Mapping[str, Tensor]) -> None:
    """Let every layer add the gradients of single examples to `rows`: name -> (E, r, in), or for a B
    (E, r, out); names that are not trained are missing."""
    for target, layer in layers(model, targets):
        if isinstance(layer, StackedLinear):
            layer.rows = Rows(rows.get(target.name_a), rows.get(target.name_b))


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
