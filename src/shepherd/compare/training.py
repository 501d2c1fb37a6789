"""Train the arms: federated ones as runs, local and centralised ones as the clients of one cohort.

A local arm is one long visit of a client to its own data, the centralised arm one to everybody's. Nothing is
averaged, so all of them are tuned side by side over one base, as the clients of a round are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from shepherd.algorithms import fedavg
from shepherd.compare.adapters import digest_of
from shepherd.compare.arms import WAYS, Arm, Way
from shepherd.compare.folders import TUNED, arm_folder, read_json, write_json
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Broadcast, Failure, chain, not_finite, seed_for
from shepherd.data.pipeline import TokenisedData
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError, FolderError
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.machine import plan as plans
from shepherd.machine.executors import Executor
from shepherd.machine.plan import Plan
from shepherd.model import files, lora
from shepherd.model.base import Base
from shepherd.run import checkpoint, folder
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run, resume
from shepherd.run.run import Run
from shepherd.settings import FederationTable, RunSettings, TuningTable
from shepherd.training.local import completed, local_training

OPEN = {"model.dtype": "auto", "model.revision": None, "data.date": ""}
"""Keys that a run fills in where they are left open, as here: then whatever it took is what was asked."""
NO_DIFFERENCE = ("judge", "tracking", "output", "machine")
"""Parts of the run file that change nothing of what is trained, or only its last bits."""
log = logging.getLogger(__name__)
Train = Callable[[Callable[[], Run]], None]  # open a run and go through its rounds, showing them


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a federated run trained: `steps` of a client in every round; `examples` and `tokens` in all."""

    steps: int
    examples: int
    tokens: int
    seconds: float

    def matched(self, way: Way) -> int:
        """How many steps, or examples, an arm that is not federated trains."""
        return self.steps if way == "steps" else self.examples


def totals(path: Path) -> Totals:
    """Of a finished run, from its log."""
    rows = [row for row in read_rows(path) if row["round"] > 0]
    clients = [max(1, len(row["losses"])) for row in rows]
    return Totals(
        steps=max(1, round(sum(row["steps"] / n for row, n in zip(rows, clients, strict=True)))),
        examples=sum(row["examples"] for row in rows),
        tokens=sum(row["tokens"]["seen"] for row in rows),
        seconds=sum(row["seconds"]["tuning"] for row in rows),
    )


def train_run(
    settings: RunSettings, train: Train, prepared: TokenisedData | None = None, consent: Consent = NOTHING
) -> None:
    """Train the run in `settings.output`, go on with it, or find it finished.

    Args:
        prepared: the data, where another run has read and divided them already.

    Raises:
        FolderError: the folder holds a run of other settings.
        DataError: no held-out example is left by the template and `max_tokens`.
    """
    path = Path(settings.output)
    if not folder.is_run(path):
        train(lambda: _begun(settings, prepared, consent))
        return
    require_same(settings, path, consent)
    if not finished(path):
        train(lambda: resume(path, consent))


def _begun(settings: RunSettings, prepared: TokenisedData | None, consent: Consent) -> Run:
    run = open_run(settings, prepared, consent)
    if not len(run.prepared.heldout):
        run.close()
        raise DataError(
            f"no held-out example of {settings.data.source} is left to compare on"
            f" ({'; '.join(run.prepared.dropped)}); raise data.max_tokens or change data.template,"
            " and give output=ANOTHER_FOLDER"
        )
    return run


def finished(path: Path) -> bool:
    """Whether a run's last round is done and its adapter written."""
    last = checkpoint.latest(path / "checkpoints")
    rounds = folder.read_settings(path).federation.rounds
    done = max((row["round"] for row in read_rows(path)), default=0)
    return last is not None and done >= rounds and (path / "adapter" / files.CONFIG).is_file()


def require_same(settings: RunSettings, path: Path, consent: Consent = NOTHING) -> None:
    """Raise FolderError where the run in `path` was started with other settings, by the first such key."""
    kept, plan = folder.read_settings(path), plans.read(path)
    asked, found, filled = (
        completed(each, consent.plugins).model_dump()  # whoever wrote a default means the same
        for each in (settings, kept, plan.over(kept) if plan else kept)
    )
    different = {key for key, *_ in _differing(asked, filled)}
    for key, wanted, was in _differing(asked, found):
        if key not in different or (plan is None and key == "model.revision"):
            continue  # which an earlier version wrote the commit over
        raise FolderError(
            f"{path} holds a run with {key} = {was!r}, not {wanted!r}; give output=ANOTHER_FOLDER"
        )


def _differing(wanted: Any, found: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Keys whose value was given and is another one."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        inner = [
            _differing(wanted[name], found.get(name), f"{key}.{name}" if key else name)
            for name in wanted
            if key or name not in NO_DIFFERENCE
        ]
        return [each for part in inner for each in part]
    left_open = key == "evaluation.metrics" or (key in OPEN and wanted == OPEN[key])
    return [] if left_open or wanted == found else [(key, wanted, found)]


def train_references(
    base: Base,
    settings: RunSettings,
    plan: Plan,
    prepared: TokenisedData,
    arms: Sequence[Arm],
    run: Path,
    number: int,
    *,
    done: Totals,
    seed: int,
    executor: Executor,
    consent: Consent,
) -> None:
    """Train the local arms and the centralised ones that are not there yet, as rows of one cohort.

    What is there stays as it is and is not trained again. A row's last bits depend on the rows beside it, so
    an arm that is added later may differ in them from one that was asked for at once (law 1).

    Args:
        settings: of the run that they stand beside, with what its plan chose.
        plan: of that run.
        arms: all that are compared, also those that are there.
        done: what the federated arm of this seed was trained with.
        seed: of the first adapter (the federated arm's own) and of the order of the examples.
        executor: where the arms are tuned.
        consent: which modules from outside may be imported.

    Raises:
        DataError: a client's step holds no trained token, or an arm diverged.
        FolderError: an adapter cannot be written, or was trained otherwise.
    """
    places = {arm.name: arm_folder(run, number, arm) for arm in arms}
    made = {arm.name: {arm.match: done.matched(arm.match), "seed": seed} for arm in arms}
    _complete(places)
    there = {name for name, place in places.items() if _trained(place, made[name])}
    groups = _groups(arms, plan.stack_size)
    todo = [left for group in groups if (left := [name for name in group if name not in there])]
    if not todo:
        return
    for way in WAYS:
        if names := [arm.name for arm in arms if arm.match == way and arm.name not in there]:
            each = " each" * (len(names) > 1)
            log.info("tuning %s for %s %s%s", _named(names), f"{done.matched(way):,}", way, each)
    datasets = {arm.name: _data(arm, prepared) for arm in arms}
    by_examples = [arm.name for arm in arms if arm.match == "examples"]
    local = LocalClients(
        datasets=datasets,
        algorithm=fedavg.ALGORITHM,
        transform=chain(),
        tuning=_table(settings.tuning, done),
        federation=FederationTable(rounds=1),
        micro_batch_tokens=plan.micro_batch_tokens,
        order_seed=seed,
        training=local_training(settings.tuning, consent.plugins),
        epochs={name: done.examples / len(datasets[name]) for name in by_examples},
    )
    simulation = Simulation(local=local, executor=executor, stack_size=max(map(len, groups)))
    first = lora.fresh(base.sites, settings.adapter.rank, seed_for(seed, "adapter"))
    broadcast = Broadcast(round=0, adapter=first, seed=seed_for(seed, "arms"))
    began, beside = perf_counter(), dict[str, dict[str, Any]]()
    last = {group[-1] for group in todo}
    for update in simulation.run_groups(broadcast, todo):
        if isinstance(update, Failure):
            raise DataError(f"arm {update.client}: {update.reason}")
        adapter = Adapter({name: first[name] + change for name, change in update.delta.items()})
        _require_finite(update.client, adapter, update.metrics["loss"])
        place, metrics = places[update.client], update.metrics
        files.write(place, adapter, base)
        tuned = {name: metrics[name] for name in ("steps", "examples", "tokens", "loss")}
        # what is tuned beside others has no time of its own
        seconds = None if executor.count > 1 else perf_counter() - began
        kept = {**tuned, "asked": made[update.client], "seconds": seconds, "adapter": digest_of(place)}
        beside[update.client] = kept
        if update.client in last:
            _keep(places, beside)
            began, beside = perf_counter(), {}


def _keep(places: Mapping[str, Path], beside: Mapping[str, Mapping[str, Any]]) -> None:
    """Say that the arms of one pass are whole: all with the first file, since alone they have other bits."""
    for name, tuned in beside.items():
        write_json(places[name] / TUNED, {**tuned, "beside": beside})
        log.info("  %s is tuned: %s steps, %s examples", name, tuned["steps"], f"{tuned['examples']:,}")


def _complete(places: Mapping[str, Path]) -> None:
    """Say it of those that a kill came before."""
    for place in places.values():
        for name, tuned in ((read_json(place / TUNED) or {}).get("beside") or {}).items():
            path = places.get(name)
            if path is None or read_json(path / TUNED) is not None:
                continue
            if (path / files.CONFIG).is_file() and digest_of(path) == tuned["adapter"]:  # and no later one's
                write_json(path / TUNED, tuned)


def _groups(arms: Sequence[Arm], size: int) -> list[list[str]]:
    """Which arms are tuned at once: as many as clients of the run, and none beside a shorter one.

    A long arm would go on alone in the end, so it is in no group with short ones, and workers begin with the
    largest of the groups that they look at. It stands last, since results are written down in this order.
    """
    names = [[arm.name for arm in arms if arm.match == way] for way in WAYS]
    return [same[start : start + size] for same in names for start in range(0, len(same), size)]


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


def _data(arm: Arm, prepared: TokenisedData) -> Tokens:
    if arm.client is not None:
        return prepared.clients[arm.client]
    return Tokens.pooled(list(prepared.clients.values()))


def _table(tuning: TuningTable, done: Totals) -> TuningTable:
    """One visit for the whole training: the schedule over the rounds becomes that over the steps."""
    over_rounds = tuning.round_schedule != "constant"
    return tuning.model_copy(
        update={
            "epochs": None,
            "max_steps": done.steps,
            "schedule": tuning.round_schedule if over_rounds else tuning.schedule,
            "round_schedule": "constant",
        }
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more arms"
