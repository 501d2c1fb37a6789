"""A trained adapter in the form that other programs read: the kind of plug-in in `model/exporters`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.model import exporters as folder

if TYPE_CHECKING:  # torch is not for a list of plug-ins
    from shepherd.core import Adapter
    from shepherd.model.base import Base


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """What an exporter writes."""

    base: Base
    adapter: Adapter
    stop: Sequence[int]
    """Tokens that end an answer."""
    consent: Consent = NOTHING
    """Whether code that comes with the base may run, where it is loaded again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A form: `write(folder, trained)` writes it, each file whole or not at all.

    Raises:
        ShepherdError: from `write`, where the base or its adapter cannot be written so, or the disk is full.
    """

    write: Callable[[Path, Trained], None]


EXPORTER = plugins.Kind(name="exporter", folder=folder, type=Exporter, chosen_by="shepherd export --to")
