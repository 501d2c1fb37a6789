"""Adapters on disk, in PEFT's layout, both ways, strictly."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as bytes_of
from transformers.pytorch_utils import Conv1D

from shepherd.core import Adapter, require_shapes, shapes_of
from shepherd.errors import AdapterError, FolderError
from shepherd.model.base import Base
from shepherd.model.lora import layers, scaling
from shepherd.settings import AdapterTable

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
REBASED = ("pissa", "olora", "corda", "loftq")  # ways to begin that change the base's own weights
BASE_KEY = "shepherd.base"  # of the safetensors metadata: the base's fingerprint


def write(folder: Path, adapter: Adapter, base: Base) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, each whole or not at all.

    `peft.PeftModel.from_pretrained(model, folder)` reads them back.

    Raises:
        AdapterError: the adapter does not fit the base.
        FolderError: the folder cannot be written.
    """
    require_shapes(base.shapes, shapes_of(adapter), "the adapter to write")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as beside:
            metadata = {"format": "pt", BASE_KEY: base.fingerprint}
            (Path(beside) / WEIGHTS).write_bytes(_ordered(bytes_of(dict(adapter), metadata)))
            config_of(base).save_pretrained(beside)
            for name in (WEIGHTS, CONFIG):
                os.replace(Path(beside) / name, folder / name)
    except OSError as error:
        raise FolderError(
            f"adapter folder {folder} cannot be written ({error.strerror}); free space"
        ) from error


def _ordered(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order: the library's own order changes from run to run.

    Eight bytes of the header's length, the header as JSON, the tensors.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def config_of(base: Base) -> LoraConfig:
    """The PEFT configuration that gives the same logits."""
    from peft import LoraConfig  # seconds, that a question to a run need not wait for

    table = base.adapter
    bases = [layer.base for _, layer in layers(base.model, base.sites)]
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
        inference_mode=True,
        r=table.rank,
        lora_alpha=table.alpha,
        lora_dropout=table.dropout,
        use_rslora=table.rank_stabilised,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in bases),
        target_modules=[site.module for site in base.sites],
    )


def read(folder: str | Path, base: Base) -> Adapter:
    """Read an adapter that was made for this base.

    Raises:
        AdapterError: a file is missing or unreadable, a tensor is missing, extra or misshapen, the
            scaling differs, or the adapter belongs to another base.
    """
    folder = Path(folder)
    config = read_config(folder)
    theirs = scaling(config)
    if abs(theirs - scaling(base.adapter)) > 1e-9:
        raise AdapterError(
            f"adapter {folder} scales by {theirs:g}, this run by"
            f" {scaling(base.adapter):g}; use its alpha and rank"
        )
    tensors, metadata = _tensors(folder / WEIGHTS)
    require_shapes(base.shapes, shapes_of(tensors), f"adapter {folder}")
    made_for = metadata.get(BASE_KEY, base.fingerprint)
    if made_for != base.fingerprint:
        raise AdapterError(
            f"adapter {folder} was made for another base ({made_for}) than {base.name}"
            f" ({base.fingerprint}); load it with its own base"
        )
    return Adapter(tensors)


def read_config(folder: Path) -> AdapterTable:
    """The `[adapter]` table that a PEFT folder was made with.

    Raises:
        AdapterError: it is not a LoRA folder, or uses a variant that the trainer lacks.
    """
    try:
        config = dict(json.loads((folder / CONFIG).read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(f"adapter {folder} has no readable {CONFIG}; give a PEFT LoRA folder") from error
    refused = [
        key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)
    ]
    if str(config.get("init_lora_weights")).startswith(REBASED):
        refused.append(f"init_lora_weights {config['init_lora_weights']}")
    if config.get("peft_type") != "LORA" or refused or config.get("bias", "none") != "none":
        kind = ", ".join(refused) or f"peft_type {config.get('peft_type')}, bias {config.get('bias')}"
        raise AdapterError(f"adapter {folder} uses {kind}, which is not plain LoRA; give a plain LoRA folder")
    try:
        targets = config["target_modules"]
        return AdapterTable(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            rank_stabilised=config.get("use_rslora", False),
            targets=targets if targets == "all-linear" else _names(targets),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"the {CONFIG} of adapter {folder} lacks a usable r, lora_alpha or target_modules; mend it"
        ) from error


def _names(targets: str | list[str]) -> tuple[str, ...]:
    """PEFT's list of names; or its one pattern, which matches no name of ours."""
    return (targets,) if isinstance(targets, str) else tuple(sorted(targets))


def _tensors(path: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:  # torch reads bfloat16, numpy does not
            tensors = {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"adapter file {path} cannot be read ({error}); it is missing or cut short"
        ) from error
