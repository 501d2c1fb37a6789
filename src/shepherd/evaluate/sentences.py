"""What the numbers allow one to say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shepherd.evaluate.statistics import Compared, Interval
from shepherd.evaluate.still import LOSS as NATS
from shepherd.evaluate.still import SHARE, Span
from shepherd.io.phrases import listed

ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One thing that is measured: how to say it, and which way is better.

    more, fewer: what is said of an arm whose number is the higher, and the lower; "" is by the label.
    share: from 0 to 1, shown in percent and points; otherwise nats a token. asked: what it is measured on.
    """

    name: str
    label: str
    more: str = ""
    fewer: str = ""
    share: bool = True
    asked: str = "questions"
    lower_is_better: bool = False

    @property
    def span(self) -> Span:
        """The least and the largest value that there can be."""
        return SHARE if self.share else NATS

    def verb(self, difference: float) -> str:
        """What is said of an arm that differs by so much from the other."""
        if difference > 0:
            return self.more or f"scores higher in {self.label} than"
        return self.fewer or f"scores lower in {self.label} than"

    def row(self) -> dict[str, Any]:
        """As it stands in comparison.json."""
        return {
            "name": self.name,
            "label": self.label,
            "share": self.share,
            "lower_is_better": self.lower_is_better,
        }

    def number(self, value: float) -> str:
        return f"{_plain(100 * value, 1)}%" if self.share else _plain(value, 3)

    def amount(self, value: float) -> str:
        """A difference, in points or nats."""
        return f"{self.bare(value)} {'points' if self.share else 'nats a token'}"

    def bare(self, value: float) -> str:
        return _plain(100 * value, 1) if self.share else _plain(value, 3)

    def better(self, difference: float) -> bool:
        return difference < 0 if self.lower_is_better else difference > 0


def _plain(value: float, places: int) -> str:
    """Never "-0.0"."""
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
    """One sentence on one comparison, first minus second.

    Args:
        p_holm: the p corrected for all the arms tested; None where this is the only one.
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
    """Whether the two differ at the 5% level, corrected where several are tested."""
    return (compared.p if p_holm is None else p_holm) < ALPHA


def settle(compared: Compared, p_holm: float | None = None, asked: str = "questions") -> str:
    """What would settle a comparison that is not decided: the end of its sentence, or nothing."""
    if compared.p < ALPHA and p_holm is not None:
        return (
            f"; alone the difference would stand ({shown(compared.p)}), "
            f"among all those tested it does not ({shown(compared.p, p_holm)})"
        )
    if compared.questions_needed is None:
        gap = compared.difference
        hidden = compared.seeds > 1 and gap.value and math.isfinite(gap.low) and math.isfinite(gap.high)
        return f"; more seeds, not more {asked}, would settle a difference of this size" if hidden else ""
    if compared.questions_needed <= compared.questions:
        return ""
    return f"; {_about(compared.questions_needed)} {asked} would settle a difference of this size"


def shown(p: float, p_holm: float | None = None) -> str:
    """The p as it is printed.

    >>> shown(0.0002), shown(0.01, 0.04)
    ('p < 0.001', 'Holm p = 0.040')
    """
    name, number = ("p", p) if p_holm is None else ("Holm p", p_holm)
    return f"{name} < 0.001" if number < 0.001 else f"{name} = {number:.3f}"


def these(compared: Compared, asked: str = "questions") -> str:
    """The questions that were asked, and over how many seeds."""
    number = f"this one {asked[:-1]}" if compared.questions == 1 else f"these {compared.questions:,} {asked}"
    return f"{number} over {compared.seeds} seeds" if compared.seeds > 1 else number


def _seeds(compared: Compared) -> str:
    return f"; {compared.seeds} seeds" if compared.seeds > 1 else ""


def _bounds(interval: Interval, measure: Measure) -> str:
    return f"95%: {measure.bare(interval.low)} to {measure.bare(interval.high)}"


def _about(questions: int) -> str:
    """
    >>> _about(2873), _about(61), _about(3_000_000)
    ('about 2,900', 'about 61', 'more than a million')
    """
    if questions > 1_000_000:
        return "more than a million"
    return f"about {round(questions, min(0, 2 - len(str(questions)))):,}"


def verdict(first: str, better: Sequence[str], worse: Sequence[str], open_: Sequence[str]) -> str:
    """Which arms the first beats, is beaten by, and cannot be told from.

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
