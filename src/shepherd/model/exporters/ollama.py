"""A GGUF file with an Ollama Modelfile, which names the run's prompt template and its stop tokens.

By default the file is the merged model. With the key `base`, a model that Ollama has or a GGUF file, it is
the adapter alone, put on that base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shepherd.config import Table
from shepherd.model.exporters.gguf import FILE as MODEL
from shepherd.model.exporters.gguf_adapter import FILE as ADAPTER
from shepherd.model.exporting import Exporter, Trained, command


class Config(Table):
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "bfloat16"
    """How the merged model's matrices are stored; an adapter alone is float32."""
    base: str = ""
    """What `FROM` names, such as "smollm2:135m" or "./base.gguf", for an adapter alone; "" merges it."""


def build(config: Config) -> Exporter:
    """Build the exporter."""

    def write(folder: Path, trained: Trained) -> None:
        from shepherd.model import gguf_export, modelfile  # torch

        text = modelfile.text(trained, config.base or f"./{MODEL}", f"./{ADAPTER}" if config.base else "")
        if config.base:
            gguf_export.write_adapter(folder / ADAPTER, trained, "float32")
        else:
            gguf_export.write_model(folder / MODEL, trained, config.dtype)
        modelfile.write(folder, text)

    def serve(folder: Path, trained: Trained) -> str:
        return command("ollama", "create", "NAME", "-f", folder / "Modelfile") + " && ollama run NAME"

    return Exporter(write=write, serve=serve, library="gguf", holds_base=not config.base)
