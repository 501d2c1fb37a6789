"""Find the parts of a base that text never reaches: encoders of images and sound, and their projections.

They are found by the structure of transformers' models, without a list of names and without running the
model. So a site that knows only a base's configuration finds the same parts as one that has loaded its
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from shepherd.errors import BaseError


def towers(network: Any) -> tuple[str, ...]:
    """The names of the outermost modules of a causal language model that text alone never passes through.

    If the configuration has a text part of its own, these are all modules other than the text decoder and the
    head; and in any case the models whose inputs (`input_modalities`) do not include text, with the modules
    that only contain them.

    Raises:
        BaseError: the configuration has several text parts.
    """
    try:
        text = network.config.get_text_config()
    except ValueError as error:
        raise BaseError(
            f"base {network.config.model_type} has several text parts; give a causal language model"
        ) from error
    off_path = [] if text is network.config else _off_text_path(network, network.get_decoder())
    holders = [
        _holder(network, name)
        for name, module in network.named_modules()
        if isinstance(module, PreTrainedModel) and "text" not in getattr(module, "input_modalities", "text")
    ]
    outermost: list[str] = []
    for name in sorted({*off_path, *holders}, key=len):
        if not within(name, outermost):
            outermost.append(name)
    return tuple(name for name, _ in network.named_modules() if name in outermost)


def within(name: str, towers: Sequence[str]) -> str | None:
    """The one of these modules that has this name or contains the module with it; None if there is none."""
    return next((tower for tower in towers if f"{name}.".startswith(f"{tower}.")), None)


def _off_text_path(network: Any, decoder: nn.Module) -> list[str]:
    """Modules next to the path from the model down to its decoder, without the head."""
    spared = {id(decoder), id(network.get_output_embeddings())}
    way = {id(module) for _, module in network.named_modules() if any(m is decoder for m in module.modules())}
    return [
        f"{name}.{leaf}" if name else leaf
        for name, module in network.named_modules()
        if id(module) in way and module is not decoder
        for leaf, child in module.named_children()
        if id(child) not in way | spared
    ]


def _holder(network: nn.Module, name: str) -> str:
    """The outermost module around a part that is not a model itself, and so exists only for that part."""
    while (parent := name.rpartition(".")[0]) and not isinstance(
        network.get_submodule(parent), PreTrainedModel
    ):
        name = parent
    return name
