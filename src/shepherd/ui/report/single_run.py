"""Arms, sentences and samples of a run without a comparison: what it began with, and its last round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from shepherd.run import ledger
from shepherd.run.log import hides_amounts
from shepherd.ui.report.reading import Row, number, numbers, table, text

SAMPLES_PER_CATEGORY = 3
_ALL = "\0"  # cannot be the name of a category


def began_with(settings: Mapping[str, Any]) -> str:
    """Name of the arm before round 1: the base alone, or the adapter of `adapter.start`."""
    return "start" if table(settings.get("adapter")).get("start") else "base"


def arms(rows: Sequence[Row], answered: Sequence[Row], began: str = "base") -> list[Row]:
    """What it began with (round 0) and the federated arm (the last scored round), without intervals."""
    scored = [row for row in rows if table(row.get("heldout"))]
    base = table(scored[0]["heldout"]) if scored and scored[0]["round"] == 0 else {}
    last = table(scored[-1]["heldout"]) if scored and scored[-1]["round"] > 0 else {}
    found = ((began, "base", base, "right_before"), ("federated", "federated", last, "right_after"))
    shown = [_arm(name, kind, heldout, _right(answered, key), rows) for name, kind, heldout, key in found]
    return [arm for arm in shown if arm["measures"]]


def _arm(name: str, kind: str, heldout: Row, right: Mapping[str, float], rows: Sequence[Row]) -> Row:
    losses = {category: _point(value) for category, value in numbers(heldout.get("category")).items()}
    by_client = {client: loss for client, loss in numbers(heldout.get("client")).items() if loss is not None}
    worst = max(by_client, key=lambda client: by_client[client], default=None)
    shares = {category: _point(value) for category, value in right.items() if category != _ALL}
    measures = {"right": _point(right.get(_ALL)), "loss": _point(number(heldout.get("loss")))}
    return {
        "name": name,
        "kind": kind,
        "client": None,
        "categories": {},
        "overrides": [],
        "trained": _trained(rows) if name == "federated" else None,
        **dict.fromkeys(ledger.UNITS),  # the page has a section on them
        "measures": _known(measures),
        "category": {"right": _known(shares), "loss": _known(losses)},
        "client_loss": by_client,
        "worst_client": {"name": worst, "loss": by_client[worst]} if worst is not None else None,
    }


def _trained(rows: Sequence[Row]) -> Row:
    told = not any(hides_amounts(row) for row in rows if row["round"] > 0)

    def total(key: str, inner: str | None = None) -> float | int:
        values = (table(row.get(key)).get(inner) if inner else row.get(key) for row in rows)
        return sum(number(value) or 0 for value in values)

    return {
        "steps": total("steps") if told else None,
        "examples": total("examples") if told else None,
        "tokens": total("tokens", "trained") if told else None,
        "seconds": total("seconds", "tuning"),
    }


def _point(value: float | int | None) -> Row | None:
    return None if value is None else {"value": value, "low": None, "high": None}


def _known(values: Mapping[str, Row | None]) -> Row:
    return {name: value for name, value in values.items() if value is not None}


def _right(answered: Sequence[Row], key: str) -> dict[str, float]:
    """Share of right answers by category, and under `_ALL` over all questions."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for row in answered:
        if isinstance(row.get(key), bool):
            verdicts[text(row.get("category")) or "no category"].append(row[key])
    if not verdicts:
        return {}
    return {name: fmean(found) for name, found in verdicts.items()} | {
        _ALL: fmean(verdict for found in verdicts.values() for verdict in found)
    }


def says(
    rows: Sequence[Row], answered: Sequence[Row], status: Mapping[str, Any], began: str = "base"
) -> list[str]:
    """Sentences about a run without a comparison."""
    if not rows:
        return ["No round is finished yet, so there is nothing to show."]
    sentences = [_loss_sentence(rows), _right_sentence(answered, began), _status_sentence(status)]
    return [sentence for sentence in sentences if sentence]


def _status_sentence(status: Mapping[str, Any]) -> str:
    if status["state"] == "finished":
        return "To see whether federation is worth it, train and score other arms with `shepherd compare`."
    return f"The run is {status['says']}: these figures are not final."


def _loss_sentence(rows: Sequence[Row]) -> str:
    scored = [(row["round"], number(table(row.get("heldout")).get("loss"))) for row in rows]
    known = [(place, loss) for place, loss in scored if loss is not None]
    if len(known) > 1:
        (_, first), (place, last) = known[0], known[-1]
        return (
            f"Held-out loss {_change(first, last)} from {first:.3f} to {last:.3f} nats a response token"
            f" by round {place}."
        )
    if known:
        return f"Before training, held-out loss is {known[0][1]:.3f} nats a response token."
    return _training_sentence(rows)


def _training_sentence(rows: Sequence[Row]) -> str:
    losses = [loss for row in rows if (loss := number(row.get("loss"))) is not None]
    if not losses:
        return "Nothing has been scored yet."
    return (
        f"Nothing is held out. The clients' training loss {_change(losses[0], losses[-1])} from"
        f" {losses[0]:.3f} to {losses[-1]:.3f} nats a token, which says little about new data."
    )


def _change(first: float, last: float) -> str:
    return "fell" if last < first else "rose" if last > first else "stayed"


def _right_sentence(answered: Sequence[Row], began: str) -> str:
    before = [row["right_before"] for row in answered if isinstance(row.get("right_before"), bool)]
    after = [row["right_after"] for row in answered if isinstance(row.get("right_after"), bool)]
    if not before or not after:
        return ""
    return (
        f"Of {len(after)} held-out questions with a checker, the {began} answers {sum(before)} correctly and"
        f" the trained adapter {sum(after)}."
    )


def samples(answered: Sequence[Row], began: str = "base") -> list[Row]:
    """The first few answers of each category, whether they are right or not."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in answered:
        category = text(row.get("category"))
        if len(found[category]) < SAMPLES_PER_CATEGORY:
            found[category].append(_sample(row, began))
    return [sample for of_category in found.values() for sample in of_category]


def _sample(row: Row, began: str) -> Row:
    arms = ((began, "before"), ("federated", "after"))
    answers = {arm: {"text": row[key], "right": row.get(f"right_{key}")} for arm, key in arms if key in row}
    return sample({**row, "answers": answers})


def sample(given: Row) -> Row:
    """One question with the arms' answers; `right` is None for an answer without a checker."""
    answers = {arm: table(answer) for arm, answer in table(given.get("answers")).items()}
    return {
        **{key: text(given.get(key)) for key in ("category", "instruction", "context", "expected")},
        "answers": {
            arm: {"text": text(answer.get("text")), "right": _verdict(answer.get("right"))}
            for arm, answer in answers.items()
        },
    }


def _verdict(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
