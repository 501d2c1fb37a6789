"""Score the arms of one seed on the same held-out examples: the loss of each, and the answers to some."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shepherd import world
from shepherd.compare.folders import read_json, write_json
from shepherd.core import Adapter
from shepherd.data.examples import Example
from shepherd.data.template import Template, prompt, stop_ids
from shepherd.evaluate import loss, text
from shepherd.model import generate as generation
from shepherd.model import score, tune
from shepherd.model.base import Base
from shepherd.prepare import Prepared, categories
from shepherd.settings import RunSettings

TOGETHER = 8  # arms scored in one pass
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Which held-out examples arms are scored on: `losses` by their loss, `answers` by what they answer."""

    losses: tuple[int, ...]
    answers: tuple[int, ...]


def questions(base: Base, settings: RunSettings, prepared: Prepared) -> Questions:
    """As many as `evaluation` says, evenly over the categories; no prompt that leaves no room to answer."""
    named = categories(prepared)
    most = settings.evaluation
    room = [
        i
        for i in range(len(named))
        if base.reads is None or len(_prompt(base, settings, prepared, i)) < base.reads
    ]
    asked = loss.spread([named[i] for i in room], most.answers)
    return Questions(
        losses=tuple(loss.spread(named, most.examples).tolist()),
        answers=tuple(room[i] for i in asked.tolist()),
    )


def score_arms(
    base: Base,
    settings: RunSettings,
    prepared: Prepared,
    asked: Questions,
    adapters: Mapping[str, Callable[[], Adapter | None]],
    files: Mapping[str, Path],
    digests: Mapping[str, str],
) -> None:
    """Write the scores of every arm that has none on these questions yet; those that are there stay.

    Args:
        adapters: arm -> its adapter, read when it is needed; None is the base alone.
        files: arm -> where its scores go.
        digests: arm -> what tells its adapter from another one.
    """
    wanted = {"losses": list(asked.losses), "answers": list(asked.answers)}
    keys = {
        arm: {**wanted, "adapter": digests[arm], "max_new_tokens": settings.evaluation.max_new_tokens}
        for arm in adapters
    }
    todo = [arm for arm in adapters if not _scored(files[arm], keys[arm])]
    for start in range(0, len(todo), TOGETHER):
        arms = todo[start : start + TOGETHER]
        loaded = [adapters[arm]() for arm in arms]
        log.info("scoring %s", ", ".join(arms))
        sums = _losses(base, settings, prepared, asked, loaded)
        texts = _answers(base, settings, prepared, asked, loaded)
        for arm, row, answers in zip(arms, sums, texts, strict=True):
            write_json(files[arm], {"questions": keys[arm], "losses": row, "answers": answers})


def _scored(path: Path, wanted: Mapping[str, Any]) -> bool:
    found = read_json(path)
    return found is not None and found.get("questions") == wanted


def _losses(
    base: Base,
    settings: RunSettings,
    prepared: Prepared,
    asked: Questions,
    adapters: Sequence[Adapter | None],
) -> list[list[float]]:
    """Each arm's summed loss on each question, in nats."""
    if not asked.losses:
        return [[] for _ in adapters]
    zero = base.zero
    data = prepared.heldout.take(asked.losses)
    micro_batch = tune.micro_batch_tokens(settings.tuning, base)
    sums = score.losses(base, [adapter or zero for adapter in adapters], data, micro_batch=micro_batch)
    return [[float(each) for each in row] for row in sums]


def _answers(
    base: Base,
    settings: RunSettings,
    prepared: Prepared,
    asked: Questions,
    adapters: Sequence[Adapter | None],
) -> list[list[dict[str, Any]]]:
    """Each arm's answer to each question, and how it compares with the reference."""
    if not asked.answers:
        return [[] for _ in adapters]
    prompts = [_prompt(base, settings, prepared, i) for i in asked.answers]
    texts: list[dict[int, str]] = [{} for _ in adapters]
    done = told = 0
    for places in _batches(prompts, max(1, generation.BATCH // len(adapters))):
        new = generation.generate(
            base,
            adapters,
            [prompts[i] for i in places],
            max_new_tokens=settings.evaluation.max_new_tokens,
            stop=stop_ids(Template.of(settings.data), base.tokenizer),
        )
        for arm, rows in zip(texts, new, strict=True):
            for place, ids in zip(places, rows, strict=True):
                arm[place] = base.tokenizer.decode(ids, skip_special_tokens=True).strip()
        done += len(places)
        if done * 4 // len(prompts) > told:
            told = done * 4 // len(prompts)
            log.info("  %d of %d questions answered", done, len(prompts))
    examples = [prepared.heldout_examples[i] for i in asked.answers]
    return [[_judged(example, arm[i]) for i, example in enumerate(examples)] for arm in texts]


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of prompts of about the same length, the longest first, so that the time left is no surprise."""
    order = np.argsort([-len(each) for each in prompts], kind="stable").tolist()
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _prompt(base: Base, settings: RunSettings, prepared: Prepared, place: int) -> list[int]:
    limit = min(settings.data.max_tokens, base.reads or settings.data.max_tokens)
    turns = prepared.heldout_examples[place].turns[:-1]
    return list(prompt(turns, Template.of(settings.data), base.tokenizer, max_tokens=limit))


def _judged(example: Example, answer: str) -> dict[str, Any]:
    right = None if example.check is None else bool(world.passes(example.check, answer))
    return {"text": answer, "right": right, **text.against(answer, example.response)}
