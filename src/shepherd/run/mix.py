"""Combine the adapters of runs and of PEFT folders into one PEFT folder: `shepherd merge`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shepherd.consent import NOTHING, Consent
from shepherd.data.template import Template, stop_ids
from shepherd.errors import BaseError, SettingsError
from shepherd.io.atomic import write_atomic
from shepherd.model import files, lora, mixing
from shepherd.model.base import Base
from shepherd.model.mixing import Mixture, Part
from shepherd.overrides import parse
from shepherd.run import card, folder, lineage, release, starting
from shepherd.run.export import CARD
from shepherd.run.loading import adapter_at, load_base
from shepherd.settings import WORLD, AdapterTable, RunSettings


def mix(
    places: Sequence[str | Path],
    output: str | Path,
    how: str = "product",
    *,
    weights: Sequence[float] = (),
    rank: int | None = None,
    density: float | None = None,
    base: str | None = None,
    unreleased: bool = False,
    consent: Consent = NOTHING,
) -> Path:
    """Combine adapters of one base into one, and write it to the folder `output` in PEFT's layout.

    Its scale (alpha / rank) is that of the first, so that it can stand where that stood.

    Args:
        places: folders of runs, of arms of a comparison, or of PEFT adapters; one alone can be cut to a rank.
        how: one of `mixing.WAYS`.
        weights: one for each adapter; by default equal ones that sum to 1.
        rank: rank of the result, for "product"; by default the sum of the ranks, at which it is exact.
        density: share of each factor's numbers that is kept, for "ties".
        base: the base where no run is among the places: a folder, or the id of the hub. By default the folder
            that the first adapter names.
        unreleased: whether to combine adapters that their run's gate speaks against; the card says so.
        consent: whether code that comes with the base may run.

    Raises:
        AdapterError: a folder holds no adapter, one of another base, other targets or ranks; or `how` takes
            no rank or no density.
        SettingsError: there is no such way, or the numbers do not fit.
        FolderError: a run has no adapter, or `output` is not empty.
        NotReleased: the gate of a run speaks against its adapter.
        BaseError: the base cannot be loaded, or nobody says which it is.
    """
    paths = [Path(place) for place in places]
    shares = _weights(weights, len(paths))
    if how not in mixing.WAYS:
        raise SettingsError(f"there is no way called {how!r} to merge; there are {', '.join(mixing.WAYS)}")
    if density is not None and not 0 < density <= 1:
        raise SettingsError(f"density is {density:g}; give a share above 0 and at most 1, such as 0.5")
    sources = [starting.source_of(path) for path in paths]
    trainings = [lineage.of_run(path) for path in paths]
    settings = _settings(paths, base)
    output = Path(output)
    folder.require_free(output)
    verdict = _verdict(paths, unreleased)
    loaded = load_base(settings, consent)
    parts = [_part(path, settings, loaded, share) for path, share in zip(paths, shares, strict=True)]
    mixture = Mixture(scale=lora.scaling(loaded.adapter), rank=rank, density=density)
    made = mixing.WAYS[how](loaded.targets, parts, mixture)
    files.write(output, made, loaded)
    stop = stop_ids(Template.of(settings.data), loaded.tokenizer)
    files.write_tokenizer(output, loaded, stop)
    said = {"how": how, "rank": rank, "density": density}
    named = zip(paths, shares, sources, trainings, strict=True)
    text = card.mixed(
        output.name,
        base=settings.model,
        parts=[(path.name, share, source["sha256"], made) for path, share, source, made in named],
        how={name: value for name, value in said.items() if value is not None},
        release=verdict,
    )
    write_atomic(output / CARD, text)
    return output


def _verdict(paths: Sequence[Path], unreleased: bool) -> release.Release:
    """What the gates of the runs say; none of them is of the result, so that none can release it."""
    reasons: list[str] = []
    for path in map(folder.run_of, paths):
        if folder.is_run(path):
            found = release.require_released(path, release.of_run(path), unreleased)
            reasons += [f"{path.name}: {reason}" for reason in found.reasons]
    return release.Release(asked=bool(reasons), reasons=tuple(reasons))


def _weights(weights: Sequence[float], count: int) -> list[float]:
    if not weights:
        return [1 / count] * count
    if len(weights) != count:
        raise SettingsError(f"there are {count} adapters and {len(weights)} weights; give one for each")
    if not all(math.isfinite(weight) and weight for weight in weights):
        raise SettingsError("a weight is 0 or not finite; leave that adapter out, or give another weight")
    return list(weights)


def _settings(paths: Sequence[Path], base: str | None) -> RunSettings:
    """What the base is loaded by: the run file of the first run, with the first adapter's own table."""
    runs = [path for path in paths if folder.is_run(path)]
    table = _table(paths[0])
    if runs:
        if base is not None:
            raise SettingsError(f"the run in {runs[0]} says which base it is of; leave out the base")
        return folder.planned(runs[0]).model_copy(update={"adapter": table})
    base = base or _named(paths[0])
    asked = {"model": {"base": base}, "data": {"source": WORLD}, "machine": {"threads": 1}}
    settings = parse(asked)
    return settings.model_copy(update={"adapter": table})


def _table(path: Path) -> AdapterTable:
    """The adapter's table of a folder; without dropout, since nothing is tuned."""
    if folder.is_run(path) and not (path / "adapter" / files.WEIGHTS).is_file():
        found = folder.read_settings(path).adapter
    else:
        found = files.read_config(path / "adapter" if folder.is_run(path) else path)
    return found.model_copy(update={"dropout": 0.0, "start": ""})


def _named(path: Path) -> str:
    """The base that an adapter names, if it is a folder of this disk; the hub is not asked for another's."""
    name = files.base_of(path)
    if not os.path.isdir(name):
        raise BaseError(
            f"adapter {path} names the base {name!r}, which is no folder here; say which it is with --base"
        )
    return name


def _part(path: Path, settings: RunSettings, base: Base, weight: float) -> Part:
    table = _table(path)
    own = replace(base, adapter=table)  # each has a scale of its own
    return Part(name=str(path), adapter=adapter_at(path, own), scale=lora.scaling(table), weight=weight)
