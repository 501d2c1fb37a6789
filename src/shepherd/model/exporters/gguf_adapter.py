"""The adapter alone as a GGUF file, which llama.cpp puts on the base's own GGUF file (`--lora`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shepherd.config import Table
from shepherd.model.exporting import Exporter, Trained, command

FILE = "adapter.gguf"


class Config(Table):
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How the adapter's matrices are stored."""


def build(config: Config) -> Exporter:
    """Build the exporter."""

    def write(folder: Path, trained: Trained) -> None:
        from shepherd.model import gguf_export  # torch

        gguf_export.write_adapter(folder / FILE, trained, config.dtype)

    def serve(folder: Path, trained: Trained) -> str:
        return command("llama-server", "--model", "BASE.gguf", "--lora", folder / FILE)

    return Exporter(write=write, serve=serve, library="gguf")
