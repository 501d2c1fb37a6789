"""Check what PEFT loads of a written adapter, without the base's weights.

PEFT decides by the base's architecture where an adapter's tensors belong: for some it renames targets or
tensors while it loads, and tensors that then fit nowhere are left out with at most a warning.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from shepherd.core import Adapter
from shepherd.errors import BaseError
from shepherd.model.base import Base
from shepherd.model.lora import scaling


def lost(folder: Path, adapter: Adapter, base: Base) -> tuple[list[str], str]:
    """The tensors that `peft.PeftModel.from_pretrained(model, folder)` does not load correctly, and why.

    A tensor is lost if PEFT leaves it out, changes it, puts it at another module or scales it differently, or
    if PEFT adds it. The reason is empty unless PEFT refuses the whole folder; then all tensors are lost.

    Raises:
        BaseError: the base cannot be built without its weights, so this cannot be checked.
    """
    network = skeleton(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they also concern tensors that are not lost
        try:
            model = PeftModel.from_pretrained(
                network, str(folder), low_cpu_mem_usage=True, torch_device="cpu"
            )
        except Exception as error:  # each version of PEFT refuses in its own ways
            return sorted(adapter), " ".join(str(error).split()) or type(error).__name__
    expected = scaling(base.adapter)
    found, whole = set(), set()
    for module, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for kind, factors in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            name, tensor = f"{module}.{kind}.weight", factors["default"].weight
            found.add(name)
            if (
                name in adapter
                and not tensor.is_meta
                and np.array_equal(tensor.detach().numpy(), adapter[name])
                and abs(layer.scaling["default"] - expected) < 1e-9
            ):
                whole.add(name)
    return sorted((found | set(adapter)) - whole), ""


def skeleton(base: Base) -> nn.Module:
    """The base's class with its modules and their shapes, and zeros that take no memory as weights.

    Raises:
        BaseError: the class cannot be built without weights.
    """
    config = copy.deepcopy(base.model.config)
    if hasattr(config, "quantization_config"):  # a plain linear module has the same name
        del config.quantization_config
    try:
        with torch.device("meta"):
            network: nn.Module = type(base.model)(config)
    except Exception as error:  # code that comes with a base may do anything
        raise BaseError(
            f"base {base.name} cannot be built without its weights ({type(error).__name__}: {error})"
        ) from error
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zero, requires_grad=False))
    return network
