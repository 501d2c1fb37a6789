"""The base that a run file names, loaded as its run tunes it; and the checkpoints made over it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from shepherd import world
from shepherd.consent import NOTHING, Consent
from shepherd.core import require_shapes, shapes_of
from shepherd.errors import AdapterError, BaseError, CheckpointError
from shepherd.io import paths
from shepherd.io.progress import stage
from shepherd.machine import malloc, memory
from shepherd.model import base as bases
from shepherd.model import fingerprint, remote_code
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.settings import TINY, ModelTable, RunSettings

log = logging.getLogger(__name__)


def load_base(settings: RunSettings, consent: Consent = NOTHING) -> bases.Base:
    """Load `model.base`, with an adapted layer at every target and the run's threads.

    Raises:
        BaseError: it is missing or unreadable, cannot be trained here, or asks to run code that nobody agreed
            to.
    """
    table = placed(settings.model)
    malloc.keep_pages()
    memory.use_threads(settings.machine.threads)
    whence = " from the Hugging Face hub" if paths.is_hub_id(table.base) else ""
    if remote_code.allowed(table, consent):
        log.info("%s runs here", remote_code.whose(table))
    log.info("loading %s%s", settings.model.base, whence)
    with stage(f"loading {settings.model.base}"):
        base = bases.load(
            table,
            settings.adapter,
            name=settings.model.base,
            device=settings.machine.device,
            longest=settings.data.max_tokens,
            consent=consent,
        )
    malloc.release_free_memory()  # what the proof took, before somebody plans with what is free
    if not base.packed:
        log.info(
            "%s cannot be packed (%s), so each pass holds one client's examples, padded: slower",
            base.name,
            base.proof.unpacked,
        )
    if base.proof.mute:
        log.info("%s can be trained and scored, but cannot generate answers: %s", base.name, base.proof.mute)
    return base


def placed(table: ModelTable) -> ModelTable:
    """The table with its base as it can be loaded: a folder that is there, or a Hugging Face id.

    Raises:
        BaseError: it names a folder that is not there, which is no question to a hub.
    """
    base = str(world.base_path()) if table.base == TINY else os.path.expanduser(table.base)
    if not os.path.isdir(base) and not paths.is_hub_id(base):
        # an older run folder may hold a relative path
        whence = "" if os.path.isabs(base) else f", looked for from {Path.cwd()}"
        raise BaseError(
            f"there is no folder {base}{whence}, which model.base names; put the base there, or write the"
            " absolute path of the folder it is in (for a run that has begun: in its run.toml), or a Hugging"
            " Face id as owner/name"
        )
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
