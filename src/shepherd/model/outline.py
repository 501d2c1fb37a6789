"""What an adapter of a base would look like, read off the base's configuration without its weights."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shepherd.errors import BaseError
from shepherd.model import lora
from shepherd.settings import AdapterTable


def shapes(folder: str, adapter: AdapterTable) -> dict[str, tuple[int, int]]:
    """The names and shapes of the tensors of an adapter, as `model.base` would give them once loaded.

    Raises:
        BaseError: the configuration cannot be read, needs code of its own, or has no such target.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise BaseError(
            f"the configuration of base {folder} cannot be used ({type(error).__name__}); give a causal"
            " language model that transformers knows by itself"
        ) from error
    return lora.shapes(lora.attach(network, adapter), adapter.rank)
