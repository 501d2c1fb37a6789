"""What PEFT itself makes of a written adapter, found without the base's weights.

PEFT decides by the base's architecture which tensors of an adapter go where: for some it renames targets or
tensors while it loads, and what then fits nowhere is left out with a warning at most.
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
    """The tensors that `peft.PeftModel.from_pretrained(model, folder)` does not put where they belong.

    Beside them stands PEFT's own reason where it refuses the folder; all are lost then.

    A tensor counts as lost where PEFT leaves it out, changes it, puts it at another module or scales it
    otherwise; and so does each that PEFT adds without being given it.

    Raises:
        BaseError: the base cannot be built without its weights, so nobody can tell.
    """
    network = skeleton(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is lost, and of what is not
        try:
            model = PeftModel.from_pretrained(
                network, str(folder), low_cpu_mem_usage=True, torch_device="cpu"
            )
        except Exception as error:  # each version of PEFT refuses in its own ways
            return sorted(adapter), " ".join(str(error).split()) or type(error).__name__
    wanted = scaling(base.adapter)
    there, whole = set(), set()
    for module, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for kind, factors in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            name, tensor = f"{module}.{kind}.weight", factors["default"].weight
            there.add(name)
            if (
                name in adapter
                and not tensor.is_meta
                and np.array_equal(tensor.detach().numpy(), adapter[name])
                and abs(layer.scaling["default"] - wanted) < 1e-9
            ):
                whole.add(name)
    return sorted((there | set(adapter)) - whole), ""


def skeleton(base: Base) -> nn.Module:
    """The base's own class with its modules and their shapes, one shared zero standing for each weight.

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
