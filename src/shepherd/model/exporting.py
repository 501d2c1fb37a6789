"""Exporters: write a trained adapter in a format that other programs read; plug-ins in `model/exporters`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.model import exporters as folder

if TYPE_CHECKING:  # listing plug-ins must not import torch
    from shepherd.core import Adapter
    from shepherd.data.template import Template
    from shepherd.model.base import Base


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A trained adapter with its base: the input of an exporter."""

    base: Base
    adapter: Adapter
    stop: Sequence[int]
    """Tokens that end an answer."""
    template: Template
    """The prompt template with which the adapter was tuned."""
    consent: Consent = NOTHING
    """Whether code that comes with the base may run, if it is loaded again."""


def _not_served(folder: Path, trained: Trained) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A format: `write(folder, trained)` writes it, each file whole or not at all.

    Raises:
        ShepherdError: from `write`, if the base or its adapter cannot be written so, or the disk is full.
    """

    write: Callable[[Path, Trained], None]
    serve: Callable[[Path, Trained], str] = _not_served
    """The command that answers with what was written in the folder; "" if there is none to name."""
    by_id: bool = False
    """Whether that command takes a repository's id in place of the folder; else that is downloaded first."""
    library: str = "peft"
    """Library that reads what was written, as the hub's model cards name it."""
    holds_base: bool = False
    """Whether what is written holds the base's weights, so that its licence files go along."""


def command(*words: object) -> str:
    """A line for a shell.

    >>> command("vllm", "serve", Path("my model"))
    "vllm serve 'my model'"
    """
    return shlex.join(str(word) for word in words)


EXPORTER = plugins.Kind(name="exporter", folder=folder, type=Exporter, chosen_by="shepherd export --to")
