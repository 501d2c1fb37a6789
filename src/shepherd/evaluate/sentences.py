"""Sentences about comparisons: what the numbers allow one to conclude."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shepherd.evaluate.statistics import Compared, Interval
from shepherd.evaluate.still import LOSS as NATS
from shepherd.evaluate.still import SHARE, SIGNED, Span
from shepherd.io.phrases import listed
from shepherd.io.progress import many

ALPHA = 0.05
SETTLED_SEEDS = 3
"""Number of trainings from which a difference is called settled; fewer say little of the luck of training."""
FEW_QUESTIONS = 30
"""Below this number of questions, a sentence says that they are few, and nothing is called settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure: its wording, and which direction is better.

    more, fewer: the phrase for an arm with the higher or the lower number; "" makes it from the label.
    share: whether it is from 0 to 1, shown in percent and points; otherwise it is in nats per token.
    asked: noun of what it is measured on. unit: of a measure that is not a share. signed: whether it may be
    negative, so that no ratio of two scores means anything.
    """

    name: str
    label: str
    more: str = ""
    fewer: str = ""
    share: bool = True
    asked: str = "questions"
    lower_is_better: bool = False
    unit: str = "nats a token"
    signed: bool = False

    @property
    def span(self) -> Span:
        """Smallest and largest possible value."""
        return SIGNED if self.signed else SHARE if self.share else NATS

    def verb(self, difference: float) -> str:
        """Phrase for an arm that differs from the other by `difference`."""
        if difference > 0:
            return self.more or f"scores higher in {self.label} than"
        return self.fewer or f"scores lower in {self.label} than"

    def row(self) -> dict[str, Any]:
        """Row of the measure in comparison.json."""
        return {
            "name": self.name,
            "label": self.label,
            "share": self.share,
            "lower_is_better": self.lower_is_better,
        }

    def number(self, value: float) -> str:
        """Format a value, with % for a share."""
        return f"{_plain(100 * value, 1)}%" if self.share else _plain(value, 3)

    def amount(self, value: float) -> str:
        """Format a difference, in points or nats per token."""
        return f"{self.bare(value)} {'points' if self.share else self.unit}"

    def bare(self, value: float) -> str:
        """Format a number without its unit."""
        return _plain(100 * value, 1) if self.share else _plain(value, 3)

    def better(self, difference: float) -> bool:
        """Whether the arm with this difference to another is the better one."""
        return difference < 0 if self.lower_is_better else difference > 0


def _plain(value: float, places: int) -> str:
    """Format a number, never as "-0.0"."""
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"{round(value, places) + 0.0:.{places}f}"


LOSS = Measure(
    name="loss",
    label="held-out loss",
    more="has a higher loss on held-out responses than",
    fewer="has a lower loss on held-out responses than",
    share=False,
    asked="examples",
    lower_is_better=True,
)


def says(
    compared: Compared,
    *,
    first: str,
    second: str,
    score_first: float,
    score_second: float,
    measure: Measure,
    p_holm: float | None = None,
) -> str:
    """Write one sentence on one comparison, first minus second.

    Args:
        p_holm: the p corrected for all arms tested; None if this is the only one.
    """
    if compared.alike:
        return f"{first} and {second} score the same on every one of {these(compared, measure.asked)}."
    if decided(compared, p_holm):
        gap = compared.difference.scaled(-1 if compared.difference.value < 0 else 1)
        verb = measure.verb(compared.difference.value)
        return (
            f"{first} {verb} {second}: {measure.number(score_first)} against {measure.number(score_second)}, "
            f"by {measure.amount(gap.value)} ({_bounds(gap, measure)}; {shown(compared.p, p_holm)}"
            f"{_seeds(compared)})."
        )
    return (
        f"{these(compared, measure.asked).capitalize()} cannot tell {first} from {second} "
        f"(difference {measure.amount(compared.difference.value)}, {_bounds(compared.difference, measure)})"
        f"{settle(compared, p_holm, measure.asked)}."
    )


def decided(compared: Compared, p_holm: float | None = None) -> bool:
    """Whether the two differ at the 5% level, corrected if several are tested."""
    return (compared.p if p_holm is None else p_holm) < ALPHA


def limits(questions: int, seeds: int, asked: str = "questions") -> str:
    """Phrase for what a headline rests on, if that is one training or few questions; else nothing.

    >>> limits(12, 1, "examples"), limits(400, 1), limits(400, 3)
    (', in this one training and on only 12 examples', ', in this one training', '')
    """
    parts = ["in this one training"] * (seeds == 1) + [f"on only {many(questions, asked[:-1])}"] * (
        questions < FEW_QUESTIONS
    )
    return f", {' and '.join(parts)}" if parts else ""


def missing(questions: int, seeds: int, asked: str = "questions") -> str:
    """What a decided comparison lacks to be called settled; nothing if it is.

    >>> missing(12, 3), missing(400, 1), missing(400, 3)
    ('at least 30 questions', 'at least 3 seeds', '')
    """
    parts = [f"{SETTLED_SEEDS} seeds"] * (seeds < SETTLED_SEEDS) + [f"{FEW_QUESTIONS} {asked}"] * (
        questions < FEW_QUESTIONS
    )
    return f"at least {' and '.join(parts)}" if parts else ""


def settle(compared: Compared, p_holm: float | None = None, asked: str = "questions") -> str:
    """End of the sentence on an undecided comparison: what would settle it, or nothing."""
    if compared.p < ALPHA and p_holm is not None:
        return (
            f"; tested alone the difference would be significant ({shown(compared.p)}), "
            f"among all those tested it is not ({shown(compared.p, p_holm)})"
        )
    if compared.questions_needed is None:
        gap = compared.difference
        hidden = compared.seeds > 1 and gap.value and math.isfinite(gap.low) and math.isfinite(gap.high)
        return f"; more seeds, not more {asked}, would settle a difference of this size" if hidden else ""
    if compared.questions_needed <= compared.questions:
        return ""
    return f"; {_about(compared.questions_needed)} {asked} would settle a difference of this size"


def shown(p: float, p_holm: float | None = None) -> str:
    """Format a p value.

    >>> shown(0.0002), shown(0.01, 0.04)
    ('p < 0.001', 'Holm p = 0.040')
    """
    name, number = ("p", p) if p_holm is None else ("Holm p", p_holm)
    return f"{name} < 0.001" if number < 0.001 else f"{name} = {number:.3f}"


def these(compared: Compared, asked: str = "questions") -> str:
    """Phrase for the questions that were asked, and the number of seeds."""
    number = f"this one {asked[:-1]}" if compared.questions == 1 else f"these {compared.questions:,} {asked}"
    return f"{number} over {compared.seeds} seeds" if compared.seeds > 1 else number


def _seeds(compared: Compared) -> str:
    return f"; {compared.seeds} seeds" if compared.seeds > 1 else ""


def _bounds(interval: Interval, measure: Measure) -> str:
    return f"95%: {measure.bare(interval.low)} to {measure.bare(interval.high)}"


def _about(questions: int) -> str:
    """Round a number of questions.

    >>> _about(2873), _about(61), _about(3_000_000)
    ('about 2,900', 'about 61', 'more than a million')
    """
    if questions > 1_000_000:
        return "more than a million"
    return f"about {round(questions, min(0, 2 - len(str(questions)))):,}"


def verdict(first: str, better: Sequence[str], worse: Sequence[str], open_: Sequence[str]) -> str:
    """Phrase for which arms the first beats, is beaten by, and cannot be told from.

    >>> verdict("federated", ["base", "local-a"], [], ["centralised"])
    'federated beats base and local-a, and cannot be told from centralised'
    """
    parts: Iterable[tuple[str, Sequence[str]]] = (
        ("beats", better),
        ("is beaten by", worse),
        ("cannot be told from", open_),
    )
    said = [f"{verb} {listed(names)}" for verb, names in parts if names]
    if not said:
        return f"{first} is compared with no other arm"
    return f"{first} {', and '.join(filter(None, [', '.join(said[:-1]), said[-1]]))}"
