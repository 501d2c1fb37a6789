"""Compare finished runs on the held-out examples that they share: of any rank, base, template or method.

An example that each run held out is one that none of them trained on. Each run answers with its own base,
adapter and template; nothing is written into the runs' folders. A PEFT folder may stand beside the runs, such
as one of several adapters merged: it answers with the base and the template of the first run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.compare import privacy
from shepherd.compare.scoring import Sheet, score_one
from shepherd.compare.table import RIGHT, Measured, seen_unequally
from shepherd.compare.training import Totals, finished, totals
from shepherd.consent import NOTHING, Consent
from shepherd.data import data_folder
from shepherd.data.examples import Example
from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.evaluate import loss, scripts
from shepherd.evaluate.against import against, summaries
from shepherd.evaluate.draws import draws
from shepherd.evaluate.metric import Metric, metrics, scores
from shepherd.evaluate.sentences import LOSS
from shepherd.evaluate.statistics import interval, sample
from shepherd.io.phrases import listed
from shepherd.io.progress import many
from shepherd.machine import plan as plans
from shepherd.machine import planning
from shepherd.model import files
from shepherd.model.answer import prompt_ids
from shepherd.overrides import overridden, plain
from shepherd.run import folder, ledger
from shepherd.run.answerer import adapter_of
from shepherd.run.changes import NO_DIFFERENCE, differing
from shepherd.run.loading import load_base
from shepherd.settings import EvaluationTable, RunSettings
from shepherd.training.tune import predictions

Row = dict[str, Any]
Floats = NDArray[np.float64]
PER_CHARACTER = replace(LOSS, label="held-out loss per character", unit="nats a character")
ADAPTER_ALONE = (
    "{name} is an adapter without a run: it answers with the base and the template of {first}, and nothing"
    " says whether it was tuned on these examples."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunToCompare:
    """A finished run, with the places of the shared examples among its held-out ones; or a PEFT folder."""

    name: str
    path: Path
    settings: RunSettings
    places: Sequence[int]
    data: Path
    """Folder of the tokenised data: the run's own, or for a PEFT folder that of the first run."""
    trained: Totals | None
    """None for a PEFT folder, which does not say."""
    private: privacy.Trained
    """What the run spent of its clients' privacy, and what was before it; nothing for a PEFT folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Scores of one run on the shared examples."""

    sums: Floats
    """Summed loss of each example, (Q,), in nats."""
    tokens: Floats
    """Trained tokens of each example, (Q,)."""
    texts: Mapping[int, str]
    """Answer to each example that was asked, by its index; a prompt without room for an answer has none."""


def compare_runs(paths: Sequence[Path], overrides: Sequence[str] = (), consent: Consent = NOTHING) -> Row:
    """Compare the first run with each other one; the result has the form of comparison.json.

    Args:
        overrides: `key=value` texts for [evaluation], which is that of the first run.
        consent: what a person has agreed to; the run files alone cannot allow it.

    Raises:
        SettingsError: fewer than two runs, one is named twice, or an override is of another table.
        FolderError: a path holds no run, an unfinished one, or one over silos.
        DataError: the runs share no held-out example.
    """
    runs, examples, left_out = _opened(paths)
    evaluation = _evaluation(runs[0].settings, overrides)
    measured_by = metrics(evaluation.metrics, consent.plugins)
    named = [example.category or "all" for example in examples]
    chosen = loss.stratified_subset(named, evaluation.examples).tolist()
    asked = loss.stratified_subset(named, evaluation.answers).tolist()
    found = {run.name: _scored(run, chosen, asked, evaluation, consent) for run in runs}
    measures = _measured(found, examples, chosen, measured_by)
    first = runs[0].name
    rows = [
        row
        for each in measures
        if each.measure.name in (LOSS.name, RIGHT)
        for row in against(first, each.values, each.draws, each.measure, each.weights)
    ]
    answered = _answered(found)
    said = summaries(
        rows,
        chief=RIGHT,
        references=[run.name for run in runs[1:]],
        amounts=seen_unequally(
            first, {run.name: {"examples": run.trained.examples} for run in runs if run.trained}
        ),
    )
    notes = _notes(runs, left_out, measures, [examples[place] for place in answered])
    return {
        "format": 1,
        "match": "runs",
        "seeds": [runs[0].settings.seed],
        "against": first,
        "finished": True,
        "questions": len(answered),
        "loss_examples": len(chosen),
        "measures": [each.measure.row() for each in measures],
        "arms": [_arm_row(run, measures, first) for run in runs],
        "differences": [row.row() for row in rows],
        "says": list(dict.fromkeys([*chain.from_iterable(said), *notes])),
        "verdicts": [*(each[0] for each in said), *notes],
        "judge": None,
        "samples": [],
    }


def _opened(paths: Sequence[Path]) -> tuple[list[RunToCompare], list[Example], int]:
    """The runs, the held-out examples that all share, and how many others are held out in some."""
    if len(paths) < 2:
        raise SettingsError("name two finished runs or more to compare them: shepherd compare RUN_A RUN_B")
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingsError("a run is named twice; name each once")
    adapters = [path for path in paths[1:] if is_adapter(path)]
    whole = [path for path in paths if path not in adapters]
    heldout = {}
    for path in whole:
        if folder.is_over_silos(path):
            raise FolderError(
                f"the run in {path} is over silos, whose held-out examples stay at its sites; compare runs in"
                " one process"
            )
        folder.read_settings(path)
        if not finished(path):
            raise FolderError(f"the run in {path} is not finished; finish it with `shepherd resume {path}`")
        heldout[path] = data_folder.load(path / "data").heldout_examples
    keys = {path: [_key(example) for example in examples] for path, examples in heldout.items()}
    shared = set.intersection(*map(set, keys.values()))
    if not shared:
        raise DataError(
            f"{listed([str(path) for path in whole])} have no held-out example in common; train them on the"
            " same data.source with the same data.holdout and data.seed, which is `seed` where it is not set"
        )
    order = list(dict.fromkeys(key for key in keys[paths[0]] if key in shared))
    names = dict(zip(paths, _names(paths), strict=True))
    own = {
        path: RunToCompare(
            name=names[path],
            path=path,
            settings=folder.planned(path),
            places=[keys[path].index(key) for key in order],
            data=path / "data",
            trained=totals(path),
            private=privacy.trained(path),
        )
        for path in whole
    }
    own |= {path: _beside(own[paths[0]], names[path], path) for path in adapters}
    runs = [own[path] for path in paths]
    every = set().union(*map(set, keys.values()))
    return runs, [heldout[paths[0]][place] for place in runs[0].places], len(every) - len(shared)


def is_adapter(path: Path) -> bool:
    """Whether a path is a PEFT folder, and no run."""
    return (path / files.CONFIG).is_file() and not folder.is_run(path)


def _beside(first: RunToCompare, name: str, path: Path) -> RunToCompare:
    """A PEFT folder, asked as the first run is, over the first run's base."""
    table = files.read_config(path)
    return replace(
        first,
        name=name,
        path=path,
        settings=first.settings.model_copy(update={"adapter": table}),
        trained=None,
        private=privacy.Trained(spent={}),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the runs: of their folders, or whole paths where two folders have one name."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _key(example: Example) -> str:
    return json.dumps([asdict(turn) for turn in example.turns], sort_keys=True)


def _evaluation(settings: RunSettings, overrides: Sequence[str]) -> EvaluationTable:
    for override in overrides:
        if not override.startswith("evaluation."):
            raise SettingsError(
                f"override {override!r} is not of [evaluation], the one table that a comparison of finished"
                " runs uses; write evaluation.answers=40"
            )
    return overridden(settings, overrides).evaluation if overrides else settings.evaluation


def _scored(
    run: RunToCompare,
    chosen: Sequence[int],
    asked: Sequence[int],
    evaluation: EvaluationTable,
    consent: Consent,
) -> Scored:
    log.info("scoring %s", run.name)
    settings = run.settings
    base = load_base(settings, consent)
    plan = plans.read(run.data.parent) or planning.from_run_file(settings, base)
    prepared = data_folder.load(run.data)
    held = prepared.heldout.take([run.places[place] for place in chosen])
    prompts = {
        place: prompt_ids(base, settings.data, prepared.heldout_examples[run.places[place]].turns[:-1])
        for place in ([] if base.proof.mute else asked)
    }
    room = {
        place: ids for place, ids in prompts.items() if base.max_length is None or len(ids) < base.max_length
    }
    sheet = Sheet(
        examples=held,
        prompts=list(room.values()),
        data=settings.data,
        max_new_tokens=evaluation.max_new_tokens,
        micro_batch=plan.micro_batch_tokens,
    )
    adapter = files.read(run.path, base) if run.trained is None else adapter_of(run.path, base)
    sums, _, texts = score_one(base, (sheet, adapter))
    return Scored(
        sums=np.array(sums),
        tokens=predictions(held).astype(np.float64),
        texts=dict(zip(room, texts, strict=True)),
    )


def _answered(found: Mapping[str, Scored]) -> list[int]:
    """Indices of the examples that every run has answered."""
    return sorted(set.intersection(*(set(each.texts) for each in found.values())))


def _measured(
    found: Mapping[str, Scored],
    examples: Sequence[Example],
    chosen: Sequence[int],
    measured_by: Sequence[Metric],
) -> list[Measured]:
    measures = [each for each in (_loss(found, examples, chosen),) if each is not None]
    answered = _answered(found)
    for metric in measured_by:
        table = {
            name: [
                scores([metric], each.texts[place], examples[place])[metric.measure.name]
                for place in answered
            ]
            for name, each in found.items()
        }
        kept = [i for i in range(len(answered)) if all(values[i] is not None for values in table.values())]
        if kept:
            measures.append(
                Measured(
                    measure=metric.measure,
                    values={
                        name: np.array([float(each[i] or 0) for i in kept]) for name, each in table.items()
                    },
                    draws=draws([examples[answered[i]].category or "all" for i in kept]),
                )
            )
    return measures


def _loss(found: Mapping[str, Scored], examples: Sequence[Example], chosen: Sequence[int]) -> Measured | None:
    """Loss per token where all runs have the same tokens, else per character of the expected response."""
    counts = np.array([each.tokens for each in found.values()])  # (runs, Q)
    trained: NDArray[np.bool_] = np.all(counts > 0, axis=0)
    if not trained.any():
        return None
    alike = bool((counts == counts[0]).all())
    letters = np.array([float(max(1, len(examples[place].response))) for place in chosen])
    weights = (counts[0] if alike else letters)[trained]
    return Measured(
        measure=LOSS if alike else PER_CHARACTER,
        values={name: each.sums[trained] / weights for name, each in found.items()},
        draws=draws(
            [
                examples[place].category or "all"
                for place, kept in zip(chosen, trained.tolist(), strict=True)
                if kept
            ]
        ),
        weights=weights,
    )


def _arm_row(run: RunToCompare, measures: Sequence[Measured], first: str) -> Row:
    def of(each: Measured, category: str | None = None) -> Row:
        drawn = each.draws if category is None else each.draws.only(category)
        one = sample(each.values[run.name], drawn, each.weights, each.measure.span)
        return dict(interval(one).row())

    spent = run.private.spent
    return {
        "name": run.name,
        "kind": "federated" if run.name == first else "variant",
        "client": None,
        "categories": {},
        "overrides": [],
        "trained": asdict(run.trained) if run.trained else None,
        **{key: spent[key].row() if key in spent else None for key in ledger.UNITS},
        "adapters": [],
        "measures": {each.measure.name: of(each) for each in measures},
        "by_adapter": {},
        "category": {
            each.measure.name: {name: of(each, name) for name in sorted(set(each.draws.strata))}
            for each in measures
        },
        "client_loss": {},
        "worst_client": None,
    }


def _notes(
    runs: Sequence[RunToCompare], left_out: int, measures: Sequence[Measured], answered: Sequence[Example]
) -> list[str]:
    """Sentences on how the runs differ and on what was compared."""
    said = [_differs(runs[0], run) for run in runs[1:] if run.trained]
    said += [ADAPTER_ALONE.format(name=run.name, first=runs[0].name) for run in runs if not run.trained]
    said += privacy.said({run.name: [run.private] for run in runs if run.trained})
    if any(each.measure == PER_CHARACTER for each in measures):
        said.append(
            "The runs have other tokens for the same examples, so their loss is given per character of the"
            " expected response; one that a run cut at data.max_tokens counts with its first part."
        )
    if left_out:
        said.append(
            f"{many(left_out, 'example')} held out in some of the runs only"
            f" {'is' if left_out == 1 else 'are'} left out, since another run may have trained on them."
        )
    by_words = any(each.measure.name in ("exact", "f1", "rouge_l") for each in measures)
    if by_words and any(scripts.has_unspaced(example.response) for example in answered):
        said.append(scripts.NOTE)
    return said


def _differs(first: RunToCompare, other: RunToCompare) -> str:
    before, after = (
        {name: table for name, table in plain(run.settings).items() if name not in NO_DIFFERENCE}
        for run in (first, other)
    )
    found = [
        f"{key} = {json.dumps(now, ensure_ascii=False)} (not {json.dumps(was, ensure_ascii=False)})"
        for key, was, now in differing(before, after)
    ]
    if not found:
        return f"{other.name} was trained with the settings of {first.name}."
    return f"{other.name} differs from {first.name} in {listed(found)}."
