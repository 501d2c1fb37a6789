"""A complete model with the adapter merged into its weights, which transformers loads without PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shepherd.config import PositiveInt, Table
from shepherd.model.exporting import Exporter, Trained, command


class Config(Table):
    dtype: Literal["run", "float32", "bfloat16", "float16"] = "run"
    """Number type of the weights; "run" is the one that the base was tuned in."""
    shard_gigabytes: PositiveInt = 5
    """Largest size of one weights file, in gigabytes."""


def build(config: Config) -> Exporter:
    """Build the exporter."""

    def write(folder: Path, trained: Trained) -> None:
        from shepherd.model import merging  # torch

        merging.write(folder, trained, dtype=config.dtype, shard_bytes=config.shard_gigabytes * 10**9)

    def serve(folder: Path, trained: Trained) -> str:
        return command("vllm", "serve", folder)

    return Exporter(write=write, serve=serve, by_id=True, library="transformers", holds_base=True)
