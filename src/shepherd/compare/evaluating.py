"""Evaluate the arms of a run folder on benchmark tasks and harmful prompts, each against the untuned base.

All arms are evaluated over one base in memory, and what is found is kept in the folder's evaluation.json.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shepherd.compare import benchmarks, harmful_prompts
from shepherd.compare.adapters import arm_adapter, digests
from shepherd.compare.arms import BASE, FEDERATED, Arm
from shepherd.compare.folders import VERDICTS, compare_folder
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data.examples import Turn
from shepherd.errors import BaseError, SettingsError
from shepherd.evaluate import refusals
from shepherd.evaluate.draws import draws
from shepherd.evaluate.flowertune import FORMATS, Format, require_fit
from shepherd.evaluate.how import How
from shepherd.evaluate.sentences import Measure, says
from shepherd.evaluate.single import each_against
from shepherd.evaluate.statistics import Compared, between, holm, interval, sample
from shepherd.judge import refusing
from shepherd.judge.agreed import require_agreed
from shepherd.judge.gather import require_ready
from shepherd.model.answer import answers, prompt_ids
from shepherd.model.base import Base
from shepherd.model.generate import generate, max_answer_tokens
from shepherd.run import folder, score_file
from shepherd.run.evaluation import PASS_TOKENS
from shepherd.run.loading import load_base
from shepherd.settings import JudgeTable, RunSettings
from shepherd.version import install

if TYPE_CHECKING:  # lm_eval takes seconds
    from shepherd.evaluate.harness import Asked, Choice
    from shepherd.evaluate.harness import Measured as OfTask

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Row = dict[str, Any]
Echo = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The arms to evaluate, the base first, each with its adapters: one a seed."""

    base: Base
    adapters: Mapping[str, Sequence[Adapter | None]]
    digests: Mapping[str, list[str]]

    @property
    def every(self) -> list[Adapter | None]:
        """All adapters one after another, (K,)."""
        return [adapter for each in self.adapters.values() for adapter in each]

    def by_arm(self, values: Floats) -> dict[str, Floats]:
        """Split values (K, ...) into those of each arm, (S, ...)."""
        ends = np.cumsum([len(each) for each in self.adapters.values()])
        return dict(zip(self.adapters, np.split(values, ends[:-1]), strict=True))


def evaluate_folder(
    path: str | Path,
    asked: Asked | None = None,
    *,
    harmful: str | Path = "",
    formats: Sequence[str] = (),
    only: Sequence[str] = (),
    judge: JudgeTable | None = None,
    max_calls: int | None = None,
    echo: Echo = log.info,
    consent: Consent = NOTHING,
) -> list[Row]:
    """Evaluate the arms of a run folder, and keep the scores in it; returns all scores of the folder.

    Args:
        asked: benchmark tasks; None evaluates none.
        harmful: file of prompts that a model should refuse; "" asks none.
        formats: names of `evaluate.flowertune.FORMATS` to ask the multiple-choice tasks in as well.
        only: names of the arms to evaluate beside the base; by default all of the folder.
        judge: the judge that also says whether an answer refuses; by default the run's, if it names one.
        max_calls: most requests to send to the judge.

    Raises:
        FolderError: there is no run or no adapter yet, or another process holds the folder.
        DataError: a task or a file cannot be used, or wants what nobody agreed to.
        SettingsError: lm-eval is missing, or a format or an arm is unknown.
        BaseError: the base cannot be loaded, or cannot answer.
    """
    run = Path(path)
    settings = folder.planned(run)
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise SettingsError(f"there is no format {unknown[0]!r}; use one of {', '.join(FORMATS)}")
    table = judge or settings.judge
    if harmful and table.model:
        require_agreed(table, consent)
    prompts = harmful_prompts.read(Path(harmful), settings.data) if harmful else []
    score_file.read(run)  # a damaged file would lose what is measured
    harness = None
    if asked is not None:
        require_lm_eval()
        from shepherd.evaluate.harness import opened

        harness = opened(asked, consent)
    choices = harness.choices() if harness is not None and formats else []
    for name in formats:
        require_fit(name, [each.choices for each in choices])
    with closing(folder.reopen(run)):
        arms, seeds = _arms(run)
        chosen = _chosen(arms, only)
        scored = digests(run, chosen, seeds)
        if prompts and table.model and not _is_judged(run, scored, prompts, settings, table):
            require_ready(table, consent, max_calls)
        base = load_base(settings, consent)
        found = models(run, base, chosen, seeds)
        require_answers(base, prompts, settings, formats)
        rows: list[Row] = []
        if harness is not None:
            log.info("evaluating %s", ", ".join(found.adapters))
            tokens = settings.machine.micro_batch_tokens
            size = tokens if isinstance(tokens, int) else PASS_TOKENS
            measured = harness.measure(base, found.every, size)
            rows += [_of_task(found, each, harness.how(each.task)) for each in measured]
            rows += [_in_format(found, choices, name, harness.how_choices()) for name in formats]
            rows = _kept(run, rows)  # what follows may fail, and tasks take long
        if prompts:
            verdicts = compare_folder(run) / VERDICTS
            refused = refusal_rows(found, prompts, harmful, settings, table, verdicts, echo, max_calls)
            rows = _kept(run, refused)
        return rows or score_file.read(run)


def _kept(run: Path, rows: Sequence[Row]) -> list[Row]:
    """Write new scores into the folder and its comparison; returns all scores of the folder."""
    found = score_file.add(run, rows)
    benchmarks.join(run)
    return found


def probe(
    run: Path,
    base: Base,
    settings: RunSettings,
    arms: Sequence[Arm],
    seeds: int,
    consent: Consent,
    max_calls: int | None = None,
) -> None:
    """Have the arms of a comparison answer the run's harmful prompts, and keep their refusal rates.

    Nothing is asked again of the same adapters; the judge is asked if the run names one.

    Raises:
        ShepherdError: as for `evaluate_folder`.
    """
    prompts = harmful_prompts.required(settings, consent)
    found = models(run, base, arms, seeds)
    names = {"refusal", *(["refusal_judged"] if settings.judge.model else [])}
    wanted = [row for row in score_file.read(run) if row["name"] in names]
    done = {row["name"] for row in wanted if _is_of(row, found, prompts, settings)}
    if done == names:
        return
    if settings.judge.model:
        require_ready(settings.judge, consent, max_calls)
    log.info("answering %s harmful prompts", len(prompts))
    verdicts = compare_folder(run) / VERDICTS
    rows = refusal_rows(
        found, prompts, settings.evaluation.harmful, settings, settings.judge, verdicts, log.info, max_calls
    )
    score_file.add(run, rows)


def _is_judged(
    run: Path,
    adapters: Mapping[str, list[str]],
    prompts: Sequence[tuple[Turn, ...]],
    settings: RunSettings,
    table: JudgeTable,
) -> bool:
    """Whether the judge has said of every answer whether it refuses, so that it is not asked again."""
    known: Row = {"name": refusals.JUDGED.name, "documents": len(prompts), "adapters": adapters}
    known |= {"asked": _digest(prompts, settings), "judge": table.model}
    return any(all(row.get(key) == value for key, value in known.items()) for row in score_file.read(run))


def _is_of(row: Row, models: Models, prompts: Sequence[tuple[Turn, ...]], settings: RunSettings) -> bool:
    how = How.of(row)  # a row of an earlier version has none, nor each adapter's own score
    return (
        how is not None
        and not how.limited
        and how.prompts == Path(settings.evaluation.harmful).name
        and row["adapters"] == models.digests
        and row.get("asked") == _digest(prompts, settings)
        and row.get("judge", settings.judge.model) == settings.judge.model
    )


def _digest(prompts: Sequence[tuple[Turn, ...]], settings: RunSettings) -> str:
    """Digest of what the models were asked, and of how long they may answer."""
    asked = [[turn.text for turn in turns] for turns in prompts]
    return hashlib.sha256(json.dumps([asked, settings.evaluation.max_new_tokens]).encode()).hexdigest()[:16]


def require_lm_eval() -> None:
    """Raise SettingsError unless lm-eval is installed."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise SettingsError(f"benchmark tasks need the package lm-eval; run {install('benchmarks')}")


def _arms(run: Path) -> tuple[list[Arm], int]:
    """The arms and the number of seeds of a finished comparison in the folder, else base and federated."""
    arms, seeds = benchmarks.arms_of(run)
    return arms or [Arm(name=BASE, kind="base"), Arm(name=FEDERATED, kind="federated")], seeds


def _chosen(arms: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    """The base and the arms that `only` names, or all.

    Raises:
        SettingsError: `only` names an arm that is not there.
    """
    names = [arm.name for arm in arms]
    if missing := [name for name in only if name not in names]:
        raise SettingsError(f"there is no arm {missing[0]!r}; the arms are {', '.join(names)}")
    return [arm for arm in arms if arm.name in (BASE, *only) or not only]


def models(run: Path, base: Base, arms: Sequence[Arm], seeds: int) -> Models:
    """Read the adapters of arms, each for its first `seeds` seeds."""
    found = digests(run, arms, seeds)
    return Models(
        base=base,
        adapters={
            arm.name: [arm_adapter(run, n, arm, base) for n in range(len(found[arm.name]))] for arm in arms
        },
        digests=found,
    )


def require_answers(
    base: Base, prompts: Sequence[tuple[Turn, ...]], settings: RunSettings, formats: Sequence[str] = ()
) -> None:
    """Raise BaseError unless the base can answer harmful prompts, and in formats, which it is asked last."""
    if (prompts or formats) and base.proof.mute:
        raise BaseError(
            f"{base.name} cannot answer ({base.proof.mute}); leave out the harmful prompts and --format"
        )
    for place, turns in enumerate(prompts, 1):
        ids = prompt_ids(base, settings.data, turns)
        name = f"prompt {place} of {len(prompts)}"
        max_answer_tokens(base, len(ids), settings.evaluation.max_new_tokens, name)


def _of_task(models: Models, found: OfTask, how: How) -> Row:
    """The row of one metric of one task."""
    share = bool(found.values.size and found.values.min() >= 0 and found.values.max() <= 1)
    measure = Measure(
        name=f"{found.task}.{found.metric}",
        label=f"{found.task} ({found.metric})",
        share=share,
        asked="documents",
        lower_is_better=not found.higher_is_better,
        unit="bits a byte" if found.metric == "bits_per_byte" else "",
    )
    head = {"kind": "task", "task": found.task, "metric": found.metric, "how": how.model_dump()}
    if not found.values.size:
        return _without_intervals(models, measure, models.by_arm(found.means), found.documents, head)
    return row(models, measure, models.by_arm(found.values), found.strata, head, found.weights)


def _in_format(models: Models, choices: Sequence[Choice], name: str, how: How) -> Row:
    """The row of the multiple-choice tasks, asked in one of FlowerTune's formats."""
    right = _answered(models, choices, FORMATS[name])
    measure = Measure(name=f"flowertune.{name}", label=f"FlowerTune's format, {name}", asked="documents")
    head = {"kind": "format", "task": "flowertune", "metric": name, "how": how.model_dump()}
    return row(models, measure, models.by_arm(right), [each.task for each in choices], head)


def _answered(models: Models, choices: Sequence[Choice], how: Format) -> Floats:
    """Whether each model answers each choice correctly, (K, Q)."""
    base = models.base
    right = np.zeros((len(models.every), len(choices)))
    expected = [how.expected(each.choices, each.right) for each in choices]
    prompts = [list(base.tokenizer.encode(how.prompt(each.query, each.choices))) for each in choices]
    sizes = [
        how.budget(len(ids), len(base.tokenizer.encode(text, add_special_tokens=False)))
        for ids, text in zip(prompts, expected, strict=True)
    ]
    for size in sorted(set(sizes)):
        places = [place for place, each in enumerate(sizes) if each == size]
        found = generate(
            base,
            models.every,
            [prompts[place] for place in places],
            max_new_tokens=size,
            stop=[base.tokenizer.eos_token_id],
        )
        for k, rows in enumerate(found):
            for place, ids in zip(places, rows, strict=True):
                text = base.tokenizer.decode(ids, skip_special_tokens=True)
                right[k, place] = how.reads(text, expected[place])
    return right


def refusal_rows(
    models: Models,
    prompts: Sequence[tuple[Turn, ...]],
    file: str | Path,
    settings: RunSettings,
    table: JudgeTable,
    verdicts: Path,
    echo: Echo,
    max_calls: int | None = None,
) -> list[Row]:
    """Refusal rates on harmful prompts: by keyword, and by the judge if `table` names one.

    Args:
        file: where the prompts are from.

    Raises:
        BaseError: the base cannot answer.
        JudgeError: the judge cannot be used.
    """
    base = models.base
    longest = settings.evaluation.max_new_tokens
    ids = [prompt_ids(base, settings.data, turns) for turns in prompts]
    found = answers(base, settings.data, models.every, ids, max_new_tokens=longest)
    texts = [[each.text for each in row] for row in found]
    how = How(limited=False, of_documents=len(prompts), prompts=Path(file).name, max_new_tokens=longest)
    head = {
        "kind": "refusal",
        "task": "refusal",
        "metric": "keyword",
        "asked": _digest(prompts, settings),
        "how": how.model_dump(),
    }
    by_keyword = np.array([[float(refusals.refuses(text)) for text in each] for each in texts])
    strata = ["all"] * len(prompts)
    rows = [row(models, refusals.KEYWORDS, models.by_arm(by_keyword), strata, head)]
    if not table.model:
        return rows
    judged = refusing.refusals(
        {str(k): each for k, each in enumerate(texts)},
        [turns[-1].text for turns in prompts],
        table,
        verdicts,
        echo,
        max_calls,
    )
    read = [i for i in range(len(prompts)) if all(each[i] is not None for each in judged.values())]
    if read:
        values = np.array([[float(bool(each[i])) for i in read] for each in judged.values()])
        # of all prompts some replies may be unreadable for good; a limit on calls is somebody's choice
        limited = max_calls is not None and len(read) < len(prompts)
        how = how.model_copy(update={"limited": limited, "judge": table.model})
        head = {**head, "metric": "judge", "judge": table.model, "how": how.model_dump()}
        rows.append(row(models, refusals.JUDGED, models.by_arm(values), [strata[i] for i in read], head))
    if len(read) < len(prompts):
        echo(
            f"{len(prompts) - len(read)} of {len(prompts)} prompts have no verdict of the judge for every arm"
        )
    return rows


def row(
    models: Models,
    measure: Measure,
    values: Mapping[str, Floats],
    strata: Sequence[str],
    head: Mapping[str, Any],
    weights: Floats | None = None,
) -> Row:
    """The row of a score: each arm with its interval, and its difference from the base, paired by document.

    Args:
        values: arm -> (S, Q).
        strata: the group of each document, (Q,); the score is the mean over them.
    """
    seeds = max(len(each) for each in values.values())
    drawn = draws(strata, seeds=seeds)
    samples = {arm: sample(each, drawn, weights, measure.span) for arm, each in values.items()}
    against = {arm: between(each, samples[BASE]) for arm, each in samples.items() if arm != BASE}
    corrected = holm({arm: each.p for arm, each in against.items()}) if against else {}
    scores = {arm: interval(each) for arm, each in samples.items()}
    return {
        **_head(models, measure, len(strata), head),
        "arms": {arm: each.row() for arm, each in scores.items()},
        "by_adapter": {
            arm: each_against(values[arm], values[BASE], drawn, weights, measure.span) for arm in against
        },
        "differences": {
            arm: {**each.difference.row(), "p": each.p, "p_holm": corrected[arm]}
            for arm, each in against.items()
        },
        "says": {
            arm: _says(
                each, arm, scores[arm].value, scores[BASE].value, measure, corrected[arm], len(against)
            )
            for arm, each in against.items()
        },
    }


def _says(
    found: Compared, arm: str, score: float, base: float, measure: Measure, p_holm: float, tested: int
) -> str:
    return says(
        found,
        first=arm,
        second=BASE,
        score_first=score,
        score_second=base,
        measure=measure,
        p_holm=p_holm if tested > 1 else None,
    )


def _without_intervals(
    models: Models, measure: Measure, found: Mapping[str, Floats], documents: int, head: Mapping[str, Any]
) -> Row:
    """The row of a metric that is no mean over documents: lm-eval's own numbers, (S,) of each arm."""
    means = {arm: float(each.mean()) for arm, each in found.items()}
    return {
        **_head(models, measure, documents, head),
        "arms": {arm: _bare(value) for arm, value in means.items()},
        "by_adapter": {
            arm: [{**_bare(value), "difference": _bare(value - means[BASE])} for value in each.tolist()]
            for arm, each in found.items()
            if arm != BASE
        },
        "differences": {
            arm: {**_bare(value - means[BASE]), "p": None, "p_holm": None}
            for arm, value in means.items()
            if arm != BASE
        },
        "says": {},
    }


def _bare(value: float) -> Row:
    return {"value": value if np.isfinite(value) else None, "low": None, "high": None}


def _head(models: Models, measure: Measure, documents: int, head: Mapping[str, Any]) -> Row:
    return {
        "name": measure.name,
        "label": measure.label,
        **head,
        "share": measure.share,
        "lower_is_better": measure.lower_is_better,
        "documents": documents,
        "adapters": dict(models.digests),
    }
