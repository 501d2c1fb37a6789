"""Train the arms: federated ones as runs, local and centralised ones as the clients of one cohort.

A local arm is one long visit of a client to its own data, the centralised arm one to everybody's. Nothing is
averaged, so all of them are tuned side by side over one base, as the clients of a round are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from shepherd import checkpoint, folder
from shepherd.algorithms import fedavg
from shepherd.compare.arms import Arm, Way
from shepherd.compare.folders import TUNED, arm_folder, read_json, write_json
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Broadcast, Failure, chain, not_finite, seed_for
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError, FolderError
from shepherd.federation.simulation import Simulation
from shepherd.federation.workers import beside
from shepherd.model import files, lora, memory
from shepherd.model.base import Base
from shepherd.prepare import Prepared
from shepherd.run import Run, open_run, resume
from shepherd.settings import FederationTable, RunSettings, TuningTable

# what a run lays out by measuring, and writes down otherwise than it was given
CHOSEN = (
    "tuning.threads", "tuning.workers", "tuning.cohort_size", "tuning.micro_batch_tokens",
    "model.dtype", "model.device",
)  # fmt: skip
log = logging.getLogger(__name__)
Train = Callable[[Callable[[], Run]], None]  # open a run and go through its rounds, showing them


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Of a training: so many optimiser steps, or so many examples, whichever is not None."""

    steps: int | None = None
    examples: int | None = None

    def __str__(self) -> str:
        return f"{self.examples:,} examples" if self.steps is None else f"{self.steps:,} steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a federated run trained: `steps` of a client in every round; `examples` and `tokens` in all."""

    steps: int
    examples: int
    tokens: int
    seconds: float

    def matched(self, match: Way) -> Length:
        """How long an arm that is not federated trains."""
        return Length(steps=self.steps) if match == "steps" else Length(examples=self.examples)


def totals(path: Path) -> Totals:
    """Of a finished run, from its log."""
    rows = [row for row in folder.read_rows(path) if row["round"] > 0]
    clients = [max(1, len(row["losses"])) for row in rows]
    return Totals(
        steps=max(1, round(sum(row["steps"] / n for row, n in zip(rows, clients, strict=True)))),
        examples=sum(row["examples"] for row in rows),
        tokens=sum(row["tokens"]["seen"] for row in rows),
        seconds=sum(row["seconds"]["tuning"] for row in rows),
    )


def train_run(
    settings: RunSettings, train: Train, prepared: Prepared | None = None, consent: Consent = NOTHING
) -> None:
    """Train the run in `settings.output`, go on with it, or find it finished.

    Args:
        prepared: the data, where another run has read and divided them already.

    Raises:
        FolderError: the folder holds a run of other settings.
    """
    path = Path(settings.output)
    if not folder.is_run(path):
        train(lambda: open_run(settings, prepared, consent))
        return
    require_same(settings, path)
    if not finished(path):
        train(lambda: resume(path, consent))


def finished(path: Path) -> bool:
    """Whether a run's last round is done and its adapter written."""
    last = checkpoint.latest(path / "checkpoints")
    rounds = folder.read_settings(path).federation.rounds
    done = max((row["round"] for row in folder.read_rows(path)), default=0)
    return last is not None and done >= rounds and (path / "adapter" / files.CONFIG).is_file()


def require_same(settings: RunSettings, path: Path) -> None:
    """Raise FolderError where the run in `path` was started with other settings, by the first such key."""
    kept = folder.read_settings(path).model_dump()
    for key, wanted, found in _differing(settings.model_dump(), kept):
        raise FolderError(
            f"{path} holds a run with {key} = {found!r}, not {wanted!r}; give output=ANOTHER_FOLDER"
        )


def _differing(wanted: Any, found: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Keys whose value was given and is another; what was left to choose is what the run chose."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        inner = [
            _differing(wanted[name], found.get(name), f"{key}.{name}" if key else name)
            for name in wanted
            if name not in ("judge", "tracking", "output")
        ]
        return [each for part in inner for each in part]
    chosen = key in CHOSEN or (key == "data.date" and not wanted)
    return [] if chosen or wanted == found else [(key, wanted, found)]


def train_apart(
    base: Base,
    settings: RunSettings,
    prepared: Prepared,
    arms: Sequence[Arm],
    run: Path,
    number: int,
    *,
    length: Length,
    seed: int,
    consent: Consent = NOTHING,
) -> None:
    """Train the local arms and the centralised one that are not there yet, all as rows of one cohort.

    Args:
        settings: of the run that they stand beside, with what it chose by measuring.
        length: of each arm's training.
        seed: of the first adapter (the federated arm's own) and of the order of the examples.

    Raises:
        DataError: a client's step holds no trained token, or an arm diverged.
        FolderError: an adapter cannot be written, or was trained otherwise.
    """
    places = {arm.name: arm_folder(run, number, arm) for arm in arms}
    made = {**{k: v for k, v in asdict(length).items() if v is not None}, "seed": seed}
    todo = [arm for arm in arms if not _trained(places[arm.name], made)]
    if not todo:
        return
    log.info("tuning %s for %s%s", _named(todo), length, " each" * (len(todo) > 1))
    datasets = {arm.name: _data(arm, prepared) for arm in todo}
    table = _table(settings.tuning, length)
    laid = _plan(base, datasets, table, length)
    workers = beside(laid.workers, base.table, settings.adapter, base.proof, consent)
    simulation = Simulation(
        base=base,
        datasets=datasets,
        algorithm=fedavg.ALGORITHM,
        transform=chain(),
        tuning=table.model_copy(update=asdict(laid)),
        federation=FederationTable(rounds=1),
        seed=seed,
        cohort_size=laid.cohort_size,
        workers=workers,
        epochs={name: length.examples / len(data) for name, data in datasets.items()}
        if length.examples is not None
        else {},
    )
    first = lora.fresh(base.sites, settings.adapter.rank, seed_for(seed, "adapter"))
    broadcast = Broadcast(round=0, adapter=first, seed=seed_for(seed, "arms"))
    try:
        began = perf_counter()
        for update in simulation.run(broadcast, [arm.name for arm in todo]):
            if isinstance(update, Failure):
                raise DataError(f"arm {update.client}: {update.reason}")
            adapter = Adapter({name: first[name] + change for name, change in update.delta.items()})
            _require_finite(update.client, adapter, update.metrics["loss"])
            files.write(places[update.client], adapter, base)
            told = {name: update.metrics[name] for name in ("steps", "examples", "tokens", "loss")}
            since, began = perf_counter() - began, perf_counter()
            write_json(places[update.client] / TUNED, {**told, "asked": made, "seconds": since})
            log.info(
                "  %s is tuned: %s steps, %s examples", update.client, told["steps"], f"{told['examples']:,}"
            )
    finally:
        if workers:
            workers.close()


def _trained(path: Path, made: Mapping[str, int]) -> bool:
    tuned = read_json(path / TUNED)
    if tuned is None:
        return False
    if tuned.get("asked") != made:
        raise FolderError(
            f"{path} holds an arm of another length or seed; move it away, and it is trained again"
        )
    return True


def _require_finite(arm: str, adapter: Adapter, loss: float) -> None:
    if not np.isfinite(loss) or any(not_finite(adapter)):
        raise DataError(
            f"arm {arm} diverged: its numbers are not finite any more; lower tuning.learning_rate"
        )


def _data(arm: Arm, prepared: Prepared) -> Tokens:
    if arm.client is not None:
        return prepared.clients[arm.client]
    return Tokens.pooled(list(prepared.clients.values()))


def _table(tuning: TuningTable, length: Length) -> TuningTable:
    """One visit for the whole training: the schedule over the rounds becomes that over the steps."""
    over_rounds = tuning.round_schedule != "constant"
    return tuning.model_copy(
        update={
            "epochs": None,
            "max_steps": length.steps,
            "schedule": tuning.round_schedule if over_rounds else tuning.schedule,
            "round_schedule": "constant",
        }
    )


def _plan(base: Base, datasets: Mapping[str, Tokens], table: TuningTable, asked: Length) -> memory.Plan:
    tokens = sum(len(data.ids) for data in datasets.values())
    length = tokens / sum(len(data) for data in datasets.values())
    examples = asked.examples or (asked.steps or 1) * table.batch_size
    assert table.micro_batch_tokens != "auto"
    return memory.plan(
        base,
        clients=len(datasets),
        step_tokens=length * table.batch_size,
        all_tokens=length * examples * len(datasets),
        micro_batch=table.micro_batch_tokens,
        workers=1 if table.workers == 1 else None,
    )


def _named(arms: Sequence[Arm]) -> str:
    names = [arm.name for arm in arms]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more arms"
