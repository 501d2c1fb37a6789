"""Merge an adapter into its base's weights, and write the result as a model."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from peft import PeftModel

from shepherd.errors import AdapterError
from shepherd.model import base as bases
from shepherd.model import files
from shepherd.model.exporting import Trained

log = logging.getLogger(__name__)


def write(folder: Path, trained: Trained, *, dtype: str | None, shard_bytes: int) -> None:
    """Write a model that gives the same logits as base and adapter, within rounding.

    `AutoModelForCausalLM.from_pretrained(folder)` reads it back. The base is loaded once more, and PEFT
    merges it.

    Args:
        dtype: number type of the written weights, such as "float16"; None for the base's.
        shard_bytes: largest size of one weights file, in bytes.

    Raises:
        AdapterError: PEFT would load a different adapter, or a merged weight would not be finite.
        FolderError: the folder cannot be written.
    """
    base = trained.base
    whole = base.table.model_copy(update={"quantize": "none"})
    if base.table.quantize != "none":
        log.warning(
            "the adapter was tuned over %s weights and is merged into unquantised ones; answers may differ",
            base.table.quantize,
        )
    device = torch.device("cpu")
    number = base.dtype if dtype is None else bases.pick_dtype(dtype, device)
    network = bases.load_network(whole, device, number, trained.consent)
    with tempfile.TemporaryDirectory() as scratch:
        files.write(Path(scratch), trained.adapter, base)
        adapted = PeftModel.from_pretrained(network, scratch)
        try:
            merged = adapted.merge_and_unload(safe_merge=True)
        except ValueError as error:  # a weight that is not finite
            raise AdapterError(
                f"the adapter cannot be merged into {base.name} ({error}); merge it with dtype=float32"
            ) from error
    with files.replacing(folder) as scratch_folder:
        merged.save_pretrained(scratch_folder, max_shard_size=shard_bytes)
    files.write_tokenizer(folder, base, trained.stop)
