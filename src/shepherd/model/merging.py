"""Merge an adapter into its base's weights, and write the result as a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from shepherd.core import Adapter
from shepherd.errors import AdapterError, BaseError
from shepherd.io.progress import stage
from shepherd.model import base as bases
from shepherd.model import files, lora
from shepherd.model.base import Base
from shepherd.model.exporting import Trained

Number = Literal["run", "float32", "bfloat16", "float16"]
"""Number type of written weights; "run" is the one that the base was tuned in."""


def write(folder: Path, trained: Trained, *, dtype: Number, shard_bytes: int) -> None:
    """Write a model that gives the same logits as base and adapter, within rounding.

    `AutoModelForCausalLM.from_pretrained(folder)` reads it back.

    Args:
        dtype: number type of the written weights.
        shard_bytes: largest size of one weights file, in bytes.

    Raises:
        BaseError: the base is quantised, or cannot be loaded again.
        AdapterError: a merged weight would not be finite.
        FolderError: the folder cannot be written.
    """
    network = merged(trained, number(trained.base, dtype))
    with files.replacing(folder) as scratch, stage(f"writing {folder}"):
        network.save_pretrained(scratch, max_shard_size=shard_bytes)
    files.write_tokenizer(folder, trained.base, trained.stop)


def number(base: Base, dtype: Number) -> torch.dtype:
    """The number type of this name."""
    return base.dtype if dtype == "run" else bases.pick_dtype(dtype, torch.device("cpu"))


def merged(trained: Trained, dtype: torch.dtype) -> Any:
    """The base's network with W + scale B A as its weights, on the processor.

    The base is loaded once more, in the numbers in which it is stored. Each matrix is merged in float64 and
    rounded once, to `dtype`.

    Raises:
        BaseError: the base is quantised, or cannot be loaded again.
        AdapterError: the adapter does not fit, or a weight would not be finite.
    """
    base = trained.base
    require_whole(base)
    lora.require_fits(base.targets, trained.adapter, "the adapter to merge")
    network = bases.load_network(base.table, torch.device("cpu"), "auto", trained.consent)
    weights = dict(network.named_parameters())
    changed: dict[str, Tensor] = {}
    with stage(f"merging the adapter into {base.name}", len(base.targets)) as progress, torch.no_grad():
        for target in base.targets:
            module = network.get_submodule(target.module)
            name = f"{target.module}.{target.parameter or 'weight'}"
            flips = module.is_transposed if target.parameter else isinstance(module, Conv1D)
            for expert, delta in enumerate(products(target, trained.adapter, lora.scaling(base.adapter))):
                whole = changed.setdefault(name, weights[name].to(dtype, copy=True))
                part = (weights[name][expert], whole[expert]) if target.parameter else (weights[name], whole)
                part[1].copy_(part[0].double() + (delta.T if flips else delta))
                if not bool(part[1].isfinite().all()):
                    raise AdapterError(
                        f"the adapter cannot be merged into {base.name}: {name} would not be finite in"
                        f" {str(dtype).removeprefix('torch.')}; merge it with dtype=float32"
                    )
            weights[name].data = changed[name]
            progress.advance()
        for name, parameter in network.named_parameters():
            parameter.data = parameter.data.to(dtype)
            if not bool(parameter.data.isfinite().all()):
                raise AdapterError(
                    f"{base.name} cannot be written in {str(dtype).removeprefix('torch.')}: {name} would not"
                    " be finite; merge it with dtype=float32"
                )
    return network


def products(target: lora.Target, adapter: Adapter, scale: float) -> Iterator[Tensor]:
    """scale B A, (out, in) in float64, of a linear module; of a stack, that of each expert in turn.

    The rows of A are expert by expert, and the columns of B rank by rank.
    """
    a = torch.from_numpy(adapter[target.name_a].copy()).double().view(target.experts, -1, target.inputs)
    b = torch.from_numpy(adapter[target.name_b].copy()).double().view(target.outputs, -1, target.experts)
    for expert in range(target.experts):
        yield scale * (b[:, :, expert] @ a[expert])


def require_whole(base: Base) -> None:
    """Raise BaseError if the base's weights are quantised: a merged weight has no place among them."""
    own = getattr(base.model.config, "quantization_config", None)
    if base.table.quantize != "none":
        how = f'model.quantize = "{base.table.quantize}"'
    elif own is not None:
        method = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", None)
        how = f"its config.json, quantization_config: {getattr(method, 'value', method)}"
    else:
        return
    raise BaseError(
        f"base {base.name} is quantised ({how}), and an adapter tuned over quantised weights cannot be merged"
        " into them; export the adapter alone, --to peft or --to gguf-adapter, or tune over an unquantised"
        " base"
    )
