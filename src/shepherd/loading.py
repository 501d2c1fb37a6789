"""The base that a run file names, loaded as its run tunes it."""

from __future__ import annotations

import os
from collections.abc import Callable

from shepherd import world
from shepherd.model import base as bases
from shepherd.model import memory
from shepherd.settings import ModelTable, RunSettings

TINY = "tiny"  # the embedded base


def _quiet(text: str) -> None:
    pass


def load_base(settings: RunSettings, say: Callable[[str], None] = _quiet) -> bases.Base:
    """Load `model.base`, with an adapted layer at every target and the run's threads.

    Raises:
        BaseError: it is missing or unreadable, or cannot be trained packed.
    """
    memory.keep_pages()
    memory.use_threads(settings.tuning.threads)
    say(f"loading {settings.model.base}")
    return bases.load(placed(settings.model), settings.adapter, name=settings.model.base)


def placed(table: ModelTable) -> ModelTable:
    """The embedded base by its folder; any other as it is, from one's home too."""
    base = str(world.base_path()) if table.base == TINY else os.path.expanduser(table.base)
    return table.model_copy(update={"base": base})
