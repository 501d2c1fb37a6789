"""A merged model, or an adapter alone, as one GGUF file for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shepherd.data import foreign_templates
from shepherd.errors import AdapterError
from shepherd.io import paths
from shepherd.model import files, gguf_architectures, gguf_file, gguf_vocabulary, lora, merging
from shepherd.model.exporting import Trained
from shepherd.model.gguf_architectures import Architecture
from shepherd.model.gguf_file import Number, Value

Array = NDArray[np.float32]
ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of the numbers that divide the rotary frequencies."""


def write_model(path: Path, trained: Trained, number: Number) -> None:
    """Write base and adapter as one GGUF model, with the tokenizer and the run's chat template.

    Raises:
        BaseError: the architecture, its tokenizer or its quantisation has no verified form in GGUF.
        AdapterError: a merged weight would not be finite.
        FolderError: the folder cannot be written.
    """
    gguf_file.require_installed()
    base = trained.base
    config = base.model.config.get_text_config()
    how = gguf_architectures.of(config, base.name)
    merging.require_whole(base)
    keys = gguf_vocabulary.metadata(
        base.tokenizer,
        config.vocab_size,
        trained.stop,
        foreign_templates.jinja(trained.template, base.tokenizer),
        base.name,
    )
    network = merging.merged(trained, torch.float32 if number == "q8_0" else getattr(torch, number))
    state = {name: tensor.detach() for name, tensor in network.named_parameters()}  # a tied one once
    named = gguf_file.names(how.name, config.num_hidden_layers, state)
    if strange := sorted(state.keys() - named.keys()):
        raise AdapterError(
            f"base {base.name} has a tensor {strange[0]} that GGUF does not know; export it --to merged"
        )
    factors = gguf_architectures.rope_factors(config) if how.permuted else None
    shapes = {
        named[name]: tuple(tensor.T.shape if how.flips(name) else tensor.shape)
        for name, tensor in state.items()
    }

    def values() -> Iterator[tuple[str, Array]]:
        if factors is not None:
            yield ROPE_FACTORS, factors
        for name, tensor in state.items():
            yield named[name], how.stored(name, tensor.float().numpy(), config)

    gguf_file.write(
        path,
        how.name,
        {**_about(trained, "model"), **_prefixed(how, config), **keys},
        ({} if factors is None else {ROPE_FACTORS: factors.shape}) | shapes,
        values(),
        number,
    )


def write_adapter(path: Path, trained: Trained, number: Number) -> None:
    """Write the adapter alone, for llama.cpp's `--lora` and Ollama's `ADAPTER`.

    llama.cpp scales B A by alpha / r with one alpha for all tensors, and r read from the tensor. Here every
    product has one scale s, rank-stabilised or not, whatever its rank: alpha is s r for the usual rank r, and
    where a tensor has another rank r', B is written times r' / r.

    Raises:
        BaseError: the architecture is not verified.
        AdapterError: a target is a stack of experts' matrices, or has no name in GGUF.
        FolderError: the folder cannot be written.
    """
    gguf_file.require_installed()
    base = trained.base
    config = base.model.config.get_text_config()
    how = gguf_architectures.of(config, base.name)
    if stacks := [target for target in base.targets if target.parameter]:
        raise AdapterError(
            f"the adapter of {stacks[0].module}.{stacks[0].parameter} is one of stacked experts, which is not"
            " verified as a GGUF adapter; export it --to merged or --to peft"
        )
    lora.require_fits(base.targets, trained.adapter, "the adapter to write")
    adapter = files.without_dead_ranks(trained.adapter, base)
    weights = {target: f"{target.module}.weight" for target in base.targets}
    named = gguf_file.names(how.name, config.num_hidden_layers, weights.values())
    if strange := sorted(set(weights.values()) - named.keys()):
        raise AdapterError(
            f"{strange[0]} of base {base.name} has no name in GGUF; export the adapter --to peft"
        )
    ranks = lora.ranks(base.targets, adapter)
    usual = max(ranks.values(), key=list(ranks.values()).count)

    def factors() -> Iterator[tuple[str, Array]]:
        for target, name in weights.items():
            a, b = adapter[target.name_a], adapter[target.name_b]
            rows = how.rows(name, config)
            b = (b if rows is None else b[rows]) * np.float32(ranks[target.name_a] / usual)
            yield f"{named[name]}.lora_a", a
            yield f"{named[name]}.lora_b", b

    shapes = {
        f"{named[name]}.lora_{kind}": adapter[tensor].shape
        for target, name in weights.items()
        for kind, tensor in (("a", target.name_a), ("b", target.name_b))
    }
    scale = lora.scaling(base.adapter)
    keys: dict[str, Value] = {"adapter.type": "lora", "adapter.lora.alpha": float(scale * usual)}
    gguf_file.write(path, how.name, {**_about(trained, "adapter"), **keys}, shapes, factors(), number)


def _about(trained: Trained, kind: str) -> dict[str, Value]:
    """General metadata: what the file is, and the base that it was made of."""
    name, revision = files.named(trained.base)
    short = name.rstrip("/").rpartition("/")[2]
    about: dict[str, Value] = {
        "general.type": kind,
        "general.name": short,
        "general.base_model.count": 1,
        "general.base_model.0.name": short,
    }
    if paths.is_hub_id(name):
        about["general.base_model.0.repo_url"] = f"https://huggingface.co/{name}"
    if revision:
        about["general.base_model.0.version"] = revision
    return about


def _prefixed(how: Architecture, config: Any) -> dict[str, Value]:
    return {f"{how.name}.{key}": value for key, value in how.keys(config).items()}
