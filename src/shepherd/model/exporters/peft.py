"""A folder with the adapter, its configuration and the tokenizer, which PEFT loads onto the base."""

from __future__ import annotations

from pathlib import Path

from shepherd.config import Table
from shepherd.model.exporting import Exporter, Trained


class Config(Table):
    """This exporter has no keys."""


def build(config: Config) -> Exporter:
    """Build the exporter."""

    def write(folder: Path, trained: Trained) -> None:
        from shepherd.model import files  # torch

        files.write(folder, trained.adapter, trained.base)
        files.write_tokenizer(folder, trained.base, trained.stop)

    return Exporter(write=write)
