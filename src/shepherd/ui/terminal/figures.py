"""Figures of a run under way: pure functions from the log's rows to numbers and short texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from shepherd.io.phrases import listed
from shepherd.io.progress import Progress, duration
from shepherd.privacy.guarantee import Guarantee
from shepherd.run import ledger

Row = Mapping[str, Any]
_BARS = "▁▂▃▄▅▆▇█"
_RECENT_ROUNDS = 5


def count(number: float) -> str:
    """A number rounded to a whole one, with commas between groups of three digits.

    >>> count(1234567.2)
    '1,234,567'
    """
    return f"{round(number):,}"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last `width` values as bars, scaled between the smallest and the largest of them.

    >>> sparkline([3, 2, 1, 1])
    '█▅▁▁'
    """
    last = values[-width:]
    low, high = min(last, default=0.0), max(last, default=0.0)
    steps = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[int((value - low) * steps + 0.5)] for value in last)


def held_out(rows: Sequence[Row]) -> list[float]:
    """Held-out losses in the order of the rounds; rounds without a score are left out."""
    losses = (row.get("heldout", {}).get("loss") for row in rows)
    return [loss for loss in losses if loss is not None]


def tokens_per_second(rows: Sequence[Row], progress: Progress | None) -> float | None:
    """Speed of the round under way, else of the last finished one; None before there is one."""
    if progress is not None and progress.seconds > 0 and progress.tokens:
        return progress.tokens / progress.seconds
    for row in reversed(rows):
        if row.get("seconds", {}).get("tuning"):
            return float(row["tokens"]["seen"] / row["seconds"]["tuning"])
    return None


def time_left(rows: Sequence[Row], until: int, progress: Progress | None) -> float | None:
    """Seconds to the end of round `until`, by the median of the last rounds less what this one has used.

    Before any round is finished, the estimate is from the one under way; None before its first tokens.
    """
    trained = [row for row in rows if row["round"] > 0 and "seconds" in row]
    if not trained:
        return progress.left() if progress is not None else None
    under_way = progress.seconds if progress is not None else 0.0
    each = median(row["seconds"]["round"] for row in trained[-_RECENT_ROUNDS:])
    rest = until - trained[-1]["round"]
    return max(0.0, each * rest - under_way) if rest > 0 else 0.0


def line(row: Row, rows: Sequence[Row], until: int) -> str:
    """A finished round as one line for a log. `rows` ends with `row`."""
    number = row["round"]
    parts = [f"round {number}/{until}" if number else "before training"]
    if number and "cohort" in row:
        trained = f"loss {_loss(row['loss'])}" if row["cohort"] else "no client drawn"
        if ledger.EXAMPLES in row and row["cohort"]:  # no loss is reported then
            trained = budget(row, ledger.EXAMPLES)
        parts += [f"clients {len(row['cohort'])}", trained]
    elif number and ledger.EXAMPLES in row:
        parts.append(budget(row, ledger.EXAMPLES))
    if "heldout" in row:
        parts.append(f"held out {_loss(row['heldout']['loss'])}")
    if preference := row.get("heldout", {}).get("preference"):
        parts.append(f"prefers {preference['accuracy']:.1%}")
    if "privacy" in row:
        parts.append(budget(row, ledger.CLIENTS))
    speed = tokens_per_second([row], None)
    parts += [f"{count(speed)} tokens/s"] if speed else []
    left = time_left(rows, until, None)
    parts += [f"{duration(row['seconds']['round'])}"] if number and "seconds" in row else []
    parts += [f"left {duration(left)}"] if left else []
    return "  ".join(parts)


def budget(row: Row, level: str) -> str:
    """What the rounds up to this one have spent of privacy, and whose.

    >>> budget({"privacy": {"epsilon": 1.2345, "delta": 0.00063}}, "privacy")
    'epsilon 1.235 at delta 0.00063 for each client'
    """
    return Guarantee.of(row[level]).text(ledger.UNITS[level])


def budgets(row: Row) -> list[str]:
    """The same for all whose privacy a row or an arm speaks of, clients first."""
    return [budget(row, level) for level in ledger.UNITS if row.get(level)]


def failures(row: Row) -> list[str]:
    """One sentence for each client without a usable update in the round."""
    found = row.get("failures", {}).items()
    return [f"round {row['round']}: no usable update from {client} ({reason})" for client, reason in found]


def late(row: Row) -> list[str]:
    """One sentence on what came late in the round, if anything did.

    >>> late({"round": 4, "late": ["a"], "dropped": ["a"], "carried": {"b": 2}})
    ['round 4: ended without a, whose update is dropped; took the late update of b (by 2 rounds)']
    """
    dropped = row.get("dropped", ())
    awaited = [client for client in row.get("late", ()) if client not in dropped]
    carried = [
        f"{client} (by {late} round{'s' * (late != 1)})" for client, late in row.get("carried", {}).items()
    ]
    parts = [
        *([f"ended without {listed(dropped)}, whose update is dropped"] if dropped else ()),
        *([f"ended without {listed(awaited)}, whose update is to come"] if awaited else ()),
        *([f"took the late update of {listed(carried)}"] if carried else ()),
    ]
    return [f"round {row['round']}: {'; '.join(parts)}"] if parts else []


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
