"""Exporters: write a trained adapter in a format that other programs read; plug-ins in `model/exporters`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.model import exporters as folder

if TYPE_CHECKING:  # listing plug-ins must not import torch
    from shepherd.core import Adapter
    from shepherd.model.base import Base


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A trained adapter with its base: the input of an exporter."""

    base: Base
    adapter: Adapter
    stop: Sequence[int]
    """Tokens that end an answer."""
    consent: Consent = NOTHING
    """Whether code that comes with the base may run, if it is loaded again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A format: `write(folder, trained)` writes it, each file whole or not at all.

    Raises:
        ShepherdError: from `write`, if the base or its adapter cannot be written so, or the disk is full.
    """

    write: Callable[[Path, Trained], None]


EXPORTER = plugins.Kind(name="exporter", folder=folder, type=Exporter, chosen_by="shepherd export --to")
