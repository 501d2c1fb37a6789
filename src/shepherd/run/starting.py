"""The adapter that a run begins with: a new one, or that of `adapter.start`.

A run that begins with an adapter keeps a copy of it, and goes on from the copy alone:

runs/NAME/start/
  source.json                 the file that it was read from, that file's SHA-256, and what of a run it is
  adapter_config.json         the copy, in PEFT's layout
  adapter_model.safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Adapter, Method, not_finite, product
from shepherd.core.factor_gap import pairs
from shepherd.core.product import Factors, Near
from shepherd.errors import AdapterError, FolderError
from shepherd.io import private
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.model import files, lora
from shepherd.model.base import Base
from shepherd.run import checkpoint, folder, lineage
from shepherd.run.folder import RunFolder
from shepherd.run.lineage import SOURCE, START, Training
from shepherd.run.loading import adapter_at
from shepherd.settings import AdapterTable, RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The adapter before the first round."""

    adapter: Adapter
    source: Mapping[str, str] | None = None
    """The `file` that it was read from, and its `sha256`; None if it is a new one."""
    before: tuple[Training, ...] = ()
    """The trainings that led to it, as far as a run folder says."""

    @property
    def says(self) -> str:
        """Where it comes from, and what privacy was spent on it; "" if it is a new one."""
        if not self.source:
            return ""
        said = f"starting from {self.source['file']} (SHA-256 {self.source['sha256']})"
        return "; ".join(filter(None, (said, lineage.spent_before(self.before))))


def first(settings: RunSettings, base: Base, method: Method) -> First:
    """The adapter that a new run begins with: that of `adapter.start`, or a new one from the run's seed.

    Where clients of a smaller rank are sent the first ranks alone, the products are the same, with their
    ranks in the order of their singular values.

    Raises:
        AdapterError: `adapter.start` names no adapter, or one of another base, rank, scale or other targets.
        FolderError, CheckpointError: it names a run without an adapter, or with a damaged one.
    """
    table = settings.adapter
    if not table.start:
        return First(adapter=lora.first(base.targets, table.rank, settings.seed))
    source = source_of(Path(table.start))
    adapter = _read(Path(table.start), base, table)
    if method.aggregation.truncates and (table.ranks or table.min_rank):
        adapter = in_order(adapter)
    return First(adapter=adapter, source=source, before=lineage.of_run(Path(table.start)))


def keep(holder: RunFolder, found: First, base: Base) -> None:
    """Write the copy of a first adapter that was read into the run folder; nothing for a new one."""
    if found.source is None:
        return
    place = holder.path / START
    with disk_errors(holder.path):
        private.make(place)
    kept = {**found.source, "before": lineage.rows_of(found.before)}
    write_atomic(place / SOURCE, json.dumps(kept, indent=2) + "\n")
    files.write(place, found.adapter, base)  # the weights last: where they are, the copy is whole


def of_run(holder: RunFolder, settings: RunSettings, base: Base, method: Method) -> Adapter:
    """The adapter that the run in a folder began with, from its copy.

    A run that was killed before its copy was whole has no number that depends on it, and copies it again.

    Raises:
        FolderError: the copy is missing.
        AdapterError: the copy is damaged, or as for `first`.
    """
    place = holder.path / START
    if not settings.adapter.start or (place / files.WEIGHTS).is_file():
        return kept(holder.path, settings.adapter, base, settings.seed)
    if checkpoint.latest(holder.checkpoints) is not None:
        raise FolderError(
            f"{place / files.WEIGHTS} is missing, the adapter that the run began with; restore it from a copy"
        )
    found = first(settings, base, method)
    keep(holder, found, base)
    return found.adapter


def kept(path: Path, table: AdapterTable, base: Base, seed: int) -> Adapter:
    """The adapter that the run in `path` began with: its copy, or a new one from the seed.

    Raises:
        AdapterError: its copy is missing or damaged.
    """
    if not table.start:
        return lora.first(base.targets, table.rank, seed)
    return files.read(path / START, base)


def before(path: Path, settings: RunSettings, base: Base) -> Adapter | None:
    """The adapter that a run's own is compared with; None for the base alone, which a new one is as good as.

    Raises:
        AdapterError: its copy is missing or damaged.
    """
    return kept(path, settings.adapter, base, settings.seed) if settings.adapter.start else None


def change(path: Path, settings: RunSettings) -> str:
    """Say that `adapter.start` now holds another adapter than the one that the run in `path` began with.

    "" if it is the same, or if nothing is left there to compare.
    """
    before = lineage.source(path)
    if not before:
        return ""
    try:
        now = source_of(Path(settings.adapter.start))
    except (AdapterError, FolderError):  # the copy is all that the run needs
        return ""
    if now["sha256"] == before["sha256"]:
        return ""
    return (
        f"adapter.start = {settings.adapter.start} holds another adapter now than the one that {path} began"
        f" with (SHA-256 {now['sha256'][:16]}…, and it was {before['sha256'][:16]}…)"
    )


def source_of(place: Path) -> dict[str, str]:
    """The file with the weights of the adapter that `adapter.start` names, and its SHA-256.

    Raises:
        AdapterError: there is no such folder, or no adapter in it.
        FolderError: it is a run that has finished no round, or the file cannot be read.
    """
    file = _weights(place)
    with disk_errors(place), open(file, "rb") as content:
        return {"file": str(file), "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _weights(place: Path) -> Path:
    if not place.is_dir():
        raise AdapterError(
            f"adapter.start names {place}, and there is no such folder; write the folder of a run, of an arm"
            " of a comparison, or of a PEFT adapter"
        )
    if not folder.is_run(place):
        files.require_safetensors(place)
        return place / files.WEIGHTS
    if (place / "adapter" / files.WEIGHTS).is_file():
        return place / "adapter" / files.WEIGHTS
    last = checkpoint.latest(place / "checkpoints")
    if last is None:
        raise FolderError(
            f"adapter.start names the run in {place}, which has finished no round yet; continue it with"
            f" `shepherd resume {place}`"
        )
    return last / checkpoint.TENSORS


def _read(place: Path, base: Base, asked: AdapterTable) -> Adapter:
    finished = folder.is_run(place) and (place / "adapter" / files.WEIGHTS).is_file()
    here = place / "adapter" if finished else place
    unfinished = folder.is_run(place) and here == place
    _require_table(
        folder.read_settings(place).adapter if unfinished else files.read_config(here), asked, here
    )
    if not unfinished:
        _require_targets(files.tensor_names(here), base, here)
    adapter = adapter_at(place if folder.is_run(place) else here, base)
    for name, rank in lora.ranks(base.targets, adapter).items():
        if rank != asked.rank:
            raise AdapterError(
                f"adapter.start {here} has rank {rank} in tensor {name}, and a run has one rank for all,"
                f" adapter.rank = {asked.rank}; write an adapter of that rank with `shepherd merge {here} -o"
                f" FOLDER --rank {asked.rank}`, and start from it"
            )
    for name in not_finite(adapter):
        raise AdapterError(f"tensor {name} of adapter.start {here} is not finite; start from another adapter")
    return adapter


def _require_table(found: AdapterTable, asked: AdapterTable, here: Path) -> None:
    """Raise AdapterError unless rank and scale are those of the run file."""
    if found.rank != asked.rank:
        raise AdapterError(
            f"adapter.start {here} has rank {found.rank}, and the run file says adapter.rank = {asked.rank};"
            f" set adapter.rank = {found.rank}, or cut it with `shepherd merge {here} -o FOLDER --rank"
            f" {asked.rank}`"
        )
    if abs(lora.scaling(found) - lora.scaling(asked)) > 1e-9:
        stabilised = str(found.rank_stabilised).lower()
        raise AdapterError(
            f"adapter.start {here} multiplies its output by {lora.scaling(found):g}, and the run file says"
            f" {lora.scaling(asked):g}; set adapter.alpha = {found.alpha:g} and adapter.rank_stabilised ="
            f" {stabilised}"
        )


def _require_targets(names: frozenset[str], base: Base, here: Path) -> None:
    """Raise AdapterError unless an adapter has tensors for the targets of the run file, and no others."""
    missing, more = sorted(base.shapes.keys() - names), sorted(names - base.shapes.keys())
    if not missing and not more:
        return
    what = f"lacks tensor {missing[0]}" if missing else f"has tensor {more[0]}, which the run file leaves out"
    modules = {name.rpartition(".lora_")[0].removeprefix(lora.PEFT_PREFIX) for name in names}
    there = {name for name, _ in base.model.named_modules()}
    ends = sorted({module.rpartition(".")[2] for module in modules})
    unknown = sorted(modules - there)
    if unknown:
        raise AdapterError(
            f"adapter.start {here} {what}, and {base.name} has no module {unknown[0]}; set model.base to the"
            " base that it was made for"
        )
    raise AdapterError(f"adapter.start {here} {what}; set adapter.targets = {json.dumps(ends)}")


def in_order(adapter: Adapter) -> Adapter:
    """The same products with the ranks of each in the descending order of their singular values.

    The rows of A keep the scale that they had. No tensor stacks experts' matrices.
    """
    tensors: dict[str, NDArray[Any]] = dict(adapter)
    for pair in pairs(adapter):
        a, b = (adapter[name].astype(np.float64) for name in pair)
        near = Near(a, product.scale_of(a))
        tensors[pair.b], tensors[pair.a] = product.ordered(product.spectrum(Factors(b, a)), near)
    return Adapter(tensors)
