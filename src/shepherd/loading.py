"""The base that a run file names, loaded as its run tunes it; and the checkpoints made over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from shepherd import checkpoint, world
from shepherd.checkpoint import Checkpoint
from shepherd.core import require_shapes, shapes_of
from shepherd.errors import AdapterError, CheckpointError
from shepherd.model import base as bases
from shepherd.model import fingerprint, memory
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


def load_checkpoint(path: Path, base: bases.Base) -> Checkpoint:
    """The checkpoint in `path`, if it was made over this base.

    Raises:
        CheckpointError: it is damaged, or of another base or adapter.
    """
    saved = checkpoint.load(path)
    if not fingerprint.is_of(saved.notes["base"], base):
        raise CheckpointError(
            f"checkpoint {path} is of another base ({saved.notes['base']}) than {base.name}"
            f" ({base.fingerprint}); put the old one back, or start a new run"
        )
    try:
        require_shapes(base.shapes, shapes_of(saved.state.adapter))
    except AdapterError as error:
        raise CheckpointError(f"checkpoint {path} is of another adapter: {error}") from error
    return saved
