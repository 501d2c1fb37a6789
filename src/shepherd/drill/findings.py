"""What the rows of a drill say, in one line each and in a few sentences together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
HONEST = "none"
"""The attack that is none."""
COLUMNS = (
    ("rule", "words", "rule"),
    ("held-out loss", "loss", "loss"),
    ("right", "share", "right"),
    ("backdoor", "share", "backdoor"),
    ("failures", "count", "failures"),
    ("honest kept", "share", "kept_good"),
    ("bad kept", "share", "kept_bad"),
)
"""Heading, form and key of each column of a drill's tables."""


def said(row: Row) -> str:
    """One line about a training."""
    if row["stopped"]:
        return f"{row['attack']}, {row['rule']}: stopped, {row['stopped']}"
    right_ = "" if row["right"] is None else f", {100 * row['right']:.0f}% right"
    return f"{row['attack']}, {row['rule']}: held out {row['loss']:.4f}{right_}"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the rows allow one to say: which rule costs least without an attack, and stands the worst."""
    by = {(row["attack"], row["rule"]): row for row in found["rows"]}
    rules, own = found["rules"], found["rules"][0]
    without = {name: by[HONEST, name]["loss"] for name in rules if by[HONEST, name]["loss"] is not None}
    said_ = []
    if own in without and len(without) > 1:
        best = min((name for name in without if name != own), key=lambda name: without[name])
        more = without[best] - without[own]
        said_.append(
            f"Without an attack {best} costs least: a held-out loss of {without[best]:.4f}, against"
            f" {without[own]:.4f} with {own} ({more:+.4f})."
        )
    worst = {}
    for name in rules:
        losses = [by[attack, name]["loss"] for attack in found["attacks"] if attack != HONEST]
        if losses:
            worst[name] = max(math.inf if each is None else each for each in losses)
    if worst:
        best = min(worst, key=lambda name: worst[name])
        said_.append(
            f"In its worst attack {best} does best, with a held-out loss of {worst[best]:.4f}."
            if math.isfinite(worst[best])
            else "No rule finished its rounds under every attack."
        )
    if found["cohort"] < found["clients"]:
        said_.append(
            f"A round asks {found['cohort']} of the {found['clients']} clients, {len(found['bad'])} of which"
            " are bad: by chance a cohort has more bad clients than that share, and than a rule is set for."
        )
    return said_


def sections(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of a drill, one an attack, without columns that have nothing in any row."""
    return [
        _section(name, words, [row for row in found["rows"] if row["attack"] == name])
        for name, words in found["attacks"].items()
    ]


def _section(name: str, words: str, rows: Sequence[Row]) -> dict[str, Any]:
    columns = [each for each in COLUMNS if any(row[each[2]] is not None for row in rows)]
    return {
        "name": f"attack-{name}",
        "title": "Without an attack" if name == HONEST else name.replace("_", " ").capitalize(),
        "words": f"{words[0].upper()}{words[1:]}.",
        "columns": [{"label": label, "form": form} for label, form, _ in columns],
        "rows": [[row[key] for *_, key in columns] for row in rows],
        "notes": [f"{row['rule']} stopped: {row['stopped']}." for row in rows if row["stopped"]],
    }
