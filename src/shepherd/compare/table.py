"""Make a comparison's table from scores: measures with intervals, differences, and conclusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.compare.arms import BASE, FEDERATED, START, Arm
from shepherd.compare.privacy import Spent
from shepherd.compare.scoring import Questions
from shepherd.data.dataset import TokenisedData, categories
from shepherd.evaluate import loss, rewards, scripts
from shepherd.evaluate.against import Against, against
from shepherd.evaluate.draws import Draws, draws
from shepherd.evaluate.metric import Metric
from shepherd.evaluate.sentences import LOSS, Measure
from shepherd.evaluate.single import each_against
from shepherd.evaluate.statistics import Interval, interval, sample
from shepherd.io.phrases import listed
from shepherd.run import ledger
from shepherd.settings import RunSettings
from shepherd.training.local import DEFAULT_TRAINING
from shepherd.training.objective import Objective
from shepherd.training.tune import predictions

Floats = NDArray[np.float64]
Row = dict[str, Any]
Scores = Mapping[str, Sequence[Mapping[str, Any]]]  # arm -> content of its scores files, one per seed
RIGHT = "right"
"""Name of the metric that the table compares by, if examples have a check."""
SAMPLES_PER_CATEGORY = 2  # answers shown
MOST_AMOUNTS = 3
"""More different numbers of examples than this are shown as a range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measure: values of each arm (S, Q), or (Q,) if equal for every seed; and the bootstrap draws."""

    measure: Measure
    values: Mapping[str, Floats]
    draws: Draws
    weights: Floats | None = None
    defined: str = ""
    """Arm whose number is what it is for any question, by definition, and so has no uncertainty."""


def measured(
    scores: Scores,
    asked: Questions,
    prepared: TokenisedData,
    seeds: int,
    metrics: Sequence[Metric],
    objective: Objective = DEFAULT_TRAINING.objective,
    reference: str = BASE,
) -> list[Measured]:
    """Collect every measure that all arms have, with its bootstrap draws.

    Args:
        objective: what was trained; one that compares two answers says what a margin is.
        reference: the arm that margins are counted from.
    """
    named = categories(prepared)
    found = _preferences(scores, asked, prepared, seeds, objective, reference)
    if asked.losses:
        counts = predictions(prepared.heldout)[list(asked.losses)].astype(np.float64)
        trained = counts > 0  # an example without trained tokens has no loss
        values = {arm: _losses(each)[:, trained] / counts[trained] for arm, each in scores.items()}
        strata = [named[i] for i, kept in zip(asked.losses, trained, strict=True) if kept]
        found.append(
            Measured(
                measure=LOSS,
                values=values,
                draws=draws(strata, seeds=seeds),
                weights=counts[trained],
            )
        )
    for metric in metrics if asked.answers else ():
        values, places = _values_of_answers(scores, metric.measure.name)
        if places:
            strata = [named[asked.answers[i]] for i in places]
            found.append(Measured(measure=metric.measure, values=values, draws=draws(strata, seeds=seeds)))
    return found


def _preferences(
    scores: Scores,
    asked: Questions,
    prepared: TokenisedData,
    seeds: int,
    objective: Objective,
    reference: str,
) -> list[Measured]:
    """What the arms prefer of each held-out pair; [] if there are no pairs."""
    if prepared.heldout_rejected is None or objective.margins is None or not asked.losses:
        return []
    places = list(asked.losses)
    held = prepared.heldout.take(places), prepared.heldout_rejected.take(places)
    (by,) = scores[reference]
    margins = {
        arm: np.array([rewards.margins_of(objective, _policy(each), _policy(by), *held) for each in of_seeds])
        for arm, of_seeds in scores.items()
    }
    named = categories(prepared)
    drawn = draws([named[place] for place in places], seeds=seeds)
    accuracy = {arm: rewards.preferred(values) for arm, values in margins.items()}
    return [
        Measured(measure=rewards.ACCURACY, values=accuracy, draws=drawn, defined=reference),
        Measured(measure=rewards.MARGIN, values=margins, draws=drawn, defined=reference),
    ]


def _policy(scored: Mapping[str, Any]) -> Floats:
    """Summed log-probability of both answers, (Q, 2), from an arm's scores."""
    return -np.array([scored["losses"], scored["rejected"]], dtype=np.float64).T


def _losses(seeds: Sequence[Mapping[str, Any]]) -> Floats:
    return np.array([each["losses"] for each in seeds], dtype=np.float64)  # (S, Q), sums of nats


def _values_of_answers(scores: Scores, name: str) -> tuple[dict[str, Floats], list[int]]:
    """Values (S, Q) of the answers that have this measure, and the answers' indices."""
    first = next(iter(scores.values()))[0]["answers"]
    places = [i for i, answer in enumerate(first) if answer[name] is not None]
    values = {
        arm: np.array([[float(each["answers"][i][name]) for i in places] for each in seeds])
        for arm, seeds in scores.items()
    }
    return values, places


def arm_row(
    arm: Arm,
    measures: Sequence[Measured],
    scores: Sequence[Mapping[str, Any]],
    asked: Questions,
    prepared: TokenisedData,
    trained: Mapping[str, Any] | None,
    spent: Spent,
) -> Row:
    """Row of one arm in comparison.json; where its noise hides what clients hold, without what is made of it.

    Args:
        trained: how much the arm was trained; None for the base.
        spent: what it spent of its clients' privacy.
    """
    client = {} if spent else _by_client(scores, asked, prepared)
    known = {name: value for name, value in client.items() if not np.isnan(value)}
    worst = max(known, key=lambda name: known[name]) if known else None
    return {
        "name": arm.name,
        "kind": arm.kind,
        "client": arm.client,
        "categories": {} if spent else _categories(arm, prepared),
        "overrides": list(arm.overrides),
        "trained": trained,
        **{key: spent[key].row() if key in spent else None for key in ledger.UNITS},
        "adapters": [each["questions"]["adapter"] for each in scores],
        "measures": {each.measure.name: _interval(each, arm.name) for each in measures},
        "by_adapter": {each.measure.name: _by_adapter(each, arm.name) for each in measures}
        if arm.name != BASE
        else {},
        "category": {each.measure.name: _by_category(each, arm.name) for each in measures},
        "client_loss": known,
        "worst_client": {"name": worst, "loss": known[worst]} if worst is not None else None,
    }


def _interval(each: Measured, arm: str) -> Row:
    one = sample(each.values[arm], each.draws, each.weights, each.measure.span)
    return dict(_known(one.value) if arm == each.defined else interval(one).row())


def _by_adapter(each: Measured, arm: str) -> list[Row]:
    return each_against(each.values[arm], each.values[BASE], each.draws, each.weights, each.measure.span)


def _known(value: float) -> dict[str, float | None]:
    return Interval(value, value, value).row()


def _by_category(each: Measured, arm: str) -> Row:
    found = {}
    for category in sorted(set(each.draws.strata)):
        one = sample(each.values[arm], each.draws.only(category), each.weights, each.measure.span)
        found[category] = dict(_known(one.value) if arm == each.defined else interval(one).row())
    return found


def _by_client(
    scores: Sequence[Mapping[str, Any]], asked: Questions, prepared: TokenisedData
) -> dict[str, float]:
    """Mean loss over the seeds on data with each client's mix of categories."""
    if not asked.losses:
        return {}
    named = categories(prepared)
    counts = predictions(prepared.heldout)[list(asked.losses)]
    summed = _losses(scores).mean(axis=0)
    found = loss.summarise(summed, counts, [named[i] for i in asked.losses], prepared.category_counts)
    return dict(found.client)


def _categories(arm: Arm, prepared: TokenisedData) -> dict[str, int]:
    if arm.kind in ("base", "start"):
        return {}
    category_counts = (
        [prepared.category_counts[arm.client]]
        if arm.client is not None
        else list(prepared.category_counts.values())
    )
    total: dict[str, int] = {}
    for mix in category_counts:
        for category, count in mix.items():
            total[category] = total.get(category, 0) + count
    return dict(sorted(total.items()))


def differences(measures: Sequence[Measured]) -> list[Against]:
    """Compare the federated arm with every other, by right answers if examples have a check, and by loss.

    Where there are pairs of answers, what the arms prefer takes the place of the loss, which such a training
    need not lower.
    """
    preferring = [each for each in measures if each.measure in (rewards.ACCURACY, rewards.MARGIN)]
    by_loss = [each for each in measures if each.measure.name == LOSS.name]
    right = [each for each in measures if each.measure.name == RIGHT]
    chief = [*(preferring or by_loss), *right]
    return [
        row
        for each in chief
        for row in against(FEDERATED, each.values, each.draws, each.measure, each.weights)
    ]


def lengths(arms: Sequence[Arm], trained: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Say how many examples each tuned arm saw, and in how many consecutive optimiser steps.

    Args:
        trained: arm -> its `examples` and `steps`, None where it hides them; None for the base.
    """
    federated = trained[FEDERATED] or {}
    groups: dict[tuple[str, str], list[str]] = {}
    hiding = []
    for arm in arms:
        if (of_arm := trained[arm.name]) and arm.name != FEDERATED:
            if of_arm["examples"] is None:
                hiding.append(arm.name)
                continue
            alone = arm.name if arm.kind == "variant" else ""
            groups.setdefault((arm.kind, alone or arm.match), []).append(arm.name)
    others = [
        f"{listed(names, most=3)} {_range(trained, names, 'examples')}{' each' * (len(names) > 1)}"
        f" in {_range(trained, names, 'steps')} steps"
        for names in groups.values()
    ]
    if hiding:
        others.append(f"{listed(hiding, most=3)} {'do' if len(hiding) > 1 else 'does'} not tell how many")
    return (
        f"{FEDERATED} saw {federated['examples']:,} examples, those of its clients side by side, in"
        f" {federated['steps']:,} optimiser steps one after another; {'; '.join(others)}."
    )


def own_tuning(arms: Sequence[Arm], settings: RunSettings) -> list[str]:
    """Say which arms were tuned with the batch size and the rate of [compare]; [] if none was."""
    own, tuning = settings.compare, settings.tuning
    names = [arm.name for arm in arms if arm.kind in ("local", "centralised") and arm.match == "examples"]
    if not names or (own.batch_size is None and own.learning_rate is None):
        return []
    return [
        f"As [compare] says, {listed(names, most=3)} took {own.batch_size or tuning.batch_size} examples a"
        f" step at a learning rate of {own.learning_rate or tuning.learning_rate:g}, the others"
        f" {tuning.batch_size} at {tuning.learning_rate:g}."
    ]


def _range(trained: Mapping[str, Mapping[str, Any] | None], arms: Sequence[str], name: str) -> str:
    numbers = [(trained[arm] or {})[name] for arm in arms]
    least, most = min(numbers), max(numbers)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def unequal(arms: Sequence[Arm], trained: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Phrase naming the tuned arms that saw another number of examples than federated; "" if none did."""
    return seen_unequally(FEDERATED, {arm.name: trained[arm.name] for arm in arms})


def seen_unequally(first: str, trained: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Phrase naming those that saw another number of `examples` than the first; "" if there are none.

    Numbers within 1% are equal, since an arm ends with a whole batch.
    """
    most = (trained[first] or {}).get("examples")
    seen = {name: (each or {}).get("examples") for name, each in trained.items() if name != first}
    others: dict[int, list[str]] = {}
    for name, examples in seen.items():
        if most and examples is not None and abs(examples - most) > 0.01 * most:
            others.setdefault(examples, []).append(name)
    said = [
        f"{listed(names, most=3)} saw {examples:,}{' each' * (len(names) > 1)}"
        for examples, names in others.items()
    ]
    if len(said) > MOST_AMOUNTS:
        names = [name for group in others.values() for name in group]
        said = [f"{listed(names, most=3)} saw {min(others):,} to {max(others):,}"]
    return f"they saw unequal amounts: {first} {most:,} examples, {', '.join(said)}" if said else ""


def notes(
    measures: Sequence[Measured], asked: Questions, prepared: TokenisedData, reference: str = BASE
) -> list[str]:
    """Sentences on how arms were measured, below the table.

    Args:
        reference: the arm that margins are counted from.
    """
    by_words = any(each.measure.name in ("exact", "f1", "rouge_l") for each in measures)
    expected = (prepared.heldout_examples[place].response for place in asked.answers)
    said = [scripts.NOTE] if by_words and any(map(scripts.has_unspaced, expected)) else []
    if any(each.measure == rewards.MARGIN for each in measures):
        said.append(
            f"Preference accuracy is the share of held-out pairs with a reward margin over {reference} above"
            f" 0; {reference} itself prefers neither answer, which counts half."
        )
    if reference == START:
        said.append(f"All arms but {BASE} began from {START}, the adapter that the run was given.")
    return said


def samples(scores: Scores, asked: Questions, prepared: TokenisedData) -> list[Row]:
    """Answers of all arms side by side to a few questions of each category, for the first seed."""
    named = categories(prepared)
    places = loss.stratified_subset([named[i] for i in asked.answers], SAMPLES_PER_CATEGORY * len(set(named)))
    found = []
    for place in places.tolist():
        example = prepared.heldout_examples[asked.answers[place]]
        answers = {arm: seeds[0]["answers"][place] for arm, seeds in scores.items()}
        found.append(
            {
                "category": example.category,
                "instruction": example.instruction,
                "context": example.context,
                "expected": example.response,
                "answers": {arm: {"text": a["text"], "right": a.get(RIGHT)} for arm, a in answers.items()},
            }
        )
    return found
