"""Compare one arm with all others on one measure: the table of differences, and its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from numpy.typing import ArrayLike

from shepherd.errors import StatisticsError
from shepherd.evaluate.draws import Draws
from shepherd.evaluate.sentences import Measure, decided, limits, says, these, verdict
from shepherd.evaluate.statistics import Compared, Interval, between, holm, sample

UNKNOWN = Interval(nan, nan, nan)
"""What a ratio comes to where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Difference `first` minus `arm` on one measure; `p_holm` is corrected for all arms of the table."""

    first: str
    arm: str
    measure: Measure
    compared: Compared
    p_holm: float
    says: str

    def row(self) -> dict[str, Any]:
        """Row of the difference in comparison.json."""
        return {
            "arm": self.arm,
            "measure": self.measure.name,
            "difference": self.compared.difference.row(),
            "relative": (UNKNOWN if self.measure.signed else self.compared.relative).row(),
            "p": self.compared.p,
            "p_holm": self.p_holm,
            "questions_needed": self.compared.questions_needed,
            "says": self.says,
        }

    @property
    def outcome(self) -> int:
        """1 if first is better, -1 if it is worse, 0 if the two cannot be told apart."""
        if not decided(self.compared, self.p_holm):
            return 0
        return 1 if self.measure.better(self.compared.difference.value) else -1


def against(
    first: str,
    arms: Mapping[str, ArrayLike],
    draws: Draws,
    measure: Measure,
    weights: ArrayLike | None = None,
) -> list[Against]:
    """Compare `first` with every other arm, in the arms' order, with Holm's correction over them.

    Ten thousand resamples resolve a p of 0.0002 at best, so with more than 250 arms no difference could be
    significant: draw more then.

    Args:
        arms: each arm's values, (S, Q), or (Q,) if they are the same for every seed.
        weights: (Q,), see `statistics.sample`.

    Raises:
        StatisticsError: `first` is not among the arms; or see `statistics.sample`.
    """
    if first not in arms:
        raise StatisticsError(
            f"There are no scores of {first}, with which the arms are compared; score it first."
        )
    samples = {arm: sample(values, draws, weights, measure.span) for arm, values in arms.items()}
    mine = samples[first]
    compared = {arm: between(mine, other) for arm, other in samples.items() if arm != first}
    corrected = holm({arm: one.p for arm, one in compared.items()})
    return [
        Against(
            first=first,
            arm=arm,
            measure=measure,
            compared=one,
            p_holm=corrected[arm],
            says=says(
                one,
                first=first,
                second=arm,
                score_first=mine.value,
                score_second=samples[arm].value,
                measure=measure,
                p_holm=corrected[arm] if len(compared) > 1 else None,
            ),
        )
        for arm, one in compared.items()
    ]


def summary(
    rows: Sequence[Against], *, references: Sequence[str] = ("centralised",), amounts: str = ""
) -> list[str]:
    """Summarise one table: whom the first arm beats, its ratio to references, what intervals cover.

    Args:
        amounts: how much each arm saw, if that differs; it goes into the first sentence.
    """
    if not rows:
        return []
    first, measure, compared = rows[0].first, rows[0].measure, rows[0].compared
    by_outcome = {sign: [row.arm for row in rows if row.outcome == sign] for sign in (1, -1, 0)}
    rests_on = limits(compared.questions, compared.seeds, measure.asked)
    outcome = verdict(first, by_outcome[1], by_outcome[-1], by_outcome[0])
    said = [f"By {measure.label}{rests_on}, {outcome}{amounts and f'; {amounts}'}."]
    said += [_ratio_sentence(row) for row in rows if row.arm in references and not measure.signed]
    said.append(_coverage_sentence(compared, measure.asked))
    return said


def summaries(
    rows: Sequence[Against], *, chief: str, references: Sequence[str], amounts: str = ""
) -> list[list[str]]:
    """Summarise each measure's table, that of the measure `chief` first; see `summary`.

    The first sentence of each is the verdict; the others repeat what a table of the arms shows.
    """
    tables = [
        [row for row in rows if row.measure.name == name]
        for name in dict.fromkeys(row.measure.name for row in rows)
    ]
    tables.sort(key=lambda table: table[0].measure.name != chief)
    return [
        summary(table, references=references, amounts="" if place else amounts)
        for place, table in enumerate(tables)
    ]


def _coverage_sentence(compared: Compared, asked: str) -> str:
    covers = f"The intervals cover the choice of {these(compared, asked)}"
    if compared.seeds > 1:
        return f"{covers}, and the luck of training as these seeds show it."
    return f"{covers}, not the luck of training, which one seed cannot show."


def _ratio_sentence(row: Against) -> str:
    ratio = row.compared.relative.row()
    if None in ratio.values():
        return f"{row.arm} scores too close to 0 for a relative score of {row.first}."
    bounds = f"95%: {ratio['low']:.3f} to {ratio['high']:.3f}"
    lower = ", where lower is better" if row.measure.lower_is_better else ""
    return f"{row.first} comes to {ratio['value']:.3f} of {row.arm} ({bounds}) in {row.measure.label}{lower}."
