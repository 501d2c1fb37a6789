"""Train the arms: federated ones as runs, local and centralised ones as the clients of one stack.

A local arm is one long visit of a client to its own data, the centralised arm one to all clients' data.
Nothing is averaged, so all of them are tuned side by side over one base, like the clients of a round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from shepherd.algorithms import fedavg
from shepherd.compare.arms import WAYS, Arm, Way
from shepherd.compare.folders import TUNED, arm_folder, read_json, write_json
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Broadcast, Failure, Update, chain, not_finite, seed_for
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.machine import plan as plans
from shepherd.machine.executors import Executor
from shepherd.machine.plan import Plan
from shepherd.model import files
from shepherd.model.base import Base
from shepherd.run import checkpoint, folder, starting
from shepherd.run.log import hides_amounts, read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.run import Run
from shepherd.run.score_file import digest_of
from shepherd.settings import CompareTable, FederationTable, RunSettings, TuningTable
from shepherd.training.local import completed, local_training

OPEN = {"model.dtype": "auto", "model.revision": None, "data.date": ""}
"""Keys with these values are open: a run fills them in, and any value of it is what was asked for."""
NO_DIFFERENCE = ("compare", "judge", "tracking", "output", "machine")
"""Parts of the run file that do not change what is trained, or only its last bits."""
log = logging.getLogger(__name__)
Train = Callable[[Callable[[], Run]], None]  # open a run and go through its rounds, showing them


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Totals of a federated run: `steps` of a client in every round, `examples` and `tokens` of all.

    None is what the run does not say, since its noise or [secure] hides it.
    """

    steps: int | None
    examples: int | None
    tokens: int | None
    seconds: float | None

    def matched(self, way: Way) -> int:
        """Number of steps, or of examples, that an arm that is not federated trains.

        Raises:
            SettingsError: the run does not say.
        """
        amount = self.steps if way == "steps" else self.examples
        if amount is None:
            raise SettingsError(
                "the federated run does not say how much it trained, so no other arm can train as much;"
                " compare finished runs: shepherd compare RUN_A RUN_B"
            )
        return amount


def totals(path: Path) -> Totals:
    """Sum up a finished run from its log."""
    rows = [row for row in read_rows(path) if row["round"] > 0]
    timed = all("tuning" in row.get("seconds", {}) for row in rows)
    seconds = sum(row["seconds"]["tuning"] for row in rows) if timed else None
    if any(map(hides_amounts, rows)):
        return Totals(steps=None, examples=None, tokens=None, seconds=seconds)
    clients = [max(1, len(row["losses"])) for row in rows]
    return Totals(
        steps=max(1, round(sum(row["steps"] / n for row, n in zip(rows, clients, strict=True)))),
        examples=sum(row["examples"] for row in rows),
        tokens=sum(row["tokens"]["seen"] for row in rows),
        seconds=seconds,
    )


def train_run(
    settings: RunSettings,
    train: Train,
    prepared: TokenisedData | None = None,
    consent: Consent = NOTHING,
) -> None:
    """Train the run in `settings.output`, or continue it; nothing is done if it is finished.

    Args:
        prepared: the data, if another run has read and divided them already.

    Raises:
        FolderError: the folder holds a run with other settings.
        DataError: the template and `max_tokens` leave no held-out example.
    """
    path = Path(settings.output)
    if not folder.is_run(path):
        train(lambda: _open_with_heldout(settings, prepared, consent))
        return
    require_same(settings, path, consent)
    if not finished(path):
        train(lambda: resume(path, consent))


def _open_with_heldout(settings: RunSettings, prepared: TokenisedData | None, consent: Consent) -> Run:
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
    """Raise FolderError if the run in `path` was started with other settings; names the first such key.

    It also is where `adapter.start` holds another adapter now.
    """
    kept, plan = folder.read_settings(path), plans.read(path)
    asked, found, filled = (
        completed(each, consent.plugins).model_dump()  # a default that is written out means the same
        for each in (settings, kept, plan.over(kept) if plan else kept)
    )
    different = {key for key, *_ in _differing(asked, filled)}
    for key, requested, was in _differing(asked, found):
        if key not in different or (plan is None and key == "model.revision"):
            continue  # an earlier version wrote the commit there
        raise FolderError(
            f"{path} holds a run with {key} = {was!r}, not {requested!r}; give output=ANOTHER_FOLDER"
        )
    if changed := starting.change(path, settings):
        raise FolderError(f"{changed}; give output=ANOTHER_FOLDER")


def _differing(requested: Any, found: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Keys that are set to different values, as (key, asked, found)."""
    if isinstance(requested, Mapping) and isinstance(found, Mapping):
        inner = [
            _differing(requested[name], found.get(name), f"{key}.{name}" if key else name)
            for name in requested
            if key or name not in NO_DIFFERENCE
        ]
        return [each for part in inner for each in part]
    left_open = key in ("evaluation.metrics", "evaluation.harmful") or (
        key in OPEN and requested == OPEN[key]
    )
    return [] if left_open or requested == found else [(key, requested, found)]


def train_references(
    base: Base,
    settings: RunSettings,
    plan: Plan,
    prepared: TokenisedData,
    *,
    arms: Sequence[Arm],
    run: Path,
    number: int,
    done: Totals,
    seed: int,
    executor: Executor,
    consent: Consent,
) -> None:
    """Train the local and centralised arms that are missing, as rows of one stack.

    Existing arms stay and are not trained again. The last bits of a row depend on the rows beside it, so an
    arm that is added later may differ in them from one that was trained with the others (law 1).

    Args:
        settings: the run's, filled in from its plan.
        plan: the run's.
        arms: all arms that are compared, including existing ones.
        run: folder of the run.
        number: index of the seed, from 0.
        done: what the federated arm of this seed was trained with.
        seed: seed of the first adapter (that of the federated arm, unless adapter.start names one) and of the
            order of the examples.
        executor: where the arms are tuned.
        consent: modules outside the package that may be imported.

    Raises:
        DataError: a client's step holds no trained token, or an arm diverged.
        FolderError: an adapter cannot be written, or an existing one was trained another way.
    """
    places = {arm.name: arm_folder(run, number, arm) for arm in arms}
    made = {arm.name: _asked(arm, settings.compare, done, seed) for arm in arms}
    _complete(places)
    existing = {name for name, place in places.items() if _is_trained(place, made[name])}
    stacks = _stacks(arms, plan.stack_size)
    todo = [left for names in stacks if (left := [name for name in names if name not in existing])]
    if not todo:
        return
    for way in WAYS:
        if names := [arm.name for arm in arms if arm.match == way and arm.name not in existing]:
            each = " each" * (len(names) > 1)
            log.info("tuning %s for %s %s%s", _first_names(names), f"{done.matched(way):,}", way, each)
    before = starting.before(run, settings, base)
    local = _clients(arms, settings, plan, prepared, done=done, seed=seed, consent=consent, before=before)
    simulation = Simulation(local=local, executor=executor, stack_size=max(map(len, stacks)))
    first = starting.kept(run, settings.adapter, base, seed)
    updates = simulation.run_groups(Broadcast(round=0, adapter=first, seed=seed_for(seed, "arms")), todo)
    _write_arms(updates, first, base, todo, places, made, timed=executor.count == 1)


def _clients(
    arms: Sequence[Arm],
    settings: RunSettings,
    plan: Plan,
    prepared: TokenisedData,
    *,
    done: Totals,
    seed: int,
    consent: Consent,
    before: Adapter | None,
) -> LocalClients:
    """The arms as clients, each with one visit for its whole training."""
    trained_on = prepared.trained_on
    datasets = {arm.name: _dataset(arm, trained_on) for arm in arms}
    training = local_training(settings.tuning, consent.plugins)
    sizes = {name: len(data) / training.objective.group_size for name, data in datasets.items()}
    by_examples = [arm.name for arm in arms if arm.match == "examples"]
    tuning = _tuning_in_one_visit(settings.tuning, done.matched("steps"))
    return LocalClients(
        datasets=datasets,
        algorithm=fedavg.ALGORITHM,
        transform=chain(),
        tuning=tuning,
        federation=FederationTable(rounds=1),
        micro_batch_tokens=plan.micro_batch_tokens,
        order_seed=seed,
        training=training,
        tunings={
            name: _long_training(tuning, settings.compare, done.matched("examples") / sizes[name])
            for name in by_examples
        },
        reference=before,
    )


def _write_arms(
    updates: Iterable[Update | Failure],
    first: Adapter,
    base: Base,
    todo: Sequence[Sequence[str]],
    places: Mapping[str, Path],
    made: Mapping[str, Mapping[str, float]],
    *,
    timed: bool,
) -> None:
    """Write each arm's adapter as it is ready, and a record of each stack when all of it is."""
    began, stack = perf_counter(), dict[str, dict[str, Any]]()
    last = {names[-1] for names in todo}
    for update in updates:
        if isinstance(update, Failure):
            raise DataError(f"arm {update.client}: {update.reason}")
        adapter = Adapter({name: first[name] + change for name, change in update.delta.items()})
        _require_finite(update.client, adapter, update.metrics["loss"])
        place, metrics = places[update.client], update.metrics
        files.write(place, adapter, base)
        tuned = {name: metrics[name] for name in ("steps", "examples", "tokens", "loss")}
        # stacks that are tuned at the same time have no time of their own
        seconds = perf_counter() - began if timed else None
        kept = {**tuned, "asked": made[update.client], "seconds": seconds, "adapter": digest_of(place)}
        stack[update.client] = kept
        if update.client in last:
            _record(places, stack)
            began, stack = perf_counter(), {}


def _record(places: Mapping[str, Path], stack: Mapping[str, Mapping[str, Any]]) -> None:
    """Record that the arms of one stack are complete.

    Each file names the whole stack, since an arm tuned alone has other bits: after a kill between two files,
    `_complete` writes the missing ones.
    """
    for name, tuned in stack.items():
        write_json(places[name] / TUNED, {**tuned, "beside": stack})
        log.info("  %s is tuned: %s steps, %s examples", name, tuned["steps"], f"{tuned['examples']:,}")


def _complete(places: Mapping[str, Path]) -> None:
    """Write the records that a kill has cut off."""
    for place in places.values():
        for name, tuned in ((read_json(place / TUNED) or {}).get("beside") or {}).items():
            path = places.get(name)
            if path is None or read_json(path / TUNED) is not None:
                continue
            if (path / files.CONFIG).is_file() and digest_of(path) == tuned["adapter"]:  # and not a later one
                write_json(path / TUNED, tuned)


def _stacks(arms: Sequence[Arm], size: int) -> list[list[str]]:
    """Group the arms that are tuned in one stack: as many as clients of the run, and of one length.

    A long arm would be tuned alone at the end of a stack with short ones. Workers begin with the largest
    group that is ready; long arms come last, since results are written in this order.
    """
    names = [[arm.name for arm in arms if arm.match == way] for way in WAYS]
    return [same[start : start + size] for same in names for start in range(0, len(same), size)]


def _is_trained(path: Path, made: Mapping[str, float]) -> bool:
    tuned = read_json(path / TUNED)
    if tuned is None:
        return False
    if tuned.get("asked") != made:
        raise FolderError(
            f"{path} holds an arm with another length, seed, batch size or rate; move it away, and the arm is"
            " trained again"
        )
    return True


def _require_finite(arm: str, adapter: Adapter, loss: float) -> None:
    if not np.isfinite(loss) or any(not_finite(adapter)):
        raise DataError(f"arm {arm} diverged: its numbers are no longer finite; lower tuning.learning_rate")


def _dataset(arm: Arm, trained_on: Mapping[str, Tokens]) -> Tokens:
    if arm.client is not None:
        return trained_on[arm.client]
    return Tokens.pooled(list(trained_on.values()))


def _tuning_in_one_visit(tuning: TuningTable, steps: int) -> TuningTable:
    """Settings for training in one visit: the schedule over the rounds becomes the one over the steps."""
    over_rounds = tuning.round_schedule != "constant"
    return tuning.model_copy(
        update={
            "epochs": None,
            "max_steps": steps,
            "schedule": tuning.round_schedule if over_rounds else tuning.schedule,
            "round_schedule": "constant",
        }
    )


def _long_training(tuning: TuningTable, asked: CompareTable, epochs: float) -> TuningTable:
    """Settings for an arm that is matched by examples."""
    return tuning.model_copy(
        update={
            "epochs": epochs,
            "max_steps": None,
            "batch_size": asked.batch_size or tuning.batch_size,
            "learning_rate": asked.learning_rate or tuning.learning_rate,
        }
    )


def _asked(arm: Arm, asked: CompareTable, done: Totals, seed: int) -> dict[str, float]:
    """What an arm is trained with, to know it again."""
    own = asked.model_dump(exclude_none=True) if arm.match == "examples" else {}
    return {arm.match: done.matched(arm.match), "seed": seed, **own}


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more arms"
