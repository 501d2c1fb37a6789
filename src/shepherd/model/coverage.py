"""Coverage: which weights of a base its adapters reach, and why they leave out the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shepherd.model import lora, lora_layers, text_path

EMBEDDINGS = "embeddings and head"
VECTORS = "norms, biases and convolutions"
LINEAR = "linear modules that adapter.targets leaves out"
MATRICES = "matrices that are no linear module"
STACKED = "stacked parameters"
UNREACHED = "text does not reach"
MIN_MENTIONED_SHARE = 0.01  # of the layers' weights; a smaller reason is in `left_out` only


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Numbers of weights of a base: in all, and in matrices that have an adapter."""

    parameters: int
    """All weights; a shared one counts once, and a quantised one counts as one weight."""
    adapted: int
    """Weights in matrices that have an adapter."""
    left_out: Mapping[str, int]
    """Reason -> weights that it leaves out; with `adapted` these are all. A reason names its modules."""
    share: float
    """Share of adapted weights in the matrices of the layers, without embeddings and towers; in [0, 1]."""
    sentence: str
    """A summary in words, shown when a base is loaded."""


def coverage(network: nn.Module, targets: Sequence[lora.Target]) -> Coverage:
    """The coverage of these targets in a network that `lora.attach` has changed."""
    towers = text_path.towers(network)
    adapted = {id(_weight(layer.base, target)) for target, layer in lora.layers(network, targets)}
    counts: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    reached = 0
    for name, module, leaf, parameter in _parameters(network):
        weights = _count(module, leaf, parameter)
        if id(parameter) in adapted:
            reached += weights
            continue
        reason = _reason(network, name, module, parameter, towers)
        counts[reason] = counts.get(reason, 0) + weights
        full = name if reason == LINEAR else f"{name}.{leaf}"
        names.setdefault(reason, []).append(text_path.within(name, towers) or full)
    matrices = reached + sum(counts.get(reason, 0) for reason in (LINEAR, MATRICES, STACKED))
    mentioned = {
        reason: names[reason] for reason in counts if counts[reason] >= MIN_MENTIONED_SHARE * matrices
    }
    share = reached / max(1, matrices)
    return Coverage(
        parameters=reached + sum(counts.values()),
        adapted=reached,
        left_out={_with_names(reason, names[reason]): count for reason, count in counts.items()},
        share=share,
        sentence=_sentence(network, share, mentioned),
    )


def _parameters(network: nn.Module) -> list[tuple[str, nn.Module, str, nn.Parameter]]:
    """Each parameter once: its module's name in the original base, the module, and its own name there."""
    seen: set[int] = set()
    found = []
    for name, module in network.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((_original_name(network, name), module, leaf, parameter))
    return found


def _original_name(network: nn.Module, name: str) -> str:
    """A module's name without the adapted layer that wraps it."""
    around, _, leaf = name.rpartition(".")
    adapted = isinstance(
        network.get_submodule(around), lora_layers.StackedLinear | lora_layers.StackedExperts
    )
    return around if leaf == "base" and adapted else name


def _weight(base: Any, target: lora.Target) -> nn.Parameter:
    weight: nn.Parameter = getattr(base, target.parameter or "weight")
    return weight


def _count(module: nn.Module, leaf: str, parameter: nn.Parameter) -> int:
    widths = lora.widths(module)
    if widths is None or leaf != "weight":
        return parameter.numel()
    return widths[0] * widths[1]  # a quantised weight is stored as fewer, larger numbers


def _reason(
    network: Any, name: str, module: nn.Module, parameter: nn.Parameter, towers: Sequence[str]
) -> str:
    head = network.get_output_embeddings()
    if text_path.within(name, towers):
        return UNREACHED
    if isinstance(module, nn.Embedding) or module is head:
        return EMBEDDINGS
    if lora.widths(module) is not None and parameter.ndim > 1:
        return LINEAR
    convolves = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    expert_biases = parameter.ndim == 2 and lora.stacks(module)
    if parameter.ndim < 2 or convolves or expert_biases or min(parameter.shape) == 1:
        return VECTORS
    return MATRICES if parameter.ndim == 2 else STACKED


def _with_names(reason: str, names: Sequence[str]) -> str:
    if reason in (EMBEDDINGS, VECTORS):
        return reason
    short = list(dict.fromkeys(names)) if reason == UNREACHED else lora.suffixes(names)
    return f"{reason}: {', '.join(short)}"


def _sentence(network: nn.Module, share: float, names: Mapping[str, Sequence[str]]) -> str:
    """The summary in words; `names` are the parameters or towers of each reason that is mentioned."""
    parts = []
    if stacked := names.get(STACKED):
        short = ", ".join(lora.suffixes(stacked))
        layers = len({name.rpartition(".")[0] for name in stacked})
        parts.append(
            f"the experts of {layers} layer{'s' * (layers > 1)} ({short}) are stacked parameters; name them"
            " in adapter.target_parameters to tune them"
            if _tunable(network).issuperset(stacked)
            else f"{short} are stacked parameters, which cannot be tuned here"
        )
    if matrices := names.get(MATRICES):
        parts.append(f"{', '.join(lora.suffixes(matrices))} are in no linear module")
    if linear := names.get(LINEAR):
        parts.append(f"adapter.targets leaves out {', '.join(lora.suffixes(linear))}")
    if towers := names.get(UNREACHED):
        parts.append(f"text does not reach {', '.join(dict.fromkeys(towers))}")
    share_said = f"adapters reach {share:.0%} of the weights in the layers' matrices"
    return f"{share_said}: {'; '.join(parts)}" if parts else share_said


def _tunable(network: nn.Module) -> set[str]:
    """The stacked parameters that `adapter.target_parameters` may name."""
    return {
        f"{_original_name(network, name)}.{parameter}"
        for name, module in network.named_modules()
        for parameter in lora.stacks(module)
    }
