"""What the arms of a comparison spend of privacy: each alone, and those on the same data together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path

from shepherd.io.phrases import epsilon_text, listed
from shepherd.run import ledger

UNITS = {"privacy": "client", "example_privacy": "example"}
"""Key of what is spent, in a row of the log and of an arm -> whose privacy it is."""
Spent = Mapping[str, Mapping[str, float | None]]
"""Key of `UNITS` -> epsilon, None where it has no bound, and delta; empty without noise."""


def spent(path: Path) -> Spent:
    """What a run has spent, by its ledgers."""
    found = ledger.spent(path)
    return {key: {"epsilon": each["epsilon"], "delta": each["delta"]} for key, each in found.items()}


def phrases(spent: Spent) -> list[str]:
    """What is spent, in words.

    >>> phrases({"privacy": {"epsilon": 1.25, "delta": 1e-5}})
    ['epsilon 1.25 at delta 1e-05 for each client']
    """
    return [f"{_text(spent[key])} for each {unit}" for key, unit in UNITS.items() if spent.get(key)]


def _text(each: Mapping[str, float | None]) -> str:
    return f"epsilon {epsilon_text(each['epsilon'])} at delta {each['delta']:.3g}"


def said(arms: Mapping[str, Sequence[Spent]]) -> list[str]:
    """Sentences on what the arms have spent, and on what that is together; [] if none adds noise.

    Args:
        arms: tuned arm -> what each of its trainings spent.
    """
    private = {name: each for name, each in arms.items() if any(each)}
    if not private:
        return []
    trainings = [spent for each in private.values() for spent in each]
    sums = [
        f"for each {unit} {_together(of_unit)}"
        for key, unit in UNITS.items()
        if len(of_unit := [spent[key] for spent in trainings if key in spent]) > 1
    ]
    return [
        *(_said_of(name, each) for name, each in private.items()),
        *(
            [f"What is spent on the same clients adds up: {' and '.join(sums)}, if all of it is released."]
            if sums
            else []
        ),
        *_unprotected([name for name in arms if name not in private]),
    ]


def _said_of(name: str, trainings: Sequence[Spent]) -> str:
    often = f", in each of its {len(trainings)} trainings" if len(trainings) > 1 else ""
    return f"{name} spent {' and '.join(phrases(trainings[0]))}{often}."


def _together(spent: Sequence[Mapping[str, float | None]]) -> str:
    """Sums of epsilons and of deltas, which bound what all of them spend together (basic composition)."""
    epsilons = [each["epsilon"] for each in spent]
    known = [each for each in epsilons if each is not None]
    epsilon = fsum(known) if len(known) == len(epsilons) else None
    return _text({"epsilon": epsilon, "delta": fsum(each["delta"] or 0.0 for each in spent)})


def _unprotected(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    add, their = ("adds", "its") if len(names) == 1 else ("add", "their")
    return [f"{listed(names, most=3)} {add} no noise: nothing hides the clients' data in {their} adapters."]
