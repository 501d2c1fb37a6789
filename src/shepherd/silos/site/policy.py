"""The policy rules as pure functions: whether a request may be answered, or which rule refuses it."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shepherd import plugins
from shepherd.core import Mechanism
from shepherd.core.spending import Poisson, Spending, Turns
from shepherd.data import cursor, poisson_batches
from shepherd.privacy import accountant, example_level
from shepherd.rounds.ranks import rank_at_site
from shepherd.settings import AdapterTable, RunSettings
from shepherd.silos.site import released
from shepherd.silos.site.privacy_ledger import Budget, Unit
from shepherd.silos.site.site_settings import PolicyTable, ScoringTable, minutes, parse_request
from shepherd.training.local import OBJECTIVE

if TYPE_CHECKING:
    from shepherd.silos.protocol.wire import Request

MAX_SHOWN_CHARS = 80  # characters of a name from outside that a sentence quotes
MAX_COUNTED_EXAMPLES = 2.0**62  # examples of a visit: beyond any real one, and still exact as an integer
MAX_SITE_TRANSFORMS = 8  # of one run: each costs time at the site
MAX_SENT_RATIO = 4  # ranks of an adapter that is sent, to those trained: a message is bounded by as many
MAX_ADAPTER_SCALE = 64.0  # alpha / rank: usual values are 1 to 4, and a large one overrides the base
MIN_CLIP_NORM = 1e-3  # below, every step has the same length, whatever its examples
MIN_BETA = 0.5  # below, an update reflects the last steps rather than the visit
DEFAULT_BETAS = (0.9, 0.999)
MAX_MOMENTUM = 0.95  # above, an update reflects the first steps rather than the visit
MAX_DECAY_PER_STEP = 0.01  # learning_rate * weight_decay or * mu in a step: at 1 only the last step counts
MAX_TRIES = 5  # of one request in a month, for killed processes and full disks
SHORTEN_VISIT = "lower tuning.max_steps or tuning.epochs"
DEFAULT_SCORING = ScoringTable()
ADD_EXAMPLE_NOISE = "add [privacy.examples] with a norm and a noise multiplier to the run file"
ADD_CLIENT_NOISE = (
    'add [[transforms]] name = "gaussian", or "skellam" with [secure], to the run file, and to the'
    " transforms of the site"
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The name of the rule that refuses, and a sentence with its limit, the request and the fix."""

    rule: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, slots=True)
class Violation:
    """A request breaks a rule: the rule's limit, what was requested, and how to fix it."""

    rule: str
    allowed: object
    got: str
    fix: str

    def at(self, site: str) -> Refusal:
        limit = f" = {_toml(self.allowed)}" if self.allowed is not None else ""
        return Refusal(self.rule, f"policy {self.rule}{limit} of {site} refuses {self.got}; {self.fix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthUsage:
    """What was granted in a month so far: see `audit.month_usage`."""

    rounds: int = 0
    """Visits (or scores) that were started, whether or not they succeeded."""
    runs: int = 0
    """Other runs that were trained or scored."""
    tries: int = 0
    """Attempts at this request, among `rounds`."""
    failures: int = 0
    """Visits and scores of this run that failed."""
    answers: int = 0
    """Times that this request was answered."""


def refusal(
    policy: PolicyTable,
    request: Request,
    *,
    site: str,
    bases: Collection[str],
    examples: int | None,
    different: int | None = None,
    scored: int | None = None,
    scoring: ScoringTable = DEFAULT_SCORING,
) -> Refusal | None:
    """The first rule on the run's settings that refuses the request, or None.

    It applies to every kind of request, so that a site refuses an unsuitable run when it is asked to join.
    `refusal_now` has the rules on time and budget.

    Args:
        site: the site's name, for the sentence.
        bases: digests of the bases that may be loaded.
        examples: number of examples that the site trains on; None before the data are read, which leaves out
            the rules about them.
        different: distinct examples of the visit, for an answer that was kept.
        scored: held-out examples behind the numbers of a score; None for other requests.
        scoring: the owner's [scoring] table.

    Raises:
        SettingsError: the request's settings are not valid.
    """
    run = parse_request(request.settings)
    faults = [
        _about_the_base(request.base, bases),
        _about_the_rank(policy, run.adapter, site),
        _about_the_run(policy, run, request.round, scoring),
    ]
    if request.kind == "score":
        faults.append(_about_scores(policy))
    if examples is None:
        faults.append(_about_steps(policy, run.tuning.max_steps or 0))
    else:
        faults.append(_about_a_visit(policy, run, examples, different))
    if scored is not None:
        faults.append(_about_a_score(policy, scored))
    return next((fault.at(site) for some in faults for fault in some), None)


def refusal_now(
    policy: PolicyTable, request: Request, *, site: str, granted: MonthUsage, now: datetime
) -> Refusal | None:
    """The first rule on the cohort, the hours and the month's budget that refuses the request, or None.

    These rules apply only if something is to be computed: not to joining, and not to an answer that was kept.

    Args:
        site: the site's name, for the sentence.
        granted: what was granted in this month so far.
        now: the site's local time.
    """
    faults = _about_now(policy, request, granted, now) if request.kind != "join" else ()
    return next((fault.at(site) for fault in faults), None)


def broken_by(
    policy: PolicyTable,
    run: RunSettings,
    *,
    site: str,
    examples: int,
    rounds: int = 0,
    scoring: ScoringTable = DEFAULT_SCORING,
) -> list[Refusal]:
    """Every rule that a run file breaks, apart from those on its base, the time and the budget."""
    faults = (
        *_about_the_rank(policy, run.adapter, site),
        *_about_the_run(policy, run, rounds, scoring),
        *_about_a_visit(policy, run, examples),
    )
    return [fault.at(site) for fault in faults]


def _about_the_base(asked: str, bases: Collection[str]) -> Iterator[Violation]:
    if asked not in bases:
        fix = "agree on one base, and list its sha256 in the site's [[bases]]"
        yield Violation("bases", None, f"base {_short(asked)}", fix)


def _about_the_rank(policy: PolicyTable, adapter: AdapterTable, site: str) -> Iterator[Violation]:
    trained, most = rank_at_site(adapter, site, policy.max_rank), policy.max_rank
    if trained > most:
        fix = "lower adapter.rank" if trained == adapter.rank else f"lower adapter.ranks of {site}"
        yield Violation("max_rank", most, f"rank {trained}", fix)
    elif trained < (adapter.min_rank or 0):
        got = f"rank {adapter.min_rank}, the lowest that the run allows"
        yield Violation("max_rank", most, got, "lower adapter.min_rank")
    elif adapter.rank > MAX_SENT_RATIO * most:
        got = f"an adapter of rank {adapter.rank}, more than {MAX_SENT_RATIO} times as much"
        yield Violation("max_rank", most, got, "lower adapter.rank")


def _about_the_run(
    policy: PolicyTable, run: RunSettings, round: int, scoring: ScoringTable
) -> Iterator[Violation]:
    if run.model.trust_remote_code:
        fix = "set model.trust_remote_code = false"
        yield Violation("trust_remote_code", False, "code that comes with a base", fix)
    own_rank = run.algorithm.own.get("rank", 0)
    if not _number(own_rank) <= policy.max_rank:
        got = f"an own adapter of rank {_toml(own_rank)}"
        yield Violation("max_rank", policy.max_rank, got, "lower algorithm.rank")
    scale = run.adapter.alpha / run.adapter.rank ** (0.5 if run.adapter.rank_stabilised else 1.0)
    if scale > MAX_ADAPTER_SCALE:
        yield Violation("alpha", None, f"an adapter scaled by {scale:g}", "lower adapter.alpha")
    yield from _about_the_optimiser(policy, run)
    rounds = max(run.federation.rounds, round)
    if rounds > policy.max_rounds:
        yield Violation("max_rounds", policy.max_rounds, f"{rounds} rounds", "lower federation.rounds")
    if run.tuning.loss_on not in policy.loss_on:
        got = f"a loss on {_toml(run.tuning.loss_on)}"
        yield Violation("loss_on", policy.loss_on, got, "set tuning.loss_on to what is allowed")
    if run.tuning.batch_size < policy.min_batch:
        got = f"steps of {run.tuning.batch_size} examples"
        yield Violation(
            "min_batch", policy.min_batch, got, f"set tuning.batch_size = {policy.min_batch} or more"
        )
    yield from _about_the_rendering(policy, run, scoring)
    yield from _about_its_parts(policy, run)
    yield from _about_privacy(policy, run)
    yield from _about_pairs(policy, run)


def _about_the_optimiser(policy: PolicyTable, run: RunSettings) -> Iterator[Violation]:
    """Extreme values can make an update depend on single tokens or steps, however long the visit is."""
    tuning, dropout = run.tuning, run.adapter.dropout
    if dropout > policy.max_dropout:
        yield Violation("max_dropout", policy.max_dropout, f"dropout {dropout:g}", "lower adapter.dropout")
    rate = tuning.learning_rate
    if rate > policy.max_learning_rate:
        got = f"a learning rate of {rate:g}"
        yield Violation("max_learning_rate", policy.max_learning_rate, got, "lower tuning.learning_rate")
    if 0.0 < tuning.clip_norm < MIN_CLIP_NORM:
        fix = f"set tuning.clip_norm = {MIN_CLIP_NORM:g} or more, or 0 for no clipping"
        yield Violation("clip_norm", None, f"gradients clipped to {tuning.clip_norm:g}", fix)
    keys, own = tuning.optimiser.own, run.algorithm.own
    betas = keys.get("betas", DEFAULT_BETAS)
    if not isinstance(betas, list | tuple) or not all(_number(beta) >= MIN_BETA for beta in betas):
        fix = f"set both of tuning.optimiser.betas to {MIN_BETA:g} or more"
        yield Violation("betas", None, f"betas {_toml(betas)}", fix)
    momentum = keys.get("momentum", 0.0)
    if not _number(momentum) <= MAX_MOMENTUM:
        fix = f"set tuning.optimiser.momentum to {MAX_MOMENTUM:g} or less"
        yield Violation("momentum", None, f"momentum {_toml(momentum)}", fix)
    for rule, table, value in (
        ("weight_decay", "tuning.optimiser", keys.get("weight_decay", 0.0)),
        ("mu", "algorithm", own.get("mu", 0.0)),
        ("penalty", "algorithm", own.get("penalty", 0.0)),
    ):
        if not rate * _number(value) <= MAX_DECAY_PER_STEP:
            got = f"a {rule} of {_toml(value)}, which discards more than {MAX_DECAY_PER_STEP:g} in each step"
            fix = f"lower {table}.{rule} to {MAX_DECAY_PER_STEP:g} / tuning.learning_rate or less"
            yield Violation(rule, None, got, fix)


def _number(value: object) -> float:
    """A number from outside; NaN for anything else, which then fails every bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _about_the_rendering(policy: PolicyTable, run: RunSettings, scoring: ScoringTable) -> Iterator[Violation]:
    """Rendering decides what is trained on: two updates with slightly different renderings reveal much."""
    data = run.data
    if data.template not in policy.templates:
        got = f"template {_toml(data.template)}"
        yield Violation("templates", policy.templates, got, "set data.template to one of them")
    for name, value in data.template_options.items():
        if not isinstance(value, bool):
            got = f"template option {_toml(name)} that is not true or false"
            yield Violation("templates", None, got, "leave it out, or set it to true or false")
    if data.system is not None and data.system not in policy.system_prompts:
        fix = "leave data.system out, or ask the site's owner to list exactly this text"
        yield Violation("system_prompts", None, f"system prompt {_toml(data.system)}", fix)
    days = (*policy.dates, *((scoring.date,) if scoring.date else ()))
    if data.date and data.date not in days:
        fix = (
            "set data.date to one of them"
            if days
            else "leave data.date out, or ask the site's owner to list it"
        )
        yield Violation("dates", days, f"to print the date {data.date}", fix)
    if data.max_tokens not in policy.max_tokens:
        got = f"examples of {data.max_tokens} tokens"
        yield Violation("max_tokens", policy.max_tokens, got, _nearest(policy.max_tokens, data.max_tokens))
    if run.federation.weights == "tokens":
        shown = "trained_tokens" in policy.metrics and released.is_rendered_as_scored(data, scoring)
        if not shown:  # the weight would reveal that number
            fix = 'set federation.weights = "examples" or "equal"'
            yield Violation("metrics", policy.metrics, "a weight that reveals its trained tokens", fix)


def _nearest(allowed: Collection[int], requested: int) -> str:
    known = sorted(allowed)
    place = bisect(known, requested)
    near = [str(each) for each in known[max(0, place - 1) : place + 1]]
    return f"set data.max_tokens = {' or '.join(near)}" if near else "no length is allowed"


def _about_its_parts(policy: PolicyTable, run: RunSettings) -> Iterator[Violation]:
    transforms = [part.name for part in run.transforms]
    fix = "use one that is allowed"
    if run.algorithm.name not in policy.algorithms:
        yield Violation("algorithms", policy.algorithms, f"algorithm {_toml(run.algorithm.name)}", fix)
    if run.tuning.optimiser.name not in policy.optimisers:
        got = f"optimiser {_toml(run.tuning.optimiser.name)}"
        yield Violation("optimisers", policy.optimisers, got, fix)
    if run.tuning.objective.name not in policy.objectives:
        got = f"objective {_toml(run.tuning.objective.name)}"
        yield Violation("objectives", policy.objectives, got, fix)
    if len(transforms) > MAX_SITE_TRANSFORMS:
        yield Violation(
            "transforms", None, f"{len(transforms)} transforms", f"use at most {MAX_SITE_TRANSFORMS}"
        )
    for name in transforms:
        if name not in policy.transforms:
            yield Violation("transforms", policy.transforms, f"transform {_toml(name)}", fix)
    if policy.require_secure_aggregation and run.secure is None:
        got = "a run without secure aggregation"
        yield Violation("require_secure_aggregation", True, got, "add [secure] to the run file")
    weighted = run.secure is not None and run.federation.weights != "equal"
    if policy.require_secure_aggregation and weighted and not policy.weighted_sums:
        got = f"a sum weighted by {run.federation.weights}, which may show the heaviest site's update"
        yield Violation("weighted_sums", False, got, 'set federation.weights = "equal"')


def spending(policy: PolicyTable, run: RunSettings, examples: int) -> list[tuple[Unit, Spending]]:
    """What one visit of this run spends, by who is protected; empty if it protects nobody.

    It is asked of the numbers and of the mechanism, and never of a name. The site does not know how the
    cohorts of a run are drawn, so as a client each visit counts as one in which all take part.

    Raises:
        SettingsError: a transform cannot be built, or its mechanism cannot say what a visit spends.
    """
    found: list[tuple[Unit, Spending]] = []
    if run.privacy.examples is not None:
        spent = Spending(
            noise=run.privacy.examples.noise,
            sampling=Poisson(chance=example_level.chance(examples, run.tuning.batch_size)),
            steps=example_level.steps(run.tuning, examples),
        )
        found.append(("example", spent))
    mechanism = mechanism_of(policy, run)
    # a share of noise hides nothing by itself, and only in a secure sum it is with the others
    if mechanism is not None and (run.secure is not None or not mechanism.honest):
        one = mechanism.spent(Turns(every=mechanism.apart), 1)
        found.append(("client", replace(one, sampling=Poisson(chance=1.0))))
    return found


def mechanism_of(policy: PolicyTable, run: RunSettings) -> Mechanism | None:
    """What hides the site in the sum of a round; None if nothing does.

    A transform that is not allowed is refused by its name, and never imported.
    """
    if not all(part.name in policy.transforms for part in run.transforms):
        return None
    return plugins.transform(run.transforms, policy.transforms).mechanism


def budgets(policy: PolicyTable, examples: int) -> list[Budget]:
    """What the owner allows to spend, over all runs.

    Raises:
        SettingsError: policy.delta is not below 1 over the site's examples.
    """
    if policy.max_epsilon is None:
        return []
    at = deltas(policy, examples)
    return [Budget(unit=unit, epsilon=policy.max_epsilon, delta=at[unit]) for unit in policy.require_privacy]


def deltas(policy: PolicyTable, examples: int) -> dict[Unit, float]:
    """The delta at which the epsilon of each unit is counted.

    Raises:
        SettingsError: policy.delta is not below 1 over the site's examples.
    """
    return {
        "example": example_level.delta_of(policy.delta, examples, "this site"),
        "client": policy.delta or accountant.MAX_DELTA,  # it does not know the number of sites
    }


def over_budget(policy: PolicyTable, site: str, would_be: str) -> Refusal:
    """The refusal of a visit that the ledger does not allow; `would_be` is what it says of it."""
    fix = "its privacy budget is spent, so continue without this site"
    return Violation("max_epsilon", policy.max_epsilon, would_be, fix).at(site)


def _about_privacy(policy: PolicyTable, run: RunSettings) -> Iterator[Violation]:
    asked = policy.require_privacy
    if not (asked or policy.require_noise or run.privacy.examples):
        return
    spent = dict(spending(policy, run, examples=run.tuning.batch_size))
    if policy.require_noise and not spent:
        yield Violation("require_noise", True, "a run without noise", ADD_EXAMPLE_NOISE)
    if "example" in asked and "example" not in spent:
        got = "a run whose steps add no noise for each example"
        yield Violation("require_privacy", asked, got, ADD_EXAMPLE_NOISE)
    if "client" in asked and "client" not in spent:
        got = "a run whose sum over the sites gets no noise"
        yield Violation("require_privacy", asked, got, ADD_CLIENT_NOISE)
    if asked and run.federation.weights in ("examples", "tokens"):
        got = f"a weight by {run.federation.weights}, which no noise hides"
        yield Violation("require_privacy", asked, got, 'set federation.weights = "equal"')
    for each in spent.values():
        if each.noise < policy.min_noise:
            fix = "raise privacy.examples.noise, or the noise of the transform"
            yield Violation("min_noise", policy.min_noise, f"a noise multiplier of {each.noise:g}", fix)


def _about_pairs(policy: PolicyTable, run: RunSettings) -> Iterator[Violation]:
    """Examples that are drawn together are no units that noise protects; asked before any of it is spent."""
    if run.privacy.examples is None or run.tuning.objective.name not in policy.objectives:
        return  # what is not allowed is refused by its name, and never imported
    together = plugins.built(OBJECTIVE, run.tuning.objective, policy.objectives).group_size
    if together > 1:
        got = f"[privacy.examples] with an objective that draws {together} examples together"
        fix = 'set [tuning.objective] name = "sft", or remove [privacy.examples]'
        yield Violation("objectives", None, got, fix)


def _about_a_visit(
    policy: PolicyTable, run: RunSettings, examples: int, different: int | None = None
) -> Iterator[Violation]:
    """Rules on the length of a visit, taken from the start of an epoch.

    So a run is refused in its first round or never: a visit across the end of an epoch has as many distinct
    examples, or begins with the next epoch (`data.cursor`).
    """
    if examples < max(policy.min_examples, policy.min_batch):
        rule = "min_examples" if examples < policy.min_examples else "min_batch"
        fix = "train with sites that hold more"
        # the number of examples is not disclosed
        yield Violation(rule, getattr(policy, rule), "to train on fewer examples", fix)
        return
    visit = visit_length(run, examples, policy.min_batch)
    yield from _about_steps(policy, visit.steps)
    different = visit.different if different is None else different
    if different < policy.min_examples:
        fix = "raise tuning.batch_size, tuning.max_steps or tuning.epochs"
        yield Violation("min_examples", policy.min_examples, f"a visit of {different} examples", fix)
    # as requested, since the end of a visit may be moved a little; a batch holds no more than an epoch does
    requested = (
        min(run.tuning.max_steps * run.tuning.batch_size, visit.taken)
        if run.tuning.max_steps
        else _requested_examples(run, examples)
    )
    if requested > policy.max_epochs * examples:
        got = f"{requested / examples:.4g} epochs a visit ({requested} examples of {examples})"
        yield Violation("max_epochs", policy.max_epochs, got, SHORTEN_VISIT)


def _about_steps(policy: PolicyTable, steps: int) -> Iterator[Violation]:
    if steps > policy.max_steps:
        yield Violation("max_steps", policy.max_steps, f"{steps} steps a visit", SHORTEN_VISIT)


def _about_scores(policy: PolicyTable) -> Iterator[Violation]:
    if policy.require_privacy:
        fix = "continue without this site's scores"
        yield Violation("require_privacy", policy.require_privacy, "to score, which no noise hides", fix)
    if "heldout" not in policy.metrics:
        yield Violation("metrics", policy.metrics, '"heldout"', "continue without this site's scores")


def _about_a_score(policy: PolicyTable, scored: int) -> Iterator[Violation]:
    if scored < policy.min_examples:
        fix = (
            "continue without this site's score, or ask its owner to raise scoring.share or scoring.examples"
        )
        yield Violation("min_examples", policy.min_examples, "a score over fewer held-out examples", fix)


def _about_now(
    policy: PolicyTable, request: Request, granted: MonthUsage, now: datetime
) -> Iterator[Violation]:
    if request.cohort < policy.min_cohort:
        got = f"a cohort of {request.cohort}"
        yield Violation("min_cohort", policy.min_cohort, got, "raise selection.share, or add sites")
    if policy.hours is not None and not within(policy.hours, now):
        yield Violation(
            "hours", policy.hours, f"a request at {now:%H:%M} local time", "ask again within these hours"
        )
    # a run is also scored before its first round
    most = policy.rounds_per_month + (granted.runs + 1 if request.kind == "score" else 0)
    if granted.rounds >= most:
        got = f"to {request.kind} {granted.rounds + 1} rounds in {now:%Y-%m}"
        yield Violation("rounds_per_month", policy.rounds_per_month, got, "ask again next month")
    if granted.runs >= policy.runs_per_month:
        got = f"{granted.runs + 1} runs in {now:%Y-%m}"
        yield Violation("runs_per_month", policy.runs_per_month, got, "ask again next month")
    if granted.failures >= policy.failures_per_run:
        got = f"to continue a run of which {granted.failures} visits and scores failed this month"
        fix = "see the site's log, and start another run once the cause is fixed"
        yield Violation("failures_per_run", policy.failures_per_run, got, fix)
    if granted.tries >= MAX_TRIES:
        got = f"to try one request again, which failed {granted.tries} times this month"
        yield Violation("tries", None, got, "continue with the next round, and see the site's log")


@dataclass(frozen=True, slots=True)
class Visit:
    """Length of a visit: optimiser steps, examples with repetition, and distinct examples."""

    steps: int
    taken: int
    different: int


def visit_length(run: RunSettings, examples: int, min_batch: int = 1) -> Visit:
    """The length of the visit that `data.cursor.visit` would make from the start of an epoch.

    A visit across the end of an epoch may have one or two more steps, since no batch spans two epochs.
    """
    if run.privacy.examples is not None:  # on average: what is drawn is nobody's to know
        made = example_level.steps(run.tuning, examples)
        chance = example_level.chance(examples, run.tuning.batch_size)
        reached = round(examples * poisson_batches.coverage(made, chance))
        return Visit(made, made * example_level.expected_batch(examples, run.tuning.batch_size), reached)
    tuning = run.tuning
    steps, taken = cursor.taken(
        examples,
        epochs=None if tuning.epochs is None else min(tuning.epochs, MAX_COUNTED_EXAMPLES / examples),
        max_steps=tuning.max_steps,
        batch_size=tuning.batch_size,
        min_batch=min_batch,
    )
    return Visit(steps, taken, min(taken, examples))


def _requested_examples(run: RunSettings, examples: int) -> int:
    return max(1, round(min((run.tuning.epochs or 1.0) * examples, MAX_COUNTED_EXAMPLES)))


def within(hours: str, now: datetime) -> bool:
    """Whether a time of day is in a window, which may cross midnight and excludes its end.

    >>> within("22:00-06:00", datetime(2026, 1, 1, 5, 59)), within("22:00-06:00", datetime(2026, 1, 1, 6))
    (True, False)
    """
    start, end = minutes(hours)
    minute = now.hour * 60 + now.minute
    return start <= minute < end if start < end else minute >= start or minute < end


def _toml(value: Any) -> str:
    """A value as site.toml writes it, on one line, with text from outside cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{_short(value)}"'
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, tuple) else _short(str(value))


def _short(text: str) -> str:
    """A text from outside in ASCII on one line, no longer than a name."""
    return ascii(text[:MAX_SHOWN_CHARS])[1:-1]
