"""Stages of a run: several trainings one after another, each from the adapter of the one before.

The run file names what differs in each stage; everything else holds for all of them. Each stage is a run with
a folder of its own, whose `adapter.start` is the stage before, so that it resumes, reports and answers as any
run does:

runs/NAME/            the last stage
  stages.toml         the run file with its stages, as it was given
  stages/01-sft/      the first one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shepherd import plugins
from shepherd.config import validated
from shepherd.consent import NOTHING, Consent
from shepherd.data import files, pipeline
from shepherd.errors import FolderError, SettingsError
from shepherd.io import private
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.io.phrases import listed
from shepherd.overrides import dump, plain, read_kept
from shepherd.privacy.required import require_private
from shepherd.run import checkpoint, folder
from shepherd.run.folder import STAGES, STAGES_FILE
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.run import Run
from shepherd.settings import PrivacyTable, RunSettings
from shepherd.training.local import require

SHARED = ("model", "adapter", "output", "machine", "silos", "stages")
"""Tables and keys that all stages share."""
NAMES = ("name", "by")
"""Keys by which a table finds a part; a stage that gives one gives the whole table."""
Train = Callable[[Callable[[], Run]], None]


def settings_of(settings: RunSettings) -> tuple[RunSettings, ...]:
    """The settings of each stage, as those of a run of its own; of a run without stages, its own.

    Raises:
        SettingsError: a stage changes what all share, or has a key that a run file does not have.
    """
    if not settings.stages:
        return (settings,)
    whole = {key: value for key, value in plain(settings).items() if key != "stages"}
    found: list[RunSettings] = []
    for number, stage in enumerate(settings.stages, 1):
        own = {key: value for key, value in stage.items() if key != "name"}
        if found:
            own["adapter"] = {"start": str(Path(found[-1].output).absolute())}
        where = f"stage {number} of {len(settings.stages)}"
        if wrong := [key for key in stage if key in SHARED]:
            raise SettingsError(
                f"{where} sets {wrong[0]}, which all stages share; set it above the stages of the run file"
            )
        last = number == len(settings.stages)
        output = settings.output if last else str(_place(settings, number))
        found.append(validated(RunSettings, _over(whole, {**own, "output": output}), where))
    return tuple(found)


def _over(table: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the keys of a change, table by table; one that names another part replaces the table.

    >>> _over({"a": {"name": "x", "own": 1}, "b": {"c": 1, "d": 2}}, {"a": {"name": "y"}, "b": {"d": 3}})
    {'a': {'name': 'y'}, 'b': {'c': 1, 'd': 3}}
    """
    inner = {
        key: _over(table[key], value)
        if isinstance(value, Mapping)
        and isinstance(table.get(key), Mapping)
        and not any(value.get(name, table[key].get(name)) != table[key].get(name) for name in NAMES)
        else value
        for key, value in change.items()
    }
    return {**table, **inner}


def _place(settings: RunSettings, number: int) -> Path:
    tail = re.sub(r"[^\w.-]+", "-", str(settings.stages[number - 1].get("name", ""))).strip("-.")
    return Path(settings.output) / STAGES / (f"{number:02d}-{tail}" if tail else f"{number:02d}")


def begin(settings: RunSettings, consent: Consent = NOTHING) -> None:
    """Write the run file with its stages into the run folder: new, of the same stages, or with none begun.

    Raises:
        SettingsError: as `required`; or the noise of a stage that has not begun does not keep what its
            [privacy] promises.
        DataError: the data of such a stage are not there, or cannot be read where it adds noise.
        FolderError: the folder holds another run, or cannot be written.
    """
    for stage in required(settings, consent):
        if not folder.is_run(stage.output):
            files.require_there(stage.data.source)
            if stage.data.root:
                files.require_there(stage.data.root, "data.root")
            if stage.privacy != PrivacyTable() or _adds_noise(stage, consent):
                shares = pipeline.divide(stage, consent.plugins).clients
                sizes = {name: len(share) for name, share in shares.items()}
                require_private(stage, sizes, consent.plugins)
    kept = of_folder(settings.output)
    if kept is not None and kept != settings and has_begun(kept):
        raise FolderError(
            f"{settings.output} holds a run with other stages; continue that with `shepherd resume"
            f" {settings.output}`, or set output to a new folder"
        )
    if kept != settings:
        folder.require_free(settings.output)
        with disk_errors(Path(settings.output)):
            private.make(Path(settings.output))
        write_atomic(Path(settings.output) / STAGES_FILE, dump(settings))


def has_begun(settings: RunSettings) -> bool:
    """Whether a stage of the run has begun; before that, other stages may take its place."""
    return any(folder.is_run(stage.output) for stage in settings_of(settings))


def required(settings: RunSettings, consent: Consent = NOTHING) -> tuple[RunSettings, ...]:
    """The settings of each stage, if all of them can be built and at most one of them adds noise.

    Raises:
        SettingsError: as `settings_of`; a part of a stage cannot be built; or several stages add noise: each
            counts what it spends itself, and a client that is in two of them spends both.
    """
    found = settings_of(settings)
    for stage in found:  # a mistake in the last one is not to be found after hours
        require(stage, consent.plugins)
    noisy = [number for number, stage in enumerate(found, 1) if _adds_noise(stage, consent)]
    if len(noisy) > 1:
        raise SettingsError(
            f"stages {listed([str(number) for number in noisy])} of {len(found)} add noise, and each would"
            " count its own epsilon, while a client that is in all of them spends their sum; write its"
            " [[transforms]] and [privacy] into one stage alone"
        )
    return found


def _adds_noise(stage: RunSettings, consent: Consent) -> bool:
    return stage.privacy.examples is not None or plugins.method(stage, consent.plugins).is_private


def of_folder(path: str | Path) -> RunSettings | None:
    """The run file with stages of a run folder, wherever that is now; None if its run has none.

    Raises:
        FolderError: the file is damaged.
    """
    file = Path(path) / STAGES_FILE
    if not file.is_file():
        return None
    try:
        return read_kept(file).model_copy(update={"output": str(path)})
    except SettingsError as error:
        raise FolderError(f"{file} is damaged ({error}); restore it from a copy") from error


def train_before(settings: RunSettings, train: Train, consent: Consent = NOTHING) -> RunSettings:
    """Train or continue all stages but the last; a stage that is finished is not trained again.

    Args:
        train: opens a run with the function that it is given, trains its rounds and finishes it.
        consent: what a person has agreed to; the settings alone cannot allow it.

    Returns:
        The settings of the last stage.

    Raises:
        SettingsError: as `required`; or a stage leaves no adapter to go on from.
        ShepherdError: as `open_run` and `resume`.
    """
    *earlier, last = required(settings, consent)
    for stage in earlier:
        path = Path(stage.output)
        if not folder.is_run(path):
            train(partial(open_run, stage, consent=consent))
        elif not folder.is_finished(path):
            train(partial(resume, path, consent))
        require_model(path)
    return last


def require_model(path: Path) -> None:
    """Require that the run in a folder has ended with an adapter that a stage can go on from.

    Raises:
        FolderError: it is not finished.
        SettingsError: the server's adapter of its algorithm is no model.
    """
    last = checkpoint.latest(path / "checkpoints")
    if last is None or not folder.is_finished(path):
        raise FolderError(f"the run in {path} is not finished; continue it with `shepherd resume {path}`")
    if not checkpoint.load(last).notes.get("is_model", True):
        raise SettingsError(
            f"the run in {path} leaves a part of each model with its client, so no stage can go on from it;"
            " choose another algorithm for that stage"
        )


def open_stages(settings: RunSettings, consent: Consent = NOTHING) -> Iterator[Run]:
    """Open the stages of a run one after another; each must be trained to its end before the next.

    for run in open_stages(read("run.toml")):
        with run:
            for state, row in run.rounds():
                print(row["round"], row["loss"])
            run.finish()

    A run without stages is one stage. Stages that are finished are left out, so that the same call continues
    a run that was stopped.

    Raises:
        ShepherdError: as `begin`, `open_run`, `resume` and `require_model`.
    """
    if settings.stages:
        begin(settings, consent)
    stages = required(settings, consent)
    for number, stage in enumerate(stages, 1):
        path = Path(stage.output)
        if not folder.is_run(path):
            yield open_run(stage, consent=consent)
        elif not folder.is_finished(path):
            yield resume(path, consent)
        if number < len(stages):
            require_model(path)
