"""Load the base that a run file names, and checkpoints and adapters that were made over it."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from shepherd import world
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.errors import AdapterError, BaseError, CheckpointError, FolderError
from shepherd.io import paths
from shepherd.io.progress import stage
from shepherd.machine import malloc, memory
from shepherd.model import base as bases
from shepherd.model import files, fingerprint, lora, remote_code
from shepherd.model.base import Base
from shepherd.run import checkpoint, folder
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


def identity(adapter: Adapter) -> str:
    """The SHA-256 of an adapter's tensors, by name, whatever file they are read from."""
    found = hashlib.sha256()
    for name in sorted(adapter):
        found.update(f"{name} {adapter[name].shape} {adapter[name].dtype}\n".encode())
        found.update(np.ascontiguousarray(adapter[name]).tobytes())
    return found.hexdigest()


def adapter_of(path: Path, base: Base, round: int | None = None) -> Adapter:
    """Read an adapter of the run in `path`: of a round, or the final one, else that of the last checkpoint.

    Raises:
        FolderError: no round is finished yet, or the checkpoint of that round is not kept.
        CheckpointError: the checkpoint is damaged, or belongs to another base.
        AdapterError: the adapter is unreadable, or belongs to another base.
    """
    place = checkpoint_of(path, round)
    if place is None:
        return files.read(path / "adapter", base)
    saved = load_checkpoint(place, base)
    if not saved.notes.get("is_model", True):
        raise FolderError(
            f"the run in {path} leaves a part of each model with its client, so there is no one adapter;"
            f" write a client's with `shepherd export {path} --client NAME -o FOLDER` and use that folder"
        )
    return saved.state.adapter


def adapter_at(path: Path, base: Base) -> Adapter:
    """Read the adapter in a folder: that of a run, as `adapter_of` does, or one in PEFT's layout.

    Raises:
        FolderError, CheckpointError: as for `adapter_of`.
        AdapterError: there is none, it is unreadable, or belongs to another base.
    """
    return adapter_of(path, base) if folder.is_run(path) else files.read(path, base)


def checkpoint_of(path: Path, round: int | None) -> Path | None:
    """Path of the checkpoint of a round, or of the last one; None if the final adapter is to be used.

    Raises:
        FolderError: no round is finished yet, or the checkpoint of that round is not kept.
    """
    if round is None and (path / "adapter" / files.CONFIG).is_file():
        return None
    return kept_checkpoint(path, round)


def kept_checkpoint(path: Path, round: int | None) -> Path:
    kept = checkpoint.kept(path / "checkpoints")
    if not kept:
        raise FolderError(
            f"the run in {path} has finished no round yet; continue it with `shepherd resume {path}`"
        )
    if round is not None and round not in kept:
        raise FolderError(
            f"the run in {path} keeps no checkpoint of round {round} but of {', '.join(map(str, kept))};"
            " ask for one of these (checkpoints.keep sets how many are kept)"
        )
    return kept[max(kept) if round is None else round]
