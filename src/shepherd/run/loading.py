"""Load the base that a run file names, and checkpoints that were made over it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from shepherd import world
from shepherd.consent import NOTHING, Consent
from shepherd.errors import AdapterError, BaseError, CheckpointError
from shepherd.io import paths
from shepherd.io.progress import stage
from shepherd.machine import malloc, memory
from shepherd.model import base as bases
from shepherd.model import fingerprint, lora, remote_code
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.settings import TINY, ModelTable, RunSettings

log = logging.getLogger(__name__)


def load_base(settings: RunSettings, consent: Consent = NOTHING) -> bases.Base:
    """Load `model.base` with LoRA layers at every target, and set the run's number of threads.

    Raises:
        BaseError: the base is missing or unreadable, cannot be trained here, or needs to run code without
            consent.
    """
    table = placed(settings.model)
    malloc.keep_pages()
    memory.use_threads(settings.machine.threads)
    origin = " from the Hugging Face hub" if paths.is_hub_id(table.base) else ""
    if remote_code.allowed(table, consent):
        log.info("%s runs here", remote_code.whose(table))
    log.info("loading %s%s", settings.model.base, origin)
    with stage(f"loading {settings.model.base}"):
        base = bases.load(
            table,
            settings.adapter,
            name=settings.model.base,
            device=settings.machine.device,
            longest=settings.data.max_tokens,
            consent=consent,
        )
    malloc.release_free_memory()  # what the packing test took, before free memory is measured
    if not base.packed:
        log.info(
            "%s cannot be packed (%s), so each pass holds one client's examples, padded: this is slower",
            base.name,
            base.proof.unpacked,
        )
    if base.proof.mute:
        log.info("%s can be trained and scored, but cannot generate answers: %s", base.name, base.proof.mute)
    return base


def placed(table: ModelTable) -> ModelTable:
    """The model table with its base resolved to an existing folder or a Hugging Face id.

    Raises:
        BaseError: it names a folder that does not exist; the hub is not asked.
    """
    base = str(world.base_path()) if table.base == TINY else os.path.expanduser(table.base)
    if not os.path.isdir(base) and not paths.is_hub_id(base):
        # an older run folder may hold a relative path
        origin = "" if os.path.isabs(base) else f" (relative to {Path.cwd()})"
        raise BaseError(
            f"there is no folder {base}{origin}, which model.base names; put the base there, or write the"
            " absolute path of its folder (in run.toml of a run that has begun) or a Hugging Face id as"
            " owner/name"
        )
    return table.model_copy(update={"base": base})


def load_checkpoint(path: Path, base: bases.Base) -> Checkpoint:
    """Load the checkpoint in `path`, if it was made over this base.

    Raises:
        CheckpointError: it is damaged, or belongs to another base or adapter.
    """
    saved = checkpoint.load(path)
    if not fingerprint.is_of(saved.notes["base"], base):
        raise CheckpointError(
            f"checkpoint {path} belongs to another base ({saved.notes['base']}) than {base.name}"
            f" ({base.fingerprint}); put the old base back, or start a new run"
        )
    try:
        lora.require_fits(base.targets, saved.state.adapter, f"checkpoint {path.name}")
        for name, rank in lora.ranks(base.targets, saved.state.adapter).items():
            if rank < base.adapter.rank:  # ranks in addition are an aggregation's
                raise AdapterError(
                    f"tensor {name} has rank {rank}, and adapter.rank is {base.adapter.rank}; use the same"
                )
    except AdapterError as error:
        raise CheckpointError(f"checkpoint {path} belongs to another adapter: {error}") from error
    return saved
