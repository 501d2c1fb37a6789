"""Compare arms: train those that are not trained, score those that are not scored, and write the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

from shepherd import plugins
from shepherd.compare import benchmarks, evaluating, harmful_prompts, privacy, table
from shepherd.compare.adapters import arm_adapter, digest
from shepherd.compare.arms import (
    BASE,
    BY_STEPS,
    CENTRALISED,
    FEDERATED,
    START,
    UNTRAINED,
    Arm,
    CompareSpec,
    arms,
    variant,
)
from shepherd.compare.folders import (
    COMPARISON,
    PLAN,
    TUNED,
    arm_folder,
    compare_folder,
    comparison,
    keep_plan,
    read_json,
    scores_file,
    seed_folder,
    write_json,
)
from shepherd.compare.scoring import ArmToScore, Questions, questions, score_arms
from shepherd.compare.training import Train, totals, train_references, train_run
from shepherd.consent import NOTHING, Consent
from shepherd.data import data_folder, dataset, pipeline
from shepherd.errors import FolderError, SettingsError
from shepherd.evaluate.against import summaries
from shepherd.evaluate.metric import Metric, metrics
from shepherd.io import private
from shepherd.judge.gather import require_ready
from shepherd.machine import planning
from shepherd.machine.plan import read as read_plan
from shepherd.model.base import Base
from shepherd.overrides import overridden
from shepherd.privacy import required
from shepherd.run import folder, ledger, score_file, stages
from shepherd.run.folder import planned
from shepherd.run.loading import load_base
from shepherd.run.run import Run, executor
from shepherd.settings import RunSettings
from shepherd.training.local import local_training, require
from shepherd.training.objective import Objective

FORMAT = 1
Row = dict[str, Any]


def _train(opened: Callable[[], Run]) -> None:
    with opened() as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)


def compare(
    settings: RunSettings,
    spec: CompareSpec,
    *,
    train: Train = _train,
    consent: Consent = NOTHING,
    max_calls: int | None = None,
) -> Row:
    """Compare the arms of `spec` in the folder of the run, and return the content of comparison.json.

    Arms that are trained and scored already are not done again. Progress goes to the logger "shepherd" at
    level INFO.

    Args:
        train: opens a run with the function that it is given, and trains its rounds.
        consent: what a person has agreed to; the settings alone cannot allow it.
        max_calls: most requests to the judge about answers to `evaluation.harmful`; 0 asks it nothing.

    Raises:
        SettingsError: an arm cannot be read.
        DataError: no example could be held out, or `evaluation.harmful` cannot be read.
        JudgeError: the judge of answers to `evaluation.harmful` could not be asked.
        FolderError: the folder holds another run, or a comparison made another way, or another process is
            working in it.
    """
    run = Path(settings.output)
    if folder.is_over_silos(run):
        raise FolderError(
            f"the run in {run} is over silos, whose data are not here to train the other arms on; compare a"
            " run in one process, with output=ANOTHER_FOLDER"
        )
    *earlier, last = stages.settings_of(settings)
    for stage in (*earlier, last):
        _require_arms(stage, spec if stage is last else CompareSpec(), consent)
    _require_data(last, spec, consent)
    if harmful_prompts.required(last, consent) and last.judge.model and not is_finished(last, spec):
        require_ready(last.judge, consent, max_calls)
    for kept in (compare_folder(run) / COMPARISON, compare_folder(run) / PLAN):
        read_json(kept)  # a damaged file would stop it after the training
    score_file.read(run)
    began = perf_counter()
    if earlier:
        stages.begin(settings, consent)
    for stage in earlier:
        train_run(stage, train, consent=consent)
        stages.require_model(Path(stage.output))
    settings = last
    train_run(settings, train, consent=consent)
    with closing(folder.reopen(run)):  # two comparisons in one folder would tune the same arms
        return _compare_arms(settings, spec, train, consent, began, max_calls)


def _compare_arms(
    settings: RunSettings,
    spec: CompareSpec,
    train: Train,
    consent: Consent,
    began: float,
    max_calls: int | None,
) -> Row:
    """Compare the arms in the folder of a finished run."""
    run = Path(settings.output)
    prepared = data_folder.load(run / "data")
    chosen = arms(spec, sorted(prepared.clients), started=bool(settings.adapter.start))
    keep_plan(run, spec.match, settings.compare, chosen)
    _write_begun(run, settings, spec, chosen)
    _train_runs(settings, spec, chosen, prepared, train, consent)
    kept = planned(run)
    base = load_base(kept, consent)
    plan = read_plan(run) or planning.from_run_file(kept, base)
    # what is measured may change between two comparisons of one run
    kept = kept.model_copy(update={"evaluation": settings.evaluation})
    measured = metrics(kept.evaluation.metrics, consent.plugins)
    asking = kept.model_copy(update={"judge": settings.judge})
    evaluating.require_answers(base, harmful_prompts.required(asking, consent), kept)
    asked = questions(base, kept, prepared)
    with closing(executor(kept, plan, base, consent)) as where:
        for number in range(spec.seeds):
            train_references(
                base,
                kept,
                plan,
                prepared,
                arms=[arm for arm in chosen if arm.kind in ("local", "centralised")],
                run=run,
                number=number,
                done=totals(arm_folder(run, number, _federated(chosen))),
                seed=settings.seed + number,
                executor=where,
                consent=consent,
            )
        for number in range(spec.seeds):
            score_arms(
                _arms_to_score(run, number, chosen, base),
                asked,
                base=base,
                settings=kept,
                plan=plan,
                prepared=prepared,
                metrics=measured,
                executor=where,
            )
    found = _write_results(
        run,
        kept,
        spec,
        chosen=chosen,
        prepared=prepared,
        asked=asked,
        measured=measured,
        began=began,
        objective=local_training(kept.tuning, consent.plugins).objective,
    )
    if kept.evaluation.harmful:
        evaluating.probe(run, base, asking, chosen, spec.seeds, consent, max_calls)
    return benchmarks.join(run) or found


def is_finished(settings: RunSettings, spec: CompareSpec) -> bool:
    """Whether all arms of `spec` are compared in the run's folder, so that no long work comes first."""
    found = comparison(Path(settings.output))
    if not found:
        return False
    clients = data_folder.load(Path(settings.output) / "data").clients
    asked = {arm.name for arm in arms(spec, sorted(clients), started=bool(settings.adapter.start))}
    return asked <= {row["name"] for row in found["arms"]} and spec.seeds <= len(found["seeds"])


def _train_runs(
    settings: RunSettings,
    spec: CompareSpec,
    chosen: Sequence[Arm],
    prepared: dataset.TokenisedData,
    train: Train,
    consent: Consent,
) -> None:
    """Train the arms that are runs of their own: variants, and the federated arm of each further seed."""
    run = Path(settings.output)
    for number in range(spec.seeds):
        private.make(seed_folder(run, number))
        for arm in chosen:
            if arm.kind == "variant" or (arm.kind == FEDERATED and number):
                train_run(_settings_of(settings, run, arm, number), train, prepared, consent)


def _federated(chosen: Sequence[Arm]) -> Arm:
    (arm,) = (arm for arm in chosen if arm.kind == FEDERATED)
    return arm


def _arms_to_score(run: Path, number: int, chosen: Sequence[Arm], base: Base) -> list[ArmToScore]:
    """Arms of one seed; the base has none, and is scored with the first."""
    return [
        ArmToScore(
            name=arm.name,
            adapter=partial(arm_adapter, run, number, arm, base),
            path=scores_file(run, number, arm),
            digest=digest(run, number, arm),
        )
        for arm in chosen
        if arm.name not in UNTRAINED or not number
    ]


def _require_arms(settings: RunSettings, spec: CompareSpec, consent: Consent) -> None:
    """Check the arms before any training.

    Raises:
        SettingsError: nothing is held out, a variant has a key that a run file does not have, or the run
            hides what it trains on.
    """
    if not settings.data.holdout and not settings.evaluation.data:
        raise SettingsError(
            "no example is held out to compare on; set data.holdout, for example to 0.1, or evaluation.data"
        )
    if settings.privacy.examples is not None:
        raise SettingsError(
            "[privacy.examples] hides how many examples each round trains on, so no other arm could train on"
            " as many; compare a run without it, and add the noise as a variant:"
            ' "private: privacy.examples.norm=1.0 privacy.examples.noise=1.0"'
        )
    if plugins.method(settings, consent.plugins).is_private:
        raise SettingsError(
            "the other arms would train on as many examples as the federated one, which its noise hides;"
            " remove the transform here and give it to a variant by --arm, or compare finished runs:"
            " shepherd compare RUN_A RUN_B"
        )
    if settings.secure is not None:
        raise SettingsError(
            "the other arms would train on as many examples as the federated one, which [secure] does not"
            " tell; remove [secure] here and give it to a variant by --arm, or compare finished runs:"
            " shepherd compare RUN_A RUN_B"
        )
    metrics(settings.evaluation.metrics, consent.plugins)
    for changed in (settings, *(overridden(settings, variant(each).overrides) for each in spec.variants)):
        require(changed, consent.plugins)
        if not plugins.algorithm(changed.algorithm, consent.plugins).server_is_model:
            raise SettingsError(
                f"algorithm.name = {changed.algorithm.name!r} leaves a part of each model with its client, so"
                " there is no one model to compare; see the clients' losses in rounds.jsonl of its run"
            )


def _require_data(settings: RunSettings, spec: CompareSpec, consent: Consent) -> None:
    """Check names and held-out examples before any training.

    Raises:
        SettingsError: a client or an arm that is asked for does not exist, or a variant's noise gives no
            guarantee.
        DataError: nothing is held out.
    """
    run = Path(settings.output)
    if not folder.is_run(run):
        division = pipeline.divide(settings, consent.plugins)
        dataset.require_heldout(len(division.held.heldout), settings.data.source)
        arms(spec, sorted(division.clients))
        _require_variants_private(settings, spec, division.sizes, consent)
    elif data_folder.whole(run / "data"):
        prepared = data_folder.load(run / "data")
        dataset.require_heldout(len(prepared.heldout), settings.data.source)
        _require_variants_private(settings, spec, prepared.sizes, consent)


def _require_variants_private(
    settings: RunSettings, spec: CompareSpec, sizes: Mapping[str, int], consent: Consent
) -> None:
    """Raise SettingsError if the noise of a variant gives no guarantee, or a weaker one than is asked for.

    It is asked for each seed, which decides whom each round asks, and not of a training that has begun:
    it goes on as it began, also if that was with another default delta.
    """
    for each in spec.variants:
        for number in range(spec.seeds):
            if folder.is_run(arm_folder(Path(settings.output), number, variant(each))):
                continue
            changes = [*variant(each).overrides, f"seed={settings.seed + number}"]
            required.require_private(overridden(settings, changes), sizes, consent.plugins)


def _write_begun(run: Path, settings: RunSettings, spec: CompareSpec, chosen: Sequence[Arm]) -> None:
    """Write what the report shows while arms are trained: the arms without numbers. Older results stay."""
    path = compare_folder(run) / COMPARISON
    if read_json(path) is not None:
        return
    nothing: Row = {"trained": None, "measures": {}, "category": {}, "client_loss": {}, "worst_client": None}
    nothing |= {"adapters": [], "by_adapter": {}, **dict.fromkeys(ledger.UNITS)}
    arms_ = [
        {"name": arm.name, "kind": arm.kind, "client": arm.client, "categories": {}, **nothing}
        | {"overrides": list(arm.overrides)}
        for arm in chosen
    ]
    begun = {
        **_head(settings, spec),
        "finished": False,
        "arms": arms_,
        "differences": [],
        "says": [],
        "verdicts": [],
        "scores": [],
        "judge": None,
        "samples": [],
    }
    write_json(path, begun)


def _head(settings: RunSettings, spec: CompareSpec) -> Row:
    return {
        "format": FORMAT,
        "match": spec.match,
        "seeds": [settings.seed + number for number in range(spec.seeds)],
        "against": FEDERATED,
    }


def _settings_of(settings: RunSettings, run: Path, arm: Arm, number: int) -> RunSettings:
    """Settings of an arm's own run: the same data, the arm's overrides, and the seed of this repetition."""
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


def _write_results(
    run: Path,
    settings: RunSettings,
    spec: CompareSpec,
    *,
    chosen: Sequence[Arm],
    prepared: dataset.TokenisedData,
    asked: Questions,
    measured: Sequence[Metric],
    began: float,
    objective: Objective,
) -> Row:
    """Write comparison.json from the scores of all arms, and return its content."""
    scores = {arm.name: _scores(run, arm, spec.seeds) for arm in chosen}
    started = any(arm.name == START for arm in chosen)
    reference = START if started else BASE
    measures = table.measured(scores, asked, prepared, spec.seeds, measured, objective, reference)
    rows = table.differences(measures)
    trained = {arm.name: _training_of(run, arm) for arm in chosen}
    effort = [table.lengths(chosen, trained), *table.own_tuning(chosen, settings)]
    found = summaries(
        rows,
        chief=table.RIGHT,
        references=(CENTRALISED, BY_STEPS),
        amounts=table.unequal(chosen, trained),
    )
    private = {arm.name: _trained(run, arm, spec.seeds) for arm in chosen}
    tuned = {arm.name: private[arm.name] for arm in chosen if arm.name not in UNTRAINED}
    notes = [*table.notes(measures, asked, prepared, reference), *privacy.said(tuned)]
    kept = read_json(compare_folder(run) / COMPARISON) or {}
    result = {
        **_head(settings, spec),
        "finished": True,
        "questions": len(asked.answers),
        "loss_examples": len(asked.losses),
        "seconds": perf_counter() - began,
        "measures": [each.measure.row() for each in measures],
        "arms": [
            table.arm_row(
                arm,
                measures,
                scores[arm.name],
                asked,
                prepared,
                trained[arm.name],
                private[arm.name][0].spent,
            )
            for arm in chosen
        ],
        "differences": [row.row() for row in rows],
        "says": list(dict.fromkeys([*effort, *chain.from_iterable(found), *notes])),
        "verdicts": [*effort, *(each[0] for each in found), *notes],
        "scores": benchmarks.scores(run, chosen, spec.seeds),
        "judge": kept.get("judge"),
        "samples": table.samples(scores, asked, prepared),
    }
    write_json(compare_folder(run) / COMPARISON, result)
    return result


def _scores(run: Path, arm: Arm, seeds: int) -> list[Mapping[str, Any]]:
    found = [read_json(scores_file(run, n, arm)) for n in range(1 if arm.name in UNTRAINED else seeds)]
    return [each for each in found if each is not None]


def _trained(run: Path, arm: Arm, seeds: int) -> list[privacy.Trained]:
    """What each training of the arm spent of its clients' privacy, and what was before it."""
    if arm.kind not in ("federated", "variant"):
        return [privacy.Trained(spent={})]
    return [privacy.trained(arm_folder(run, number, arm)) for number in range(seeds)]


def _training_of(run: Path, arm: Arm) -> Row | None:
    """Steps, examples and tokens that the arm was trained with, for the first seed; None for the base."""
    match arm.kind:
        case "base" | "start":
            return None
        case "federated" | "variant":
            return asdict(totals(arm_folder(run, 0, arm)))
        case _:
            tuned = read_json(arm_folder(run, 0, arm) / TUNED) or {}
            return {name: tuned.get(name) for name in ("steps", "examples", "tokens", "seconds")}
