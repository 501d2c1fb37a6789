"""The whole comparison: train the arms that are not trained, score what is not scored, make the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from shepherd.compare import table
from shepherd.compare.adapters import arm_adapter, digest
from shepherd.compare.arms import BASE, FEDERATED, Arm, CompareSpec, arms, variant
from shepherd.compare.folders import (
    COMPARISON,
    TUNED,
    arm_folder,
    compare_folder,
    keep_plan,
    read_json,
    scores_file,
    seed_folder,
    write_json,
)
from shepherd.compare.scoring import Questions, questions, score_arms
from shepherd.compare.training import Train, totals, train_references, train_run
from shepherd.consent import NOTHING, Consent
from shepherd.data import pipeline
from shepherd.errors import FolderError, SettingsError
from shepherd.evaluate.metric import Metric, metrics
from shepherd.io import private
from shepherd.machine import planning
from shepherd.machine.plan import read as read_plan
from shepherd.overrides import overridden
from shepherd.run import folder
from shepherd.run.folder import planned
from shepherd.run.loading import load_base
from shepherd.run.run import Run, executor
from shepherd.settings import RunSettings
from shepherd.training.local import require

FORMAT = 1
Row = dict[str, Any]


def _train(opened: Callable[[], Run]) -> None:
    with opened() as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)


def compare(
    settings: RunSettings,
    asked: CompareSpec,
    *,
    train: Train = _train,
    consent: Consent = NOTHING,
) -> Row:
    """Make the comparison in the folder of the run, or what of it is not made yet; returns comparison.json.

    Says what it does to the logger "shepherd", at level INFO.

    Args:
        train: opens a run with the function it is given and goes through its rounds.
        consent: what a person has agreed to that the settings only wish for.

    Raises:
        SettingsError: an arm cannot be read.
        DataError: nothing could be held out.
        FolderError: the folder holds another run or a comparison made another way, or another process is at
            work in it.
    """
    run = Path(settings.output)
    if folder.is_over_silos(run):
        raise FolderError(
            f"the run in {run} is over silos, whose data are not here to train the other arms on; compare a"
            " run of one process, with output=ANOTHER_FOLDER"
        )
    _require_arms(settings, asked, consent)
    _require_data(settings, asked, consent)
    began = perf_counter()
    train_run(settings, train, consent=consent)
    with closing(folder.reopen(run)):  # two comparisons in one folder would tune the same arms
        return _made(settings, asked, train, consent, began)


def _made(settings: RunSettings, asked: CompareSpec, train: Train, consent: Consent, began: float) -> Row:
    """The comparison beside a finished run."""
    run = Path(settings.output)
    prepared = pipeline.load(run / "data")
    chosen = arms(asked, sorted(prepared.clients))
    keep_plan(run, asked.match, chosen)
    _begun(run, settings, asked, chosen)
    for number in range(asked.seeds):
        private.make(seed_folder(run, number))
        for arm in chosen:
            if arm.kind == "variant" or (arm.kind == FEDERATED and number):
                train_run(_settings_of(settings, run, arm, number), train, prepared, consent)
    kept = planned(run)
    base = load_base(kept, consent)
    plan = read_plan(run) or planning.written(kept, base)
    # what is measured may change between two comparisons of one run
    kept = kept.model_copy(update={"evaluation": settings.evaluation})
    measured = metrics(kept.evaluation.metrics, consent.plugins)
    wanted = questions(base, kept, prepared)
    apart = [arm for arm in chosen if arm.kind in ("local", "centralised")]
    (federated,) = (arm for arm in chosen if arm.kind == FEDERATED)
    with closing(executor(plan, base, consent)) as where:
        for number in range(asked.seeds):
            done, seed = totals(arm_folder(run, number, federated)), settings.seed + number
            train_references(
                base,
                kept,
                plan,
                prepared,
                apart,
                run,
                number,
                done=done,
                seed=seed,
                executor=where,
                consent=consent,
            )
        for number in range(asked.seeds):
            todo = [arm for arm in chosen if arm.kind != "base" or not number]  # the base has no seed
            score_arms(
                base,
                kept,
                plan,
                prepared,
                wanted,
                {arm.name: partial(arm_adapter, run, number, arm, base) for arm in todo},
                {arm.name: scores_file(run, number, arm) for arm in todo},
                {arm.name: digest(run, number, arm) for arm in todo},
                measured,
                where,
            )
    return _tabled(kept, prepared, run, chosen, asked, wanted, measured, began)


def _require_arms(settings: RunSettings, asked: CompareSpec, consent: Consent) -> None:
    """A mistake in what is asked costs no training.

    Raises:
        SettingsError: nothing is held out, or a variant's keys are not those of a run file.
    """
    if not settings.data.holdout:
        raise SettingsError("nothing is held out to compare on; set data.holdout, such as 0.1")
    metrics(settings.evaluation.metrics, consent.plugins)
    for arm in map(variant, asked.variants):
        changed = overridden(settings, arm.overrides)
        require(changed, consent.plugins)


def _require_data(settings: RunSettings, asked: CompareSpec, consent: Consent) -> None:
    """A wrong name, or nothing to score, costs no training.

    Raises:
        SettingsError: no client, or no arm, has a name that is asked for.
        DataError: nothing is held out.
    """
    run = Path(settings.output)
    if not folder.is_run(run):
        division = pipeline.divide(settings, consent.plugins)
        pipeline.require_heldout(len(division.held.heldout), settings.data.source)
        arms(asked, sorted(division.clients))
    elif pipeline.whole(run / "data"):
        pipeline.require_heldout(len(pipeline.load(run / "data").heldout), settings.data.source)


def _begun(run: Path, settings: RunSettings, asked: CompareSpec, chosen: Sequence[Arm]) -> None:
    """What the report shows while arms are trained: the arms, and no number yet. Older results stay."""
    path = compare_folder(run) / COMPARISON
    if read_json(path) is not None:
        return
    nothing: Row = {"trained": None, "measures": {}, "category": {}, "client_loss": {}, "worst_client": None}
    arms_ = [
        {"name": arm.name, "kind": arm.kind, "client": arm.client, "categories": {}, **nothing}
        | {"overrides": list(arm.overrides)}
        for arm in chosen
    ]
    begun = {
        **_head(settings, asked),
        "finished": False,
        "arms": arms_,
        "differences": [],
        "says": [],
        "judge": None,
        "samples": [],
    }
    write_json(path, begun)


def _head(settings: RunSettings, asked: CompareSpec) -> Row:
    return {
        "format": FORMAT,
        "match": asked.match,
        "seeds": [settings.seed + number for number in range(asked.seeds)],
        "against": FEDERATED,
    }


def _settings_of(settings: RunSettings, run: Path, arm: Arm, number: int) -> RunSettings:
    """A run on the same data, with the arm's overrides and the seed of this repetition."""
    date = planned(run).data.date  # of the first run, whose data these are
    data = settings.data.model_copy(update={"seed": settings.data_seed, "date": date})
    changed = overridden(settings, arm.overrides)
    return changed.model_copy(
        update={
            "output": str(arm_folder(run, number, arm)),
            "seed": settings.seed + number,
            "data": data,
        }
    )


def _tabled(
    settings: RunSettings,
    prepared: pipeline.TokenisedData,
    run: Path,
    chosen: Sequence[Arm],
    asked: CompareSpec,
    wanted: Questions,
    measured: Sequence[Metric],
    began: float,
) -> Row:
    scores = {arm.name: _scores(run, arm, asked.seeds) for arm in chosen}
    measures = table.measured(scores, wanted, prepared, asked.seeds, measured)
    rows = table.differences(measures)
    trained = {arm.name: _told(run, arm) for arm in chosen}
    kept = read_json(compare_folder(run) / COMPARISON) or {}
    made = {
        **_head(settings, asked),
        "finished": True,
        "questions": len(wanted.answers),
        "loss_examples": len(wanted.losses),
        "seconds": perf_counter() - began,
        "measures": [each.measure.row() for each in measures],
        "arms": [
            table.arm_row(arm, measures, scores[arm.name], wanted, prepared, trained[arm.name])
            for arm in chosen
        ],
        "differences": [row.row() for row in rows],
        "says": [table.lengths(chosen, trained), *table.sentences(rows)],
        "judge": kept.get("judge"),
        "samples": table.samples(scores, wanted, prepared),
    }
    write_json(compare_folder(run) / COMPARISON, made)
    return made


def _scores(run: Path, arm: Arm, seeds: int) -> list[Mapping[str, Any]]:
    found = [read_json(scores_file(run, n, arm)) for n in range(1 if arm.name == BASE else seeds)]
    return [each for each in found if each is not None]


def _told(run: Path, arm: Arm) -> Row | None:
    """What the arm was trained with, of the first seed."""
    match arm.kind:
        case "base":
            return None
        case "federated" | "variant":
            return asdict(totals(arm_folder(run, 0, arm)))
        case _:
            tuned = read_json(arm_folder(run, 0, arm) / TUNED) or {}
            return {name: tuned.get(name) for name in ("steps", "examples", "tokens", "seconds")}
