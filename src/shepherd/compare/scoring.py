"""Score the arms of one seed on the same held-out examples: the loss of each, and the answers to some."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.compare.folders import read_json, write_json
from shepherd.config import PartTable
from shepherd.core import Adapter
from shepherd.data.examples import Example
from shepherd.data.pipeline import TokenisedData, categories
from shepherd.data.tokens import Tokens
from shepherd.evaluate import loss
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
    """Which held-out examples arms are scored on: `losses` by their loss, `answers` by what they answer."""

    losses: tuple[int, ...]
    answers: tuple[int, ...]


def questions(base: Base, settings: RunSettings, prepared: TokenisedData) -> Questions:
    """As many as `evaluation` says, evenly over the categories; no prompt that leaves no room to answer."""
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
    """What every arm is asked: the loss on `examples`, and the answers to `prompts`, as `Questions` says."""

    examples: Tokens
    prompts: Sequence[Sequence[int]]
    data: DataTable
    max_new_tokens: int
    micro_batch: int


def score_arms(
    base: Base,
    settings: RunSettings,
    plan: Plan,
    prepared: TokenisedData,
    asked: Questions,
    adapters: Mapping[str, Callable[[], Adapter | None]],
    files: Mapping[str, Path],
    digests: Mapping[str, str],
    metrics: Sequence[Metric],
    executor: Executor,
) -> None:
    """Write the scores of every arm that has none on these questions yet; those that are there stay.

    Args:
        settings: of the run, with what its plan chose.
        plan: of the run.
        adapters: arm -> its adapter, read when it is needed; None is the base alone.
        files: arm -> where its scores go.
        digests: arm -> what tells its adapter from another one.
        metrics: what is measured of each answer; answers that are there are measured again by new ones.
        executor: where the arms are scored.
    """
    wanted = {"losses": list(asked.losses), "answers": list(asked.answers)}
    keys = {
        arm: {**wanted, "adapter": digests[arm], "max_new_tokens": settings.evaluation.max_new_tokens}
        for arm in adapters
    }
    examples = [prepared.heldout_examples[i] for i in asked.answers]
    named = [_plain(table) for table in settings.evaluation.metrics]
    todo = [arm for arm in adapters if not _scored(files[arm], keys[arm])]
    for arm in adapters:
        if arm not in todo:
            _measure_again(files[arm], examples, metrics, named)
    if not todo:
        return
    log.info("scoring %s", ", ".join(todo))
    sheet = _sheet(base, settings, plan, prepared, asked)
    work = ((sheet, adapters[arm]()) for arm in todo)
    scores = executor.each(score_one, work)
    with stage(f"scoring {many(len(todo), 'arm')}", len(todo)) as now:
        for arm, (sums, texts) in zip(todo, scores, strict=True):
            measured = _measured(texts, examples, metrics)
            row = {"questions": keys[arm], "metrics": named, "losses": sums, "answers": measured}
            write_json(files[arm], row)
            now.advance()


def _scored(path: Path, wanted: Mapping[str, Any]) -> bool:
    found = read_json(path)
    return found is not None and found.get("questions") == wanted


def _sheet(base: Base, settings: RunSettings, plan: Plan, prepared: TokenisedData, asked: Questions) -> Sheet:
    return Sheet(
        examples=prepared.heldout.take(asked.losses),
        prompts=[_prompt(base, settings, prepared, i) for i in asked.answers],
        data=settings.data,
        max_new_tokens=settings.evaluation.max_new_tokens,
        micro_batch=plan.micro_batch_tokens,
    )


def score_one(base: Base, work: tuple[Sheet, Adapter | None]) -> tuple[list[float], list[str]]:
    """An arm's summed loss on each example, in nats, and its answer to each prompt."""
    sheet, adapter = work
    sums: list[float] = []
    if len(sheet.examples):
        scored = score.losses(base, [adapter or base.zero], sheet.examples, micro_batch=sheet.micro_batch)
        sums = scored[0].tolist()
    (found,) = answers(base, sheet.data, [adapter], sheet.prompts, max_new_tokens=sheet.max_new_tokens)
    return sums, [each.text for each in found]


def _prompt(base: Base, settings: RunSettings, prepared: TokenisedData, place: int) -> list[int]:
    return prompt_ids(base, settings.data, prepared.heldout_examples[place].turns[:-1])


def _measured(texts: Sequence[str], examples: Sequence[Example], metrics: Sequence[Metric]) -> list[Row]:
    return [
        {TEXT: answer, **metric_scores(metrics, answer, example)}
        for answer, example in zip(texts, examples, strict=True)
    ]


def _measure_again(
    path: Path, examples: Sequence[Example], metrics: Sequence[Metric], named: Sequence[Row]
) -> None:
    """Other metrics ask for no other answers."""
    found = read_json(path) or {}
    if found.get("metrics") != named:
        texts = [answer[TEXT] for answer in found["answers"]]
        write_json(path, {**found, "metrics": named, "answers": _measured(texts, examples, metrics)})


def _plain(table: PartTable) -> Row:
    return {"name": table.name, **table.own}
