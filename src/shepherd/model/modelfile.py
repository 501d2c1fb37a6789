"""The Modelfile by which Ollama makes a model of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from shepherd.data import foreign_templates
from shepherd.errors import TemplateError
from shepherd.io.atomic import write_atomic
from shepherd.model.exporting import Trained


def text(trained: Trained, base: str, adapter: str) -> str:
    """Compose the Modelfile.

    Args:
        base: what `FROM` names.
        adapter: what `ADAPTER` names; "" for none.

    Raises:
        TemplateError: Ollama's templates cannot say the run's.
    """
    tokenizer = trained.base.tokenizer
    texts = foreign_templates.turn_texts(trained.template, tokenizer)
    lines = [
        f"FROM {base}",
        *([f"ADAPTER {adapter}"] if adapter else []),
        f"TEMPLATE {_quoted(foreign_templates.ollama(texts))}",
        *(f"PARAMETER stop {_quoted(str(tokenizer.decode([each])))}" for each in trained.stop),
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, content: str) -> Path:
    """Write the Modelfile into a folder, whole or not at all."""
    return write_atomic(folder / "Modelfile", content)


def _quoted(value: str) -> str:
    if '"""' in value or value.endswith('"'):
        raise TemplateError(
            "the prompt template holds three quotes, or ends in one, which a Modelfile cannot quote; export"
            " --to gguf"
        )
    return f'"""{value}"""'
