"""Sizes of a base and shapes of its adapters, from its configuration without its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shepherd.consent import NOTHING, Consent
from shepherd.errors import BaseError
from shepherd.model import lora, remote_code
from shepherd.model.base import own_max_length
from shepherd.model.digest import require_no_adapter
from shepherd.settings import AdapterTable, ModelTable


def size(model: ModelTable, consent: Consent = NOTHING) -> tuple[int, int | None]:
    """Number of parameters of `model.base`, and the most tokens it reads (None: no limit).

    Raises:
        BaseError: the configuration cannot be read, or needs code of its own that nobody agreed to.
    """
    network = _network(model, consent)
    most = own_max_length(network.config.get_text_config())
    return sum(weight.numel() for weight in network.parameters()), most


def shapes(folder: str, adapter: AdapterTable) -> dict[str, tuple[int, int]]:
    """Names and shapes of the tensors of an adapter for a base, as after loading it.

    Raises:
        BaseError: the configuration cannot be read, needs code of its own, or has no such target.
    """
    network = _network(ModelTable(base=folder))
    return lora.shapes(lora.attach(network, adapter), adapter.rank)


def adapter_bytes(folder: str, rank: int) -> int:
    """Bytes in float32 of the largest adapter of a rank, with a pair of factors for every matrix of the base.

    Raises:
        BaseError: the configuration cannot be read or needs code of its own.
    """
    shapes = (
        tuple(weight.shape) for weight in _network(ModelTable(base=folder)).parameters() if weight.dim() >= 2
    )
    return 4 * rank * int(sum(math.prod(shape[:-2]) * (shape[-2] + shape[-1]) for shape in shapes))


def _network(model: ModelTable, consent: Consent = NOTHING) -> Any:
    """The model without its weights."""
    trusted = remote_code.allowed(model, consent)
    if Path(model.base).is_dir():
        require_no_adapter(Path(model.base))
    try:
        config = AutoConfig.from_pretrained(model.base, revision=model.revision, trust_remote_code=trusted)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    except (*remote_code.LOADING_ERRORS, RuntimeError) as error:
        raise BaseError(
            f"the configuration of base {model.base} cannot be used ({type(error).__name__}); give a causal"
            " language model that transformers knows by itself"
        ) from error
