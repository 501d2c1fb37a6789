"""One GGUF file with the adapter merged into its base, for llama.cpp and what is built on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shepherd.config import Table
from shepherd.model.exporting import Exporter, Trained, command

FILE = "model.gguf"


class Config(Table):
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "bfloat16"
    """How matrices are stored; q8_0 is 8 bits with a scale for each 32 numbers."""


def build(config: Config) -> Exporter:
    """Build the exporter."""

    def write(folder: Path, trained: Trained) -> None:
        from shepherd.model import gguf_export  # torch

        gguf_export.write_model(folder / FILE, trained, config.dtype)

    def serve(folder: Path, trained: Trained) -> str:
        return command("llama-server", "--model", folder / FILE, "--jinja")

    return Exporter(write=write, serve=serve, library="gguf", holds_base=True)
