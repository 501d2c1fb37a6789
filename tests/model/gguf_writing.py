"""Write a base as GGUF, with an adapter that changes nothing."""

from __future__ import annotations

from pathlib import Path

from shepherd.data.template import Template
from shepherd.model import gguf_export
from shepherd.model.exporting import Trained
from shepherd.model.gguf_file import Number
from tests.model import bases


def written(folder: Path, output: Path, number: Number = "float32") -> Path:
    """`model.gguf` in the folder `output`, of the base in `folder`."""
    base = bases.load(folder)
    template = Template("chat" if base.tokenizer.chat_template else "plain")
    trained = Trained(base=base, adapter=base.zero, stop=[base.tokenizer.eos_token_id], template=template)
    gguf_export.write_model(output / "model.gguf", trained, number)
    return output / "model.gguf"
