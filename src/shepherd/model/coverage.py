"""How much of a base its adapters reach, and what they leave out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shepherd.model import lora, text_path

EMBEDDINGS = "embeddings and head"
VECTORS = "norms, biases and convolutions"
LINEAR = "linear modules that adapter.targets leaves out"
MATRICES = "matrices that are no linear module"
STACKED = "stacked parameters"
UNREACHED = "text does not reach"
WORTH_SAYING = 0.01  # of the layers' weights; a smaller reason is in `left_out` only


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Weights of a base: how many there are, and how many stand in a matrix that has an adapter."""

    parameters: int
    """Each counted once, however often it is used, and as one even where it is stored in four bits."""
    adapted: int
    left_out: Mapping[str, int]
    """Why -> weights; with `adapted` these are all. A reason names the modules where it is not plain."""
    share: float
    """Of the weights in matrices of the layers that text passes, in [0, 1]: no embeddings, head or towers."""
    sentence: str
    """All this in words, to be shown when a base is loaded."""


def coverage(network: nn.Module, sites: Sequence[lora.Site]) -> Coverage:
    """What the adapters at these sites reach of a network that `lora.attach` has been given."""
    towers = text_path.towers(network)
    adapted = {id(_weight(layer.base, site)) for site, layer in lora.layers(network, sites)}
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
    said = {reason: names[reason] for reason in counts if counts[reason] >= WORTH_SAYING * matrices}
    share = reached / max(1, matrices)
    return Coverage(
        parameters=reached + sum(counts.values()),
        adapted=reached,
        left_out={_named(reason, names[reason]): count for reason, count in counts.items()},
        share=share,
        sentence=_sentence(network, share, said),
    )


def _parameters(network: nn.Module) -> list[tuple[str, nn.Module, str, nn.Parameter]]:
    """Each parameter once: its module's name in the base as it was loaded, the module, its own name there."""
    seen: set[int] = set()
    found = []
    for name, module in network.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((_plain(network, name), module, leaf, parameter))
    return found


def _plain(network: nn.Module, name: str) -> str:
    """A module's name without the adapted layer around it."""
    around, _, leaf = name.rpartition(".")
    adapted = isinstance(network.get_submodule(around), lora.StackedLinear | lora.CohortExperts)
    return around if leaf == "base" and adapted else name


def _weight(base: Any, site: lora.Site) -> nn.Parameter:
    weight: nn.Parameter = getattr(base, site.parameter or "weight")
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


def _named(reason: str, names: Sequence[str]) -> str:
    if reason in (EMBEDDINGS, VECTORS):
        return reason
    short = list(dict.fromkeys(names)) if reason == UNREACHED else lora.suffixes(names)
    return f"{reason}: {', '.join(short)}"


def _sentence(network: nn.Module, share: float, names: Mapping[str, Sequence[str]]) -> str:
    """`names` are the parameters or towers of each reason that is to be said."""
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
        parts.append(f"{', '.join(lora.suffixes(matrices))} stand in no linear module")
    if linear := names.get(LINEAR):
        parts.append(f"adapter.targets leaves out {', '.join(lora.suffixes(linear))}")
    if towers := names.get(UNREACHED):
        parts.append(f"text does not reach {', '.join(dict.fromkeys(towers))}")
    share_said = f"adapters reach {share:.0%} of the weights in the layers' matrices"
    return f"{share_said}: {'; '.join(parts)}" if parts else share_said


def _tunable(network: nn.Module) -> set[str]:
    """The stacked parameters that `adapter.target_parameters` may name."""
    return {
        f"{_plain(network, name)}.{parameter}"
        for name, module in network.named_modules()
        for parameter in lora.stacks(module)
    }
