"""Preview for a site's owner: what the site would train on, and what would be released.

Nothing is trained, downloaded or sent. The samples are shown to the owner alone.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from shepherd.data import cursor, lint, pipeline, remarks
from shepherd.data.dataset import Partition
from shepherd.data.files import left_out
from shepherd.data.template import Template
from shepherd.errors import ShepherdError, SilosError
from shepherd.evaluate import loss
from shepherd.io.phrases import delta_text, epsilon_text
from shepherd.privacy import accountant
from shepherd.rounds.ranks import rank_at_site
from shepherd.settings import AdapterTable, RunSettings
from shepherd.silos.site import allowed_bases as bases
from shepherd.silos.site import privacy_ledger, released
from shepherd.silos.site.policy import broken_by, budgets, deltas, over_budget, spending, visit_length
from shepherd.silos.site.privacy_ledger import Unit
from shepherd.silos.site.site_settings import (
    BaseTable,
    PolicyTable,
    SiteSettings,
    parse_request,
    read,
    with_site_settings,
)

T = TypeVar("T")
FLOAT32_BYTES = 4
CLIENT_NAME = "trained on"  # the one client's name in the report
RENDERING_RULES = ("templates", "max_tokens", "dates")  # rules on the rendering, which [scoring] decides here
SIMULATED_VISITS = 60  # enough to estimate the share of an epoch that visits skip
MAX_SKIPPED_SHARE = (
    0.01  # of an epoch: below, every example is reached soon, since each epoch has another order
)
MAX_CATEGORY_NAMES = 40  # above, the names are hardly kinds of instruction
PROTECTED: Mapping[Unit, str] = {"example": "each example", "client": "the site as a whole"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePreview:
    """A base of site.toml: its folder and digest, or why it cannot be used."""

    name: str
    folder: str = ""
    digest: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPreview:
    """The site's examples, and how they are used."""

    report: lint.Report | None
    """Report on all examples; its one client has those for training. None if no base can be read."""
    examples: int
    """Number of examples for training."""
    heldout: Mapping[str, int]
    """Category -> number of held-out examples."""
    scored: Mapping[str, int]
    """Name of each number of a score -> number of held-out examples behind it."""
    duplicates: int
    """Number of duplicates that were left out."""
    skipped: tuple[str, ...]
    """One sentence for each unreadable row that was left out."""
    left_out: tuple[str, ...] = ()
    """One sentence for each file in the data's folder that is not read."""
    repeated: tuple[str, ...] = ()
    """Sentences on duplicates."""
    notes: tuple[str, ...] = ()
    """One sentence for each way in which rows are ignored, refused or changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingUpdate:
    """What a reply to one request to train contains, apart from the weight."""

    base: str
    rank: int
    """Ranks that are trained; an update has these alone."""
    tensors: Mapping[str, tuple[int, int]]
    """Name of each tensor -> its shape."""
    metrics: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of the tensors; names and numbers add a few thousand bytes."""
        return sum(rows * columns for rows, columns in self.tensors.values()) * FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of `check`. The site is ready if `faults` is empty."""

    site: SiteSettings
    run: RunSettings
    """Settings of the run that was assumed: template, hold-out, longest example, rank."""
    bases: tuple[BasePreview, ...] = ()
    data: DataPreview | None = None
    leaving: OutgoingUpdate | None = None
    policy: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    """Sentences on what is spent of the site's privacy; empty without a kit."""
    faults: tuple[str, ...] = ()
    """Problems that have to be fixed, one sentence each."""
    notes: tuple[str, ...] = ()
    """Points that the owner may want to consider, one sentence each."""


def check(
    path: str | Path, run: RunSettings | None = None, *, kit: Path | None = None, samples: int = 1
) -> Found:
    """Examine everything that a site.toml names, as a run would use it.

    Without a run file, a run's keys have their defaults, and the rank is the largest that the policy allows.

    Args:
        kit: the site's kit, for what its visits have spent of its privacy.
        samples: number of examples of each category to render.

    Raises:
        SettingsError: the site.toml cannot be read. All other problems are in `faults`.
    """
    site, name = read(path), Path(path).stem
    run, asks = run or _default_run(site), run
    found = tuple(_base(base) for base in site.bases)
    faults = [base.fault for base in found if base.fault]
    if not any(base.digest for base in found):
        faults.append(f"{path} lists no base that can be read, so every run is refused; add one to [[bases]]")
    base = next((base for base in found if base.digest), None)
    own = with_site_settings(site, run, base.folder if base else "")
    data = _collect_fault(faults, lambda: _data(site, own, samples))
    if data is not None:
        faults += _collect_fault(faults, lambda: _refusals(site, asks, name, data.examples)) or []
    examples = data.examples if data is not None else 0
    spent = _collect_fault(faults, lambda: _spent(site, kit, asks, examples)) if kit and examples else None
    if kit and spent and asks:
        over = _collect_fault(faults, lambda: _over_budget(site, kit, asks, examples))
        faults += [str(over_budget(site.policy, name, over))] if over else []
    return Found(
        site=site,
        run=own,
        bases=found,
        data=data,
        leaving=_collect_fault(faults, lambda: _leaving(base, run.adapter, site.policy)) if base else None,
        policy=tuple(in_words(site.policy)),
        spent=spent or (),
        faults=tuple(faults),
        notes=(
            *_notes(Path(path), site, run, data),
            *(
                ["What is spent of your privacy budget is in your kit: add --kit SITE_KIT to see it."]
                if site.policy.require_privacy and kit is None
                else []
            ),
            *(_about_visits(site, asks, run, name, data.examples) if data is not None and not faults else ()),
        ),
    )


def _default_run(site: SiteSettings) -> RunSettings:
    """Settings of a run that renders examples as [scoring] does, at the largest rank allowed."""
    scoring = site.scoring
    data = {"template": scoring.template, "date": scoring.date, "max_tokens": scoring.max_tokens}
    return parse_request({"adapter": {"rank": site.policy.max_rank}, "data": data})


def _collect_fault(faults: list[str], work: Callable[[], T]) -> T | None:
    """The result of `work`; on an error, None with its message added to `faults`."""
    try:
        return work()
    except ShepherdError as error:
        faults.append(str(error))
        return None


def _refusals(site: SiteSettings, asks: RunSettings | None, name: str, examples: int) -> list[str]:
    """Why the policy refuses the run file; without one, why it refuses every run on the site's data."""
    policy = site.policy
    if asks is not None:
        broken = broken_by(policy, asks, site=name, examples=examples, scoring=site.scoring)
        return [str(refusal) for refusal in broken]
    left = f"since {examples} examples are left to train on"
    for key in ("min_examples", "min_batch"):
        if examples < (least := getattr(policy, key)):
            return [f"policy {key} = {least} refuses every run, {left}; add examples, or lower it"]
    if policy.max_epochs * examples < policy.min_examples:
        return [
            f"policy max_epochs = {policy.max_epochs:g} and min_examples = {policy.min_examples} together"
            f" refuse every run, {left}; raise max_epochs, or lower min_examples"
        ]
    return []


def _ledger(site: SiteSettings, kit: Path) -> privacy_ledger.Ledger:
    if not (kit / "startup").is_dir():  # an empty ledger of a wrong folder would say that nothing is spent
        raise SilosError(f"{kit} is no kit of a site; give the folder that `shepherd silos site` gets")
    return privacy_ledger.ledger_of(kit.absolute() / "shepherd", site.data)


def _spent(site: SiteSettings, kit: Path, asks: RunSettings | None, examples: int) -> tuple[str, ...]:
    """What is spent of the privacy of each unit, what the run would add to it, and by which ledgers."""
    policy, ledger = site.policy, _ledger(site, kit)
    entries, more = privacy_ledger.read(ledger), spending(policy, asks, examples) if asks else []
    apart = sorted(
        path.name for path in ledger.path.parent.glob("*.jsonl") if path not in (ledger.path, *ledger.others)
    )
    not_counted = (
        f"Not counted: {', '.join(apart)}, of other data, or of the same data where an id of the hub was"
        " written with other capitals, or a file has moved."
    )
    others = [not_counted] if apart else []
    units = [*policy.require_privacy, *(entry.unit for entry in entries), *(unit for unit, _ in more)]
    if not units:
        return ("No visit to these data has added noise so far, so nothing is counted.", *others)
    accountant.require()
    at = deltas(policy, max(examples, privacy_ledger.most_examples(ledger)))
    sentences = []
    for unit in dict.fromkeys(units):
        epsilon = partial(privacy_ledger.epsilon, entries, unit, at[unit])
        visits = sum(entry.unit == unit for entry in entries)
        limit = f" of {policy.max_epsilon:g}" if unit in policy.require_privacy else ""
        sentences.append(
            f"Spent so far of {PROTECTED[unit]}: epsilon {epsilon_text(epsilon())}{limit} at delta"
            f" {delta_text(at[unit])}, after {visits:,} visit{'s' * (visits != 1)}."
        )
        for one in (spent for of, spent in more if of == unit):
            rounds = asks.federation.rounds if asks else 0
            whole = replace(one, steps=one.steps * rounds)
            sentences.append(
                f"With one visit of this run that is epsilon {epsilon_text(epsilon([one]))}, and with one in"
                f" each round (federation.rounds = {rounds}) {epsilon_text(epsilon([whole]))}."
            )
    files = [str(path) for path in (ledger.path, *ledger.others) if path.exists()]
    return (*sentences, f"The ledger is {' and '.join(files) or f'new: {ledger.path}'}.", *others)


def _over_budget(site: SiteSettings, kit: Path, run: RunSettings, examples: int) -> str | None:
    """What the site's budget refuses a visit of a run with; None if it allows it."""
    ledger = _ledger(site, kit)
    most = max(examples, privacy_ledger.most_examples(ledger))
    return privacy_ledger.refusal(ledger, budgets(site.policy, most), spending(site.policy, run, examples))


def _base(base: BaseTable) -> BasePreview:
    try:
        folder, found = bases.folder_of(base), bases.digest_of(base)
    except ShepherdError as error:
        return BasePreview(name=base.name, fault=str(error))
    fault = ""
    if not base.sha256:
        fault = f'base {base.name} is not allowed yet; to allow it, write sha256 = "{found}" under it'
    elif base.sha256 != found:
        fault = (
            f"base {base.name} has the digest {found}, not {base.sha256} as in site.toml; restore its files,"
            " or write the new digest there if you trust them"
        )
    return BasePreview(name=base.name, folder=folder, digest=found, fault=fault)


def _data(site: SiteSettings, run: RunSettings, samples: int) -> DataPreview:
    from shepherd.model.base import load_tokenizer  # imports torch

    division = pipeline.alone(run, CLIENT_NAME)
    report = None
    if run.model.base:
        report = lint.report(
            division.reading.examples,
            Template.of(run.data),
            load_tokenizer(run.model),
            max_tokens=run.data.max_tokens,
            loss_on=run.tuning.loss_on,
            drop_refused=run.data.on_bad_row == "skip",
            clients=division.clients,
            samples=samples,
            seed=run.data_seed,
        )
    return DataPreview(
        report=report,
        examples=report.by_client[CLIENT_NAME].kept if report else len(division.clients[CLIENT_NAME]),
        heldout=dict(Counter(_heldout(division))),
        scored=_scored(site, _heldout(division)),
        duplicates=division.held.duplicates,
        skipped=division.reading.skipped,
        left_out=tuple(left_out(run.data.source, run.data.config, run.data.part)),
        notes=tuple(division.reading.notes.sentences()),
        repeated=tuple(remarks.repeat_remarks(division, run)),
    )


def _heldout(division: Partition) -> list[str]:
    """The category of each held-out example."""
    held = division.of(division.held.heldout.tolist())
    return [example.category or "all" for example in held]


def _scored(site: SiteSettings, categories: Sequence[str]) -> dict[str, int]:
    places = loss.stratified_subset(categories, site.scoring.examples)
    return released.behind([categories[place] for place in places], site.policy.min_examples)


def _leaving(base: BasePreview, adapter: AdapterTable, policy: PolicyTable) -> OutgoingUpdate:
    from shepherd.model.meta_shapes import shapes

    rank = rank_at_site(adapter, CLIENT_NAME, policy.max_rank)
    return OutgoingUpdate(
        base=base.name,
        rank=rank,
        tensors=shapes(base.folder, adapter.model_copy(update={"rank": rank})),
        metrics=() if policy.require_privacy else policy.metrics,
    )


def in_words(policy: PolicyTable) -> list[str]:
    """The policy as sentences, for its owner."""
    what = "responses, instructions and contexts" if "all" in policy.loss_on else "responses only"
    when = f"between {policy.hours.replace('-', ' and ')}" if policy.hours else "at any hour"
    noise = "must" if policy.require_noise or policy.require_privacy else "need not"
    secure = "must use" if policy.require_secure_aggregation else "need not use"
    weighted = "may" if policy.weighted_sums else "may not"
    return [
        f"An adapter is trained at rank {policy.max_rank} at most, on {what}.",
        f"Its dropout is {policy.max_dropout:g} at most, its learning rate {policy.max_learning_rate:g}.",
        f"A visit has {policy.max_steps:,} steps and {policy.max_epochs:g} epochs at most.",
        f"A visit may start {when} by this machine's clock.",
        f"A run has {policy.max_rounds:,} rounds at most.",
        f"A month has {policy.rounds_per_month:,} rounds and {policy.runs_per_month:,} runs at most.",
        f"A run is refused for the rest of a month once {policy.failures_per_run:,} of its visits and scores"
        " have failed.",
        f"A round has {policy.min_cohort} sites or more.",
        f"A visit uses {policy.min_examples} distinct examples or more, and every number that is released is"
        f" about as many; a step uses {policy.min_batch} or more.",
        f"Examples may be rendered with {_listed(policy.templates)}, and cut to {_listed(policy.max_tokens)}"
        f" tokens; system prompts that a run may set: {_listed(policy.system_prompts)}.",
        f"Dates that a run may have a chat template print: {_listed(policy.dates)}.",
        f"Algorithms that may run: {_listed(policy.algorithms)}.",
        f"Transforms that may run: {_listed(policy.transforms)}.",
        f"Local optimisers that may run: {_listed(policy.optimisers)}; objectives:"
        f" {_listed(policy.objectives)}.",
        f"A run {noise} add noise.",
        f"A run {secure} secure aggregation; without it the server sees this site's own update.",
        *(
            [f"A secure sum {weighted} weigh the sites: with light ones it shows a heavy one's update."]
            if policy.require_secure_aggregation
            else []
        ),
        *(
            [f"A secure sum may be over this site and these only: {_listed(policy.secure_with)}."]
            if policy.secure_with
            else []
        ),
        *(
            [f"Noise that sites share hides this one even if {policy.colluding} of a sum help the server."]
            if policy.colluding
            else []
        ),
        *_privacy_in_words(policy),
        "Code that comes with a base is never run.",
    ]


def _privacy_in_words(policy: PolicyTable) -> Iterator[str]:
    if policy.require_privacy:
        protected = " and ".join(PROTECTED[unit] for unit in policy.require_privacy)
        delta = (
            f"delta {policy.delta:g}" if policy.delta else "a delta below 1 over the examples, 1e-5 at most"
        )
        yield (
            f"Noise must protect {protected}: epsilon is {policy.max_epsilon:g} at most over all runs, at"
            f" {delta}, by the site's own ledger. Nothing else runs; no score and no metric is released."
        )
        if policy.delta is not None:
            yield from accountant.of_large_delta(policy.delta, key="policy.delta")
        yield f"A noise multiplier is {policy.min_noise:g} or more."


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names)) or "none"


def _notes(path: Path, site: SiteSettings, run: RunSettings, data: DataPreview | None) -> Iterator[str]:
    policy, scoring = site.policy, site.scoring
    if scoring.template not in policy.templates or scoring.max_tokens not in policy.max_tokens:
        yield (
            "No run may render examples as [scoring] does, so no visit releases a loss: list"
            f" {scoring.template} in policy.templates and {scoring.max_tokens} in policy.max_tokens, or"
            " change [scoring] to allowed values."
        )
    elif not released.is_rendered_as_scored(run.data, scoring):
        yield (
            "This run renders examples differently from [scoring], so its visits release no loss and no"
            " token counts; agree on data.template, data.max_tokens and no system prompt."
        )
    if site.trainer.order_seed is not None:
        yield (
            "trainer.order_seed is set, so the coordinator can know which examples a visit uses; set it only"
            " in tests."
        )
    for name in (*policy.algorithms, *policy.transforms, *policy.optimisers, *policy.objectives):
        if "." in name:
            yield f"{name} is code from outside this package, and is run here if a run names it."
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield f"Other users of this machine can change {path}; `chmod go-w {path}` prevents it."
    if data is not None and "heldout" in policy.metrics:
        yield from _about_scores(data, policy.min_examples)


def _about_visits(
    site: SiteSettings, asks: RunSettings | None, run: RunSettings, name: str, examples: int
) -> Iterator[str]:
    policy, batch = site.policy, run.tuning.batch_size
    whole = broken_by(policy, run, site=name, examples=examples, scoring=site.scoring)
    if broken := [
        each for each in whole if each.rule not in RENDERING_RULES
    ]:  # those rules have their own note
        yield f"A default run (one epoch a visit, {batch} examples a step) is refused: {broken[0]}"
        return
    taken = visit_length(run, examples, policy.min_batch).taken
    over = _skipped_share(run, examples, policy) if asks and taken < 2 * policy.min_examples else 0.0
    if over > MAX_SKIPPED_SHARE:
        yield (
            f"Visits of {taken} examples skip {100 * over:.0f} % of the {examples} in each epoch: a visit"
            f" that would have fewer than {policy.min_examples} distinct examples at the end of an epoch"
            " begins with the next; longer visits skip fewer."
        )


def _skipped_share(run: RunSettings, examples: int, policy: PolicyTable) -> float:
    """The share of an epoch that visits of this length skip, simulated with an arbitrary order."""
    position, taken, tuning = 0, 0, run.tuning
    for _ in range(SIMULATED_VISITS):
        steps, position = cursor.visit(
            examples,
            position,
            epochs=tuning.epochs,
            max_steps=tuning.max_steps,
            batch_size=tuning.batch_size,
            seed=0,
            min_batch=policy.min_batch,
            min_examples=policy.min_examples,
        )
        taken += sum(map(len, steps))
    return 1 - taken / position


def _about_scores(data: DataPreview, least: int) -> Iterator[str]:
    whole, names = sum(data.heldout.values()), len(data.scored)
    if not data.scored:
        yield (
            f"No score is released: of {whole} held-out examples no category has {least} (policy min_examples"
            f" = {least}), nor have the small categories together; raise scoring.share or scoring.examples."
        )
    elif names > MAX_CATEGORY_NAMES:
        yield (
            f"A score releases the names of {names} categories: if data.category is free text, remove"
            ' "heldout" from policy.metrics, which releases no score.'
        )
