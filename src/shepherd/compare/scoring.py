"""Score the arms of one seed on the same held-out examples, by their loss and by answers to some."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.compare.folders import read_json, write_json
from shepherd.config import PartTable
from shepherd.core import Adapter
from shepherd.data.dataset import TokenisedData, categories
from shepherd.data.examples import Example
from shepherd.data.tokens import Tokens
from shepherd.evaluate import loss, rewards
from shepherd.evaluate.metric import TEXT, Metric
from shepherd.evaluate.metric import scores as metric_scores
from shepherd.io.progress import many, stage
from shepherd.machine.executors import Executor
from shepherd.machine.plan import Plan
from shepherd.model.answer import answers, prompt_ids
from shepherd.model.base import Base
from shepherd.settings import DataTable, RunSettings
from shepherd.training import score

log = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Indices of the held-out examples that arms are scored on: `losses` by loss, `answers` by answers."""

    losses: tuple[int, ...]
    answers: tuple[int, ...]


def questions(base: Base, settings: RunSettings, prepared: TokenisedData) -> Questions:
    """Choose held-out examples evenly over the categories, as many as `[evaluation]` says.

    A prompt that leaves no room for an answer is not chosen for answers.
    """
    named = categories(prepared)
    most = settings.evaluation
    room = [
        i
        for i in range(len(named))
        if base.max_length is None or len(_prompt(base, settings, prepared, i)) < base.max_length
    ]
    asked = loss.stratified_subset([named[i] for i in room], most.answers)
    return Questions(
        losses=tuple(loss.stratified_subset(named, most.examples).tolist()),
        answers=tuple(room[i] for i in asked.tolist()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Work that is the same for every arm: the loss on `examples`, and answers to `prompts`.

    `rejected` are the worse answers to the examples, where arms are also scored by what they prefer.
    """

    examples: Tokens
    rejected: Tokens | None = None
    prompts: Sequence[Sequence[int]]
    data: DataTable
    max_new_tokens: int
    micro_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmToScore:
    """An arm that is to be scored."""

    name: str
    adapter: Callable[[], Adapter | None]
    """Reads its adapter when it is needed; None is the base alone."""
    path: Path
    """File of its scores."""
    digest: str
    """Digest of its adapter; scores are those of this adapter and no other."""


def score_arms(
    arms: Sequence[ArmToScore],
    asked: Questions,
    *,
    base: Base,
    settings: RunSettings,
    plan: Plan,
    prepared: TokenisedData,
    metrics: Sequence[Metric],
    executor: Executor,
) -> None:
    """Write the scores of every arm that has none on these questions yet; existing scores stay.

    Args:
        settings: the run's, filled in from its plan.
        metrics: measures of each answer; existing answers are measured again if these have changed.
        executor: where the arms are scored.
    """
    keys = {
        arm.name: {
            "losses": list(asked.losses),
            "answers": list(asked.answers),
            "adapter": arm.digest,
            "max_new_tokens": settings.evaluation.max_new_tokens,
        }
        for arm in arms
    }
    examples = [prepared.heldout_examples[i] for i in asked.answers]
    named = [_plain(table) for table in settings.evaluation.metrics]
    todo = [arm for arm in arms if not _is_scored(arm.path, keys[arm.name])]
    for arm in arms:
        if arm not in todo:
            _measure_again(arm.path, examples, metrics, named)
    if not todo:
        return
    log.info("scoring %s", ", ".join(arm.name for arm in todo))
    sheet = _sheet(base, settings, plan, prepared, asked)
    work = ((sheet, arm.adapter()) for arm in todo)
    scores = executor.each(score_one, work)
    with stage(f"scoring {many(len(todo), 'arm')}", len(todo)) as now:
        for arm, (sums, worse, texts) in zip(todo, scores, strict=True):
            measured = _measure(texts, examples, metrics)
            row = {"questions": keys[arm.name], "metrics": named, "losses": sums, "answers": measured}
            row |= {"rejected": worse} if prepared.heldout_rejected is not None else {}
            write_json(arm.path, row)
            now.advance()


def _is_scored(path: Path, asked: Mapping[str, Any]) -> bool:
    found = read_json(path)
    return found is not None and found.get("questions") == asked


def _sheet(base: Base, settings: RunSettings, plan: Plan, prepared: TokenisedData, asked: Questions) -> Sheet:
    return Sheet(
        examples=prepared.heldout.take(asked.losses),
        rejected=None if prepared.heldout_rejected is None else prepared.heldout_rejected.take(asked.losses),
        prompts=[_prompt(base, settings, prepared, i) for i in asked.answers],
        data=settings.data,
        max_new_tokens=settings.evaluation.max_new_tokens,
        micro_batch=plan.micro_batch_tokens,
    )


def score_one(base: Base, work: tuple[Sheet, Adapter | None]) -> tuple[list[float], list[float], list[str]]:
    """Score one arm: its summed loss on each example and on the worse answer, in nats, and its answers."""
    sheet, adapter = work
    sums, worse = list[float](), list[float]()
    if len(sheet.examples) and sheet.rejected is not None:
        both = -rewards.sums(base, adapter, sheet.examples, sheet.rejected, micro_batch=sheet.micro_batch)
        sums, worse = both[:, 0].tolist(), both[:, 1].tolist()
    elif len(sheet.examples):
        scored = score.losses(base, [adapter or base.zero], sheet.examples, micro_batch=sheet.micro_batch)
        sums = scored[0].tolist()
    (found,) = answers(base, sheet.data, [adapter], sheet.prompts, max_new_tokens=sheet.max_new_tokens)
    return sums, worse, [each.text for each in found]


def _prompt(base: Base, settings: RunSettings, prepared: TokenisedData, place: int) -> list[int]:
    return prompt_ids(base, settings.data, prepared.heldout_examples[place].turns[:-1])


def _measure(texts: Sequence[str], examples: Sequence[Example], metrics: Sequence[Metric]) -> list[Row]:
    return [
        {TEXT: answer, **metric_scores(metrics, answer, example)}
        for answer, example in zip(texts, examples, strict=True)
    ]


def _measure_again(
    path: Path, examples: Sequence[Example], metrics: Sequence[Metric], named: Sequence[Row]
) -> None:
    """Measure existing answers by new metrics; the answers stay."""
    found = read_json(path) or {}
    if found.get("metrics") != named:
        texts = [answer[TEXT] for answer in found["answers"]]
        write_json(path, {**found, "metrics": named, "answers": _measure(texts, examples, metrics)})


def _plain(table: PartTable) -> Row:
    return {"name": table.name, **table.own}
