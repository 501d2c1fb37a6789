"""What the arms of a comparison spend of privacy: each alone, and those on the same data together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shepherd.io.phrases import listed
from shepherd.privacy.guarantee import Guarantee, composed
from shepherd.run import claims, folder, hidden, ledger, lineage, starting
from shepherd.run.lineage import Training
from shepherd.run.log import read_rows

Spent = Mapping[str, Guarantee]
"""Key of `ledger.UNITS` -> what is spent; empty without noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What one training of an arm spent, and what led to the adapter that it began with."""

    spent: Spent
    before: Sequence[Training] = ()
    adapter: str = ""
    """SHA-256 of the weights that it ended with; "" where that is not known."""
    unknown_start: bool = False
    """Whether it began with an adapter of which nobody knows what its training spent."""


def spent(path: Path) -> Spent:
    """What a run has spent, by its ledgers and its log."""
    return {key: Guarantee.of(each) for key, each in claims.spent(path, read_rows(path)).items()}


def trained(path: Path) -> Trained:
    """What a finished run has spent, and what was before it.

    Raises:
        ShepherdError: a file of the run is damaged, or missing as its ledger.
    """
    hidden.require_ledgers(path, folder.planned(path), read_rows(path))
    before = lineage.before(path)
    told = all(bool(each.spent) == bool(each.guarantees) for each in before)
    return Trained(
        spent=spent(path),
        before=before,
        adapter=starting.source_of(path)["sha256"],
        unknown_start=bool(lineage.source(path)) and not (before and told),
    )


def phrases(levels: Spent) -> list[str]:
    """What is spent, in words.

    >>> phrases({"privacy": Guarantee(1.25, 1e-5)})
    ['epsilon 1.25 at delta 1e-05 for each client']
    """
    return [levels[key].text(unit) for key, unit in ledger.UNITS.items() if key in levels]


def said(arms: Mapping[str, Sequence[Trained]]) -> list[str]:
    """Sentences on what the arms have spent, and on what that is together; [] if none adds noise.

    Args:
        arms: tuned arm -> its trainings.
    """
    private = {name: each for name, each in arms.items() if any(one.spent for one in each)}
    if not private:
        return []
    every = [one for each in arms.values() for one in each]
    before = [each for each in _distinct_before(every) if each.guarantees]
    return [
        *(_said_of(name, [one.spent for one in each]) for name, each in private.items()),
        *(f"Before, {each.run} spent {' and '.join(phrases(_levels(each)))}." for each in before),
        *_together([*(one.spent for one in every), *map(_levels, before)]),
        *_starts(private),
        *_unprotected([name for name in arms if name not in private]),
    ]


def _distinct_before(trainings: Sequence[Trained]) -> list[Training]:
    """Each training that led to an adapter that one of these began with once, if it is none of these itself.

    Two that ended with the same weights are one. Where a record does not say, all of it must be the same.
    """
    own = {each.adapter for each in trainings} - {""}
    found: dict[str, Training] = {}
    for training in (each for one in trainings for each in one.before):
        if training.adapter not in own:
            found.setdefault(training.adapter or repr(training), training)
    return list(found.values())


def _levels(training: Training) -> Spent:
    return {key: Guarantee.of(training.guarantees[key]) for key in ledger.UNITS if key in training.guarantees}


def _said_of(name: str, trainings: Sequence[Spent]) -> str:
    texts = [" and ".join(phrases(each)) or "nothing" for each in trainings]
    if len(texts) == 1:
        return f"{name} spent {texts[0]}."
    if len(set(texts)) == 1:
        return f"{name} spent {texts[0]}, in each of its {len(texts)} trainings."
    return f"{name} spent, in its {len(texts)} trainings one after another: {'; '.join(texts)}."


def _together(spendings: Sequence[Spent]) -> Iterator[str]:
    """A sentence on what all of them spend together, where there are several for one unit."""
    sums = [
        composed(of_unit).text(unit)
        for key, unit in ledger.UNITS.items()
        if len(of_unit := [levels[key] for levels in spendings if key in levels]) > 1
    ]
    if sums:
        yield f"What is spent on the same clients adds up: {' and '.join(sums)}, if all of it is released."


def _starts(private: Mapping[str, Sequence[Trained]]) -> Iterator[str]:
    """Sentences on arms with noise whose first adapter claims no privacy, or may have spent some."""
    unprotected = [
        name
        for name, each in private.items()
        if any(not training.spent for one in each for training in one.before)
    ]
    if unprotected:
        yield (
            f"{listed(unprotected, most=3)} began with an adapter whose training claims no privacy: of the"
            " examples of that one, nothing that is said here holds."
        )
    if unknown := [name for name, each in private.items() if any(one.unknown_start for one in each)]:
        yield (
            f"{listed(unknown, most=3)} began with an adapter that was tuned before: what that tuning spent"
            " is not known here, and adds to this where the same clients took part."
        )


def _unprotected(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    add, their = ("adds", "its") if len(names) == 1 else ("add", "their")
    return [f"{listed(names, most=3)} {add} no noise: nothing hides the clients' data in {their} adapters."]
