"""What a run says of itself where no comparison was made: the untrained base against its last round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from shepherd.ui.report.reading import Row, number, numbers, table, text

SAMPLES = 3
"""Answers shown of each category."""
_ALL = "\0"  # no category: `plain` would not let it through


def arms(rows: Sequence[Row], answered: Sequence[Row]) -> list[Row]:
    """The base (round 0) and the federated arm (the last scored round), without intervals."""
    scored = [row for row in rows if table(row.get("heldout"))]
    base = table(scored[0]["heldout"]) if scored and scored[0]["round"] == 0 else {}
    last = table(scored[-1]["heldout"]) if scored and scored[-1]["round"] > 0 else {}
    found = (("base", base, "right_before"), ("federated", last, "right_after"))
    shown = [_arm(name, heldout, _right(answered, key), rows) for name, heldout, key in found]
    return [arm for arm in shown if arm["measures"]]


def _arm(name: str, heldout: Row, right: Mapping[str, float], rows: Sequence[Row]) -> Row:
    losses = {category: _bare(value) for category, value in numbers(heldout.get("category")).items()}
    by_client = {client: loss for client, loss in numbers(heldout.get("client")).items() if loss is not None}
    worst = max(by_client, key=lambda client: by_client[client], default=None)
    shares = {category: _bare(value) for category, value in right.items() if category != _ALL}
    measures = {"right": _bare(right.get(_ALL)), "loss": _bare(number(heldout.get("loss")))}
    return {
        "name": name,
        "kind": name,
        "client": None,
        "categories": {},
        "overrides": [],
        "trained": _trained(rows) if name == "federated" else None,
        "measures": _known(measures),
        "category": {"right": _known(shares), "loss": _known(losses)},
        "client_loss": by_client,
        "worst_client": {"name": worst, "loss": by_client[worst]} if worst is not None else None,
    }


def _trained(rows: Sequence[Row]) -> Row:
    def total(key: str, inner: str | None = None) -> float | int:
        values = (table(row.get(key)).get(inner) if inner else row.get(key) for row in rows)
        return sum(number(value) or 0 for value in values)

    return {
        "steps": total("steps"),
        "examples": total("examples"),
        "tokens": total("tokens", "trained"),
        "seconds": total("seconds", "tuning"),
    }


def _bare(value: float | int | None) -> Row | None:
    return None if value is None else {"value": value, "low": None, "high": None}


def _known(values: Mapping[str, Row | None]) -> Row:
    return {name: value for name, value in values.items() if value is not None}


def _right(answered: Sequence[Row], key: str) -> dict[str, float]:
    """Category -> share of right answers, and `_ALL` over all questions."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for row in answered:
        if isinstance(row.get(key), bool):
            verdicts[text(row.get("category")) or "no category"].append(row[key])
    if not verdicts:
        return {}
    return {name: fmean(found) for name, found in verdicts.items()} | {
        _ALL: fmean(verdict for found in verdicts.values() for verdict in found)
    }


def says(rows: Sequence[Row], answered: Sequence[Row], status: Mapping[str, Any]) -> list[str]:
    """What a run without a comparison allows one to say."""
    if not rows:
        return ["No round is finished yet, so there is nothing to show."]
    said = [_loss_says(rows), _right_says(answered), _last_word(status)]
    return [sentence for sentence in said if sentence]


def _last_word(status: Mapping[str, Any]) -> str:
    if status["state"] == "finished":
        return "Whether federation was worth it takes other arms: `shepherd compare` trains and scores them."
    return f"The run is {status['says']}: these figures are not its last."


def _loss_says(rows: Sequence[Row]) -> str:
    scored = [(row["round"], number(table(row.get("heldout")).get("loss"))) for row in rows]
    known = [(place, loss) for place, loss in scored if loss is not None]
    if len(known) > 1:
        (_, first), (place, last) = known[0], known[-1]
        return (
            f"Held-out loss {_went(first, last)} from {first:.3f} to {last:.3f} nats a response token"
            f" by round {place}."
        )
    if known:
        return f"Before training, held-out loss is {known[0][1]:.3f} nats a response token."
    return _training_says(rows)


def _training_says(rows: Sequence[Row]) -> str:
    losses = [loss for row in rows if (loss := number(row.get("loss"))) is not None]
    if not losses:
        return "Nothing was scored yet."
    return (
        f"Nothing is held out. The clients' training loss {_went(losses[0], losses[-1])} from"
        f" {losses[0]:.3f} to {losses[-1]:.3f} nats a token, which says little about new data."
    )


def _went(first: float, last: float) -> str:
    return "fell" if last < first else "rose" if last > first else "stayed"


def _right_says(answered: Sequence[Row]) -> str:
    before = [row["right_before"] for row in answered if isinstance(row.get("right_before"), bool)]
    after = [row["right_after"] for row in answered if isinstance(row.get("right_after"), bool)]
    if not before or not after:
        return ""
    return (
        f"Of {len(after)} held-out questions that a checker decides, the base alone answers {sum(before)}"
        f" right and the trained adapter {sum(after)}."
    )


def samples(answered: Sequence[Row]) -> list[Row]:
    """The first few answers of each category, chosen without a look at whether they are right."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in answered:
        category = text(row.get("category"))
        if len(found[category]) < SAMPLES:
            found[category].append(_sample(row))
    return [sample for of_category in found.values() for sample in of_category]


def _sample(row: Row) -> Row:
    arms = (("base", "before"), ("federated", "after"))
    answers = {arm: {"text": row[key], "right": row.get(f"right_{key}")} for arm, key in arms if key in row}
    return sample({**row, "answers": answers})


def sample(given: Row) -> Row:
    """One question with the arms' answers; `right` is None where nothing decided it."""
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
