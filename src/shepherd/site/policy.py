"""Whether a request may be answered: pure, and each rule refuses by its own name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shepherd.settings import RunSettings
from shepherd.site.settings import PolicyTable, asked, minutes

if TYPE_CHECKING:
    from shepherd.federation.wire import Request

LONGEST = 80  # letters of a name that came from outside, in a sentence
MOST = 2.0**62  # examples: a visit that nobody makes, and a number that still can be counted with
SHORTER = "lower tuning.max_steps or tuning.epochs"
NOISE, SECURE = "noise", "secure"  # the transforms' modules


@dataclass(frozen=True, slots=True)
class Refusal:
    """The rule that refuses, and one sentence with what it allows and what was asked."""

    rule: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, slots=True)
class Fault:
    """What one rule has against a request: what it allows, what was asked, and the mend."""

    rule: str
    allowed: object
    got: str
    mend: str

    def at(self, site: str) -> Refusal:
        limit = f" = {_toml(self.allowed)}" if self.allowed is not None else ""
        return Refusal(self.rule, f"policy {self.rule}{limit} of {site} refuses {self.got}; {self.mend}")


def refusal(
    policy: PolicyTable,
    request: Request,
    *,
    site: str,
    bases: Collection[str],
    examples: int | None,
    position: int = 0,
    scored: int | None = None,
) -> Refusal | None:
    """The first rule that refuses what the run asks for, or None; `refusal_now` is for the rest.

    It is checked for every kind of request, so that a site refuses when it is asked to join.

    Args:
        site: the site's name, for the sentence.
        bases: digests of the bases that may be loaded.
        examples: that the site would train on, 1 or more; None before the data are looked at, and the
            rules about them are left out.
        position: where the site is in its examples for this run, as `data.cursor` counts.
        scored: held-out examples that a score would be over; None where none is asked for.

    Raises:
        SettingsError: the request's settings are no run file's.
    """
    run = asked(request.settings)
    faults = [_about_the_base(request.base, bases), _about_the_run(policy, run, request.round)]
    if examples is None:
        faults.append(_about_steps(policy, run.tuning.max_steps or 0))
    else:
        faults.append(_about_a_visit(policy, run, examples, position))
    if scored is not None:
        faults.append(_about_a_score(policy, scored))
    return next((fault.at(site) for some in faults for fault in some), None)


def refusal_now(
    policy: PolicyTable, request: Request, *, site: str, granted_this_month: int, now: datetime
) -> Refusal | None:
    """The first rule about the cohort, the hours and the month's budget that refuses the request, or None.

    They hold where something is to be computed, and so neither for joining nor for an answer that was kept.

    Args:
        site: the site's name, for the sentence.
        granted_this_month: other requests of this kind granted; see `audit.granted`.
        now: in the site's local time.
    """
    faults = _about_now(policy, request, granted_this_month, now) if request.kind != "join" else ()
    return next((fault.at(site) for fault in faults), None)


def leaving(policy: PolicyTable, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that may leave."""
    return {name: value for name, value in metrics.items() if name in policy.metrics}


def broken_by(
    policy: PolicyTable, run: RunSettings, *, site: str, examples: int, rounds: int = 0
) -> list[Refusal]:
    """Every rule that a run file breaks by itself, whatever its base and whenever it asks."""
    faults = (*_about_the_run(policy, run, rounds), *_about_a_visit(policy, run, examples, 0))
    return [fault.at(site) for fault in faults]


def _about_the_base(asked: str, bases: Collection[str]) -> Iterator[Fault]:
    if asked not in bases:
        mend = "agree on one base, and list its sha256 in the site's [[bases]]"
        yield Fault("bases", None, f"base {_short(asked)}", mend)


def _about_the_run(policy: PolicyTable, run: RunSettings, round: int) -> Iterator[Fault]:
    if run.model.trust_remote_code:
        mend = "set model.trust_remote_code = false"
        yield Fault("trust_remote_code", False, "code that comes with a base", mend)
    if run.adapter.rank > policy.max_rank:
        yield Fault("max_rank", policy.max_rank, f"rank {run.adapter.rank}", "lower adapter.rank")
    rounds = max(run.federation.rounds, round)
    if rounds > policy.max_rounds:
        yield Fault("max_rounds", policy.max_rounds, f"{rounds} rounds", "lower federation.rounds")
    if run.tuning.loss_on not in policy.loss_on:
        got = f"a loss on {_toml(run.tuning.loss_on)}"
        yield Fault("loss_on", policy.loss_on, got, "set tuning.loss_on to what is allowed")
    yield from _about_its_parts(policy, run)


def _about_its_parts(policy: PolicyTable, run: RunSettings) -> Iterator[Fault]:
    transforms = [part.name for part in run.transforms]
    mend = "use one that is allowed"
    if run.algorithm.name not in policy.algorithms:
        yield Fault("algorithms", policy.algorithms, f"algorithm {_toml(run.algorithm.name)}", mend)
    for name in transforms:
        if name not in policy.transforms:
            yield Fault("transforms", policy.transforms, f"transform {_toml(name)}", mend)
    if policy.require_noise and NOISE not in transforms:
        yield Fault("require_noise", True, "a run without noise", f"add the transform {_toml(NOISE)}")
    if policy.require_secure_aggregation and SECURE not in transforms:
        got = "a run without secure aggregation"
        yield Fault("require_secure_aggregation", True, got, f"add the transform {_toml(SECURE)}")


def _about_a_visit(policy: PolicyTable, run: RunSettings, examples: int, position: int) -> Iterator[Fault]:
    if examples < policy.min_examples:
        mend = "train with sites that hold more"
        yield Fault("min_examples", policy.min_examples, f"to train on {examples} examples", mend)
        return
    visit = length(run, examples, position)
    yield from _about_steps(policy, visit.steps)
    if visit.taken > policy.max_epochs * examples:
        epochs = f"{visit.taken / examples:.4g}"
        got = f"{epochs} epochs a visit ({visit.taken} examples of {examples})"
        yield Fault("max_epochs", policy.max_epochs, got, SHORTER)


def _about_steps(policy: PolicyTable, steps: int) -> Iterator[Fault]:
    if steps > policy.max_steps:
        yield Fault("max_steps", policy.max_steps, f"{steps} steps a visit", SHORTER)


def _about_a_score(policy: PolicyTable, scored: int) -> Iterator[Fault]:
    if scored < policy.min_examples:
        got = f"a score over {scored} held-out examples"
        mend = "go on without this site's score, or raise evaluation.examples or data.holdout"
        yield Fault("min_examples", policy.min_examples, got, mend)


def _about_now(policy: PolicyTable, request: Request, granted: int, now: datetime) -> Iterator[Fault]:
    if request.kind == "score" and "heldout" not in policy.metrics:
        yield Fault("metrics", policy.metrics, '"heldout"', "go on without this site's scores")
    if request.cohort < policy.min_cohort:
        got = f"a cohort of {request.cohort}"
        yield Fault("min_cohort", policy.min_cohort, got, "raise federation.share, or add sites")
    if policy.hours is not None and not within(policy.hours, now):
        yield Fault("hours", policy.hours, f"at {now:%H:%M} of its local time", "ask again within them")
    most = policy.rounds_per_month * (2 if request.kind == "score" else 1)
    if granted >= most:
        got = f"round {granted + 1} to {request.kind} of {now:%Y-%m}"
        yield Fault("rounds_per_month", policy.rounds_per_month, got, "ask again next month")


@dataclass(frozen=True, slots=True)
class Visit:
    """How long a visit is: optimiser steps, and examples taken (one taken twice counts twice)."""

    steps: int
    taken: int


def length(run: RunSettings, examples: int, position: int = 0) -> Visit:
    """The length of the visit that `data.cursor.visit` would make, without making it.

    A batch never straddles two epochs, so the steps depend on where the cursor is.
    """
    batch, left = run.tuning.batch_size, examples - position % examples
    if run.tuning.max_steps is None:
        taken = max(1, round(min((run.tuning.epochs or 1.0) * examples, MOST)))
        whole, rest = divmod(max(0, taken - left), examples)
        steps = _batches(min(taken, left), batch) + whole * _batches(examples, batch) + _batches(rest, batch)
        return Visit(steps, taken)
    first = _batches(left, batch)
    if (steps := run.tuning.max_steps) <= first:
        return Visit(steps, min(steps * batch, left))
    whole, rest = divmod(steps - first, _batches(examples, batch))
    return Visit(steps, left + whole * examples + min(rest * batch, examples))


def _batches(examples: int, batch: int) -> int:
    return -(-examples // batch)


def within(hours: str, now: datetime) -> bool:
    """Whether a time of day lies in a window, which may go over midnight; its end is not in it.

    >>> within("22:00-06:00", datetime(2026, 1, 1, 5, 59)), within("22:00-06:00", datetime(2026, 1, 1, 6))
    (True, False)
    """
    start, end = minutes(hours)
    minute = now.hour * 60 + now.minute
    return start <= minute < end if start < end else minute >= start or minute < end


def _toml(value: Any) -> str:
    """As site.toml writes it, on one line; a text from outside cut short, and never a line of its own."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{_short(value)}"'
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, tuple) else str(value)


def _short(text: str) -> str:
    """A text from outside: no longer than a name, and never a line of its own."""
    return ascii(text[:LONGEST])[1:-1]
