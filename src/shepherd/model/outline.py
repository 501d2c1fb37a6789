"""A base without its weights: everything about its size, from its configuration alone.

Its tensors are on PyTorch's meta device, which has shapes and number types and no memory. So what is asked of
a loaded base (parameters, bytes, shapes of adapters, what a pass keeps) can be asked of one of any size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shepherd.consent import NOTHING, Consent
from shepherd.errors import BaseError
from shepherd.model import remote_code
from shepherd.model.attention import PACKED
from shepherd.model.base import (
    Base,
    Proof,
    assembled,
    attention_impl,
    load_tokenizer,
    pick_device,
    pick_dtype,
    quantise,
)
from shepherd.settings import AdapterTable, ModelTable

META = torch.device("meta")


def outline(
    model: ModelTable,
    adapter: AdapterTable,
    name: str = "",
    *,
    device: str = "auto",
    consent: Consent = NOTHING,
) -> Base:
    """A base as `base.load` gives it, without weights and without a proof: it cannot compute.

    It is taken to run packed where its attention can be replaced, which only loading proves; `Base.device`
    and `dtype` are those that loading would choose.

    Raises:
        BaseError: as `base.load`, of what the configuration and the tokenizer show.
    """
    where = pick_device(device)
    dtype = pick_dtype(model.dtype, where)
    network = _network(model, dtype, META, None, consent)
    quantise(network, model, where, dtype)
    return _base(network, model, adapter, name or model.base, where, dtype, load_tokenizer(model, consent))


def layers(base: Base) -> int:
    """Number of layers of a base, as its configuration says."""
    return int(base.model.config.get_text_config().num_hidden_layers)


def cut(base: Base, count: int, consent: Consent = NOTHING, *, device: torch.device | None = None) -> Base:
    """The base with its first `count` layers and random weights: to measure passes.

    Args:
        device: where its weights are; None is the base's device, and `META` makes none.

    Raises:
        BaseError: the architecture does not run with fewer layers.
    """
    network = _network(base.table, base.dtype, device or base.device, count, consent)
    quantise(network, base.table, base.device, base.dtype)
    return _base(network, base.table, base.adapter, base.name, base.device, base.dtype, base.tokenizer)


def _network(
    model: ModelTable, dtype: torch.dtype, device: torch.device, count: int | None, consent: Consent
) -> Any:
    trusted = remote_code.allowed(model, consent)
    try:
        config = AutoConfig.from_pretrained(model.base, revision=model.revision, trust_remote_code=trusted)
        if count is not None:
            _keep_layers(config.get_text_config(), count)
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
    except (*remote_code.LOADING_ERRORS, RuntimeError) as error:
        remote_code.require_known(model, error)
        fewer = f" with {count} layers" if count is not None else ""
        raise BaseError(
            f"the configuration of base {model.base} cannot be used{fewer} ({type(error).__name__}); give a"
            " causal language model that transformers knows by itself"
        ) from error


def _keep_layers(config: Any, count: int) -> None:
    config.num_hidden_layers = count
    for key in ("layer_types", "mlp_layer_types"):  # one entry a layer
        derived = isinstance(getattr(type(config), key, None), property)  # from the number of layers
        if not derived and isinstance(kinds := getattr(config, key, None), list):
            setattr(config, key, kinds[:count])


def _base(
    network: Any,
    model: ModelTable,
    adapter: AdapterTable,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: Any,
) -> Base:
    base = assembled(
        network, tokenizer, model, adapter, name=name, fingerprint="", device=device, dtype=dtype
    )
    try:
        with attention_impl(base, PACKED):
            return base
    except Exception as error:  # each architecture's own code may refuse in its own way, as in the proof
        return replace(base, proof=Proof(unpacked=str(error)))
