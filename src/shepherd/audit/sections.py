"""What an audit shows: tables for terminal and page alike, and a paragraph on what they allow one to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shepherd.audit.canaries import CHANCE_EXPOSURE, DIRECTION, Proven, Remembered
from shepherd.audit.estimate import RATES, Attack
from shepherd.audit.membership import REFERENCE, Membership
from shepherd.evaluate.statistics import Interval
from shepherd.io.phrases import delta_text, epsilon_text, proven_text
from shepherd.io.progress import many
from shepherd.visible import shown_line

CLIENT, EXAMPLE = "client", "example"
"""Units that a claim is about."""
RELEASED = "released"
"""Name of the adapter that the run released, among those that are attacked."""
WORDS = "words"
"""Form of a column of text; the others are those of the report's numbers."""
LABELS = {
    "loss": "loss",
    REFERENCE: "loss against the base",
    "zlib": "loss against zlib",
    "min_k": "min-k",
    "min_k_plus": "min-k++",
}
MAX_ROWS = 40
"""Most clients or categories of a table; all are in the JSON."""

Cell = str | float | None | Mapping[str, float | None]
"""A text, a number, none, or the row of an interval."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, and the form of its cells, `WORDS` or one of the report's forms of numbers."""

    label: str
    form: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table with its heading, what it shows in words, and notes below it.

    Whatever else attacks a run joins the table and the page as one of these.
    """

    name: str
    """Unique in an audit; letters and hyphens."""
    title: str
    words: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "title": self.title,
            "words": self.words,
            "columns": [{"label": each.label, "form": each.form} for each in self.columns],
            "rows": [list(each) for each in self.rows],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a run says it spends; `delta` is None where it does not say."""

    epsilon: float
    delta: float | None
    unit: str = ""
    """Whose privacy it is, `CLIENT` or `EXAMPLE`; "" where the run does not say."""

    def is_about(self, memory: Remembered) -> bool:
        """Whether these canaries are what the claim is about."""
        return self.unit in ("", CLIENT if memory.as_clients else EXAMPLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """All that the attacks of one audit found; adapters by name, in the order of their rounds."""

    membership: Mapping[str, Membership]
    remembered: Mapping[str, Remembered]
    claim: Claim | None = None
    extra: tuple[Section, ...] = ()
    """Sections of other attacks, such as gradient inversion."""
    remarks: tuple[str, ...] = ()

    @property
    def contradicted(self) -> bool:
        """Whether the canaries prove more than the run claims, by the released adapter and one set of them
        alone: of several, one would exceed the claim by chance more often."""
        memory = self.remembered.get(RELEASED)
        if self.claim is None or memory is None or not self.claim.is_about(memory):
            return False
        return memory.single is not None and memory.single.bounds.one_run > self.claim.epsilon


def sections(found: Attacked) -> tuple[Section, ...]:
    """The tables of an audit."""
    return (*map(_narrow, (*_canaries(found), *_members(found))), *found.extra)


_ATTACK = (Column("AUC", "ratio"), *(Column(f"found at {100 * rate:g}%", "share") for rate in RATES))
_ALONG = ", or how far it went along the direction that their update had"
_FOUND = "the share of members that are found where that share of the others is called members, too"


def _attack(found: Attack) -> list[Cell]:
    return [found.auc.row(), *(each.row() if each else None for each in found.tpr)]


def _narrow(section: Section) -> Section:
    """The section without columns that have nothing in any row."""
    kept = [n for n in range(len(section.columns)) if any(row[n] is not None for row in section.rows)]
    return replace(
        section,
        columns=[section.columns[n] for n in kept],
        rows=[[row[n] for n in kept] for row in section.rows],
    )


def _members(found: Attacked) -> list[Section]:
    if not found.membership:
        return []
    last = found.membership[RELEASED]
    any_attack = next(iter(last.scores.values()))
    shown = [
        Section(
            name="membership",
            title="Members of the training data",
            words=(
                f"How well each score tells {many(any_attack.members, 'example')} that the released adapter"
                f" was trained on from {any_attack.others:,} that were held out. An AUC of 0.5 is guessing"
                f"{f'; found is {_FOUND}' if any_attack.tpr[0] else ''}."
            ),
            columns=(Column("score", WORDS), *_ATTACK),
            rows=[[LABELS[name], *_attack(each)] for name, each in last.scores.items()],
            notes=_rate_notes(any_attack.others),
        )
    ]
    if len(found.membership) > 1:
        shown.append(
            Section(
                name="membership-rounds",
                title="By round",
                words=f"The same by {LABELS[REFERENCE]}, for each adapter that is there.",
                columns=(Column("adapter", WORDS), *_ATTACK),
                rows=[[name, *_attack(each.scores[REFERENCE])] for name, each in found.membership.items()],
            )
        )
    for name, groups in (("client", last.clients), ("category", last.categories)):
        if groups:
            shown.append(
                Section(
                    name=f"membership-{name}",
                    title=f"By {name}",
                    words=f"The same by {LABELS[REFERENCE]}, against held-out examples like the group's own.",
                    columns=(
                        Column(name, WORDS), Column("members", "count"), Column("others", "count"), *_ATTACK
                    ),
                    rows=[
                        [shown_line(key), each.members, each.others, *_attack(each)]
                        for key, each in list(groups.items())[:MAX_ROWS]
                    ],
                    notes=[f"{len(groups) - MAX_ROWS:,} more are in the JSON."]
                    if len(groups) > MAX_ROWS
                    else [],
                )
            )  # fmt: skip
    return shown


def _rate_notes(others: int) -> list[str]:
    missing = [rate for rate in RATES if rate * others < 1]
    if not missing:
        return []
    least = round(1 / max(missing))
    return [
        f"{many(others, 'other')} cannot show a false-alarm rate of {100 * max(missing):g}%; that takes at"
        f" least {least:,}."
    ]


def _canaries(found: Attacked) -> list[Section]:
    if not found.remembered:
        return []
    last = found.remembered[RELEASED]
    where = "each a client of its own" if last.as_clients else "in clients' data"
    shown = [
        Section(
            name="epsilon",
            title="What the canaries prove of epsilon",
            words=(
                "Lower bounds of epsilon at the 95% level, from guesses which canaries were included, and"
                " the bounds that guesses without any error would reach on as many canaries."
            ),
            columns=(
                Column("adapter", WORDS), Column("canaries", WORDS), Column("holds for", WORDS),
                Column("proven", "rate"), Column("at most", "rate"), Column("claimed", "rate"),
            ),
            rows=[
                [name, _which(each, memory), *cells, _claimed(each, memory, found.claim)]
                for name, memory in found.remembered.items()
                for each in memory.proven
                for cells in _proven(each)
            ],
            notes=[
                f"At delta {delta_text(last.proven[0].bounds.delta)}. The bound for Gaussian noise holds for"
                " mechanisms that are as private as it; the one for retrained attacks would hold if each"
                " canary had a training run of its own, and proves nothing here."
            ],
        )
    ]  # fmt: skip
    shown.append(
        Section(
            name="canaries",
            title="What is remembered of the canaries",
            words=(
                f"Canaries, {where}, ranked by how much better the released adapter predicts them than the"
                f" base does{_ALONG if last.as_clients else ''}, against those that a coin left out. Exposure"
                " is log2 of the number of candidates over the rank: about"
                f" {CHANCE_EXPOSURE:.2f} on average if nothing is remembered."
            ),
            columns=(
                Column("canaries", WORDS), Column("copies", "count"), Column("in", "count"),
                Column("out", "count"), Column("exposure", "ratio"), Column("at most", "ratio"), *_ATTACK,
            ),
            rows=[
                [
                    each.kind, each.copies, each.attack.members, each.attack.others, each.exposure.row(),
                    each.most, *_attack(each.attack),
                ]
                for each in last.groups
            ],
            notes=_rate_notes(min(each.attack.others for each in last.groups)) if last.groups else [],
        )
    )  # fmt: skip
    return shown


def _which(proven: Proven, memory: Remembered) -> str:
    number = f"{proven.bounds.included:,} of {proven.bounds.canaries:,}"
    if memory.as_clients:
        return f"{number} clients, {_kind(proven)}"
    return f"{number}, there once" if proven.copies == 1 else f"{number}, with copies"


def _kind(proven: Proven) -> str:
    return "directions" if proven.directions else "texts"


def _proven(each: Proven) -> list[list[Cell]]:
    """Each bound: what it holds for, what is proven, and the most that could be."""
    low, high = each.bounds, each.ceiling
    return [
        ["any mechanism", low.one_run, high.one_run],
        ["Gaussian noise", low.gaussian, high.gaussian],
        ["retrained attacks", low.clopper_pearson, high.clopper_pearson],
    ]


def _claimed(each: Proven, memory: Remembered, claim: Claim | None) -> float | None:
    return claim.epsilon if claim and claim.is_about(memory) and each is memory.single else None


def says(found: Attacked) -> list[str]:
    """What the numbers allow one to say, and what they do not, in sentences that make one paragraph."""
    said = [*_says_claim(found), *_says_canaries(found), *_says_members(found)]
    return [
        *said,
        "All of these are lower bounds of what leaks: they come from these attacks on this run, a stronger"
        " attack may find more, and an audit can refute a claim of privacy but never prove one.",
    ]


def _says_claim(found: Attacked) -> list[str]:
    if not found.remembered:
        return [
            "No canaries were planted, so nothing is proven of epsilon; `shepherd audit RUN.toml` plants some"
            " and trains the run with them."
        ]
    last = found.remembered[RELEASED]
    first = last.single
    if first is None:
        return ["No canary was planted just once, so nothing is said of a single example's epsilon."]
    unit = CLIENT if last.as_clients else EXAMPLE
    what = f" that are {_kind(first)}" if last.as_clients else ""
    low, high = first.bounds.one_run, first.ceiling.one_run
    said = [
        f"The guesses on {first.bounds.canaries:,} canaries{what}, of which a coin included"
        f" {first.bounds.included:,}, prove that epsilon for one {unit} is at least {proven_text(low)} at"
        f" delta {delta_text(first.bounds.delta)}; without any error they would prove {proven_text(high)}."
    ]
    if found.claim is None:
        return [*said, "The run claims no epsilon, so there is nothing to refute."]
    if not found.claim.is_about(last):
        return [
            *said,
            f"The run claims epsilon {epsilon_text(found.claim.epsilon)} for each {found.claim.unit}, with"
            " which no canary is compared.",
        ]
    claimed = found.claim.epsilon
    claims = f"The run claims epsilon {epsilon_text(claimed)} for each {unit}"
    if found.contradicted:
        return [
            *said,
            f"{claims}, which is therefore WRONG: noise or clipping does not do what was"
            " accounted for, or the accounting is mistaken; do not rely on its privacy.",
        ]
    if first.bounds.gaussian > claimed:
        return [
            *said,
            f"{claims}, which the bound that holds for every mechanism does not refute;"
            f" for Gaussian noise the guesses prove {proven_text(first.bounds.gaussian)}, so its noise or its"
            " clipping is very likely not what was accounted for.",
        ]
    if claimed > high:
        return [
            *said,
            f"{claims}, more than even a perfect attack on this many canaries could"
            " refute; plant more of them to test this claim.",
        ]
    return [*said, f"{claims}, and nothing here contradicts it."]


def _says_canaries(found: Attacked) -> list[str]:
    if not found.remembered:
        return []
    groups = [each for each in found.remembered[RELEASED].groups if each.kind != DIRECTION]
    learned = [each for each in groups if each.attack.auc.low > 0.5]
    if not learned:
        return [
            "Texts that were planted cannot be told from those that were left out, however often they"
            " were planted."
        ]
    least = min(each.copies for each in learned)
    times = "once" if least == 1 else f"{least} times"
    return [
        f"Texts that were planted {times} can already be told from those that were left out, so text that"
        " a client has this often should be expected to be remembered, too."
    ]


def _says_members(found: Attacked) -> list[str]:
    if not found.membership:
        return []
    attack = found.membership[RELEASED].scores[REFERENCE]
    auc, share = attack.auc, attack.tpr[0]
    said = (
        "With the untuned base for comparison, a training example is told from a held-out one with AUC"
        f" {_span(auc)}"
    )
    rare = f", and {_percent(share)} of them at 1% false alarms" if share else ""
    if auc.low > 0.5:
        return [f"{said}{rare}: anyone who has the adapter learns something of who was trained on."]
    return [
        f"{said}{rare}, which is no better than guessing; a leak up to that interval's end remains possible."
    ]


def _span(found: Interval) -> str:
    return f"{found.value:.3f} (95%: {found.low:.3f} to {found.high:.3f})"


def _percent(found: Interval) -> str:
    return f"{100 * found.value:.1f}% (95%: {100 * found.low:.1f} to {100 * found.high:.1f})"
