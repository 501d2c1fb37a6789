"""What a site would train on and what would leave it, found out before it joins anything.

Nothing is trained, nothing is fetched, and nothing is sent. The samples are for the owner's own eyes.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shepherd.data import cursor, lint, pipeline
from shepherd.data.files import left_out
from shepherd.data.pipeline import Partition
from shepherd.data.template import Template
from shepherd.errors import ShepherdError
from shepherd.evaluate import loss
from shepherd.settings import AdapterTable, RunSettings
from shepherd.silos.site import allowed_bases as bases
from shepherd.silos.site import released
from shepherd.silos.site.policy import broken_by, length
from shepherd.silos.site.site_settings import BaseTable, PolicyTable, SiteSettings, asked, laid_over, read

T = TypeVar("T")
NUMBER = 4  # bytes of a float32
OWN = "trained on"  # the one client's name in the report
RENDERED = ("templates", "max_tokens", "dates")  # rules about a rendering that [scoring] decides here
WALKED = 60  # visits: enough for the share of an epoch that they pass over
FEW = 0.01  # of an epoch: every example is reached soon, since each epoch has another order
MANY = 40  # categories: so many names are hardly kinds of instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBase:
    """A base of site.toml: where it lies, and its digest; or why it cannot be used."""

    name: str
    folder: str = ""
    digest: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundData:
    """What the site holds, and what becomes of it."""

    report: lint.Report | None
    """Of every example that was read; its one client is what is trained on. None without any base."""
    examples: int
    """That would be trained on."""
    heldout: Mapping[str, int]
    """How many examples of each category are not trained on."""
    scored: Mapping[str, int]
    """How many of them stand behind each number of a score, by its name."""
    duplicates: int
    skipped: tuple[str, ...]
    """One sentence a row that was left out."""
    left_out: tuple[str, ...] = ()
    """What lies in the data's folder and is not read, in sentences."""
    repeated: tuple[str, ...] = ()
    """What is to be said of duplicates, in sentences."""
    notes: tuple[str, ...] = ()
    """What of the rows is not read, refused or changed, a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """What an answer to one request to train holds, beside a weight: one number."""

    base: str
    rank: int
    tensors: Mapping[str, tuple[int, int]]
    metrics: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of the tensors; the names and numbers around them are a few thousand more."""
        return sum(rows * columns for rows, columns in self.tensors.values()) * NUMBER


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that `check` found. Where `faults` is empty the site is ready."""

    site: SiteSettings
    run: RunSettings
    """What was assumed of a run: its template, its hold-out, its longest example, its rank."""
    bases: tuple[FoundBase, ...] = ()
    data: FoundData | None = None
    leaving: Leaving | None = None
    policy: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    """What has to be mended, one sentence each."""
    notes: tuple[str, ...] = ()
    """What the owner may want to think about."""


def check(path: str | Path, run: RunSettings | None = None, *, samples: int = 1) -> Found:
    """Look at everything that a site.toml names, as a run would use it.

    Without a run file, what a run decides is taken at its default, and the rank at the largest that the
    policy allows. `samples` examples of each category are rendered to be shown.

    Raises:
        SettingsError: the site.toml cannot be read. What else is wrong stands in `faults`.
    """
    site, name = read(path), Path(path).stem
    run, asks = run or _usual(site), run
    found = tuple(_base(base) for base in site.bases)
    faults = [base.fault for base in found if base.fault]
    if not any(base.digest for base in found):
        faults.append(f"{path} names no base that can be read, so every run is refused; add one to [[bases]]")
    base = next((base for base in found if base.digest), None)
    own = laid_over(site, run, base.folder if base else "")
    data = _told(faults, lambda: _data(site, own, samples))
    if data is not None:
        faults += _refusals(site, asks, name, data.examples)
    return Found(
        site=site,
        run=own,
        bases=found,
        data=data,
        leaving=_told(faults, lambda: _leaving(base, run.adapter, site.policy)) if base else None,
        policy=tuple(in_words(site.policy)),
        faults=tuple(faults),
        notes=(
            *_notes(Path(path), site, run, data),
            *(_about_visits(site, asks, run, name, data.examples) if data is not None and not faults else ()),
        ),
    )


def _usual(site: SiteSettings) -> RunSettings:
    """A run that renders examples as they are scored, at the largest rank that is allowed."""
    scoring = site.scoring
    data = {"template": scoring.template, "date": scoring.date, "max_tokens": scoring.max_tokens}
    return asked({"adapter": {"rank": site.policy.max_rank}, "data": data})


def _told(faults: list[str], work: Callable[[], T]) -> T | None:
    """What `work` gives, or None with its fault added to the others."""
    try:
        return work()
    except ShepherdError as error:
        faults.append(str(error))
        return None


def _refusals(site: SiteSettings, asks: RunSettings | None, name: str, examples: int) -> list[str]:
    """What the policy has against the run file; without one, against the site's own data."""
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
            f"policy max_epochs = {policy.max_epochs:g} and min_examples = {policy.min_examples} refuse every"
            f" run between them, {left}; raise the one, or lower the other"
        ]
    return []


def _base(base: BaseTable) -> FoundBase:
    try:
        folder, found = bases.folder_of(base), bases.digest_of(base)
    except ShepherdError as error:
        return FoundBase(name=base.name, fault=str(error))
    fault = ""
    if not base.sha256:
        fault = f'base {base.name} is not allowed yet; to allow it, write sha256 = "{found}" under it'
    elif base.sha256 != found:
        fault = (
            f"base {base.name} has the digest {found} and not {base.sha256} as site.toml says; put its files"
            " back, or write the new digest there if you trust them"
        )
    return FoundBase(name=base.name, folder=folder, digest=found, fault=fault)


def _data(site: SiteSettings, run: RunSettings, samples: int) -> FoundData:
    from shepherd.model.base import load_tokenizer  # brings torch

    division = pipeline.alone(run, OWN)
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
    return FoundData(
        report=report,
        examples=report.by_client[OWN].kept if report else len(division.clients[OWN]),
        heldout=dict(Counter(_heldout(division))),
        scored=_scored(site, _heldout(division)),
        duplicates=division.held.duplicates,
        skipped=division.reading.skipped,
        left_out=tuple(left_out(run.data.source, run.data.config, run.data.part)),
        notes=tuple(division.reading.notes.sentences()),
        repeated=tuple(pipeline.repeat_remarks(division, run)),
    )


def _heldout(division: Partition) -> list[str]:
    """The category of each held-out example."""
    held = division.of(division.held.heldout.tolist())
    return [example.category or "all" for example in held]


def _scored(site: SiteSettings, categories: Sequence[str]) -> dict[str, int]:
    places = loss.stratified_subset(categories, site.scoring.examples)
    return released.behind([categories[place] for place in places], site.policy.min_examples)


def _leaving(base: FoundBase, adapter: AdapterTable, policy: PolicyTable) -> Leaving:
    from shepherd.model.meta_shapes import shapes

    return Leaving(
        base=base.name,
        rank=adapter.rank,
        tensors=shapes(base.folder, adapter),
        metrics=policy.metrics,
    )


def in_words(policy: PolicyTable) -> list[str]:
    """The policy in plain sentences, for its owner."""
    what = "instructions and contexts too" if "all" in policy.loss_on else "responses alone"
    when = f"between {policy.hours.replace('-', ' and ')}" if policy.hours else "at any hour"
    noise = "must" if policy.require_noise else "need not"
    secure = "must use" if policy.require_secure_aggregation else "need not use"
    return [
        f"An adapter has rank {policy.max_rank} at most, and is trained on {what}.",
        f"Its dropout is {policy.max_dropout:g} at most, and the learning rate {policy.max_learning_rate:g}.",
        f"A visit takes {policy.max_steps:,} steps and {policy.max_epochs:g} epochs at most.",
        f"A visit begins {when} by this machine's clock.",
        f"A run has {policy.max_rounds:,} rounds at most.",
        f"A month has {policy.rounds_per_month:,} rounds at most, over all runs, of which there are"
        f" {policy.runs_per_month:,} at most.",
        f"A run is refused for the rest of a month after {policy.failures_per_run:,} of its visits and scores"
        " came to nothing.",
        f"A round needs {policy.min_cohort} sites or more.",
        f"A visit takes {policy.min_examples} different examples or more, and no number that leaves is of"
        f" fewer; a step takes {policy.min_batch} or more.",
        f"Examples may be written as {_listed(policy.templates)}, and cut to {_listed(policy.max_tokens)}"
        f" tokens; system prompts that a run may set: {_listed(policy.system_prompts)}.",
        f"Days that a run may have a chat template print as today's: {_listed(policy.dates)}.",
        f"Algorithms that may run: {_listed(policy.algorithms)}.",
        f"Transforms that may run: {_listed(policy.transforms)}.",
        f"Local optimisers that may run: {_listed(policy.optimisers)}; objectives:"
        f" {_listed(policy.objectives)}.",
        f"A run {noise} add noise.",
        f"A run {secure} secure aggregation; without it the server sees this site's own update.",
        "Code that comes with a base never runs.",
    ]


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names)) or "none"


def _notes(path: Path, site: SiteSettings, run: RunSettings, data: FoundData | None) -> Iterator[str]:
    policy, scoring = site.policy, site.scoring
    if scoring.template not in policy.templates or scoring.max_tokens not in policy.max_tokens:
        yield (
            "No run may write examples as [scoring] has them, so no visit gives a loss: list"
            f" {scoring.template} in policy.templates and {scoring.max_tokens} in policy.max_tokens, or score"
            " as you allow."
        )
    elif not released.is_rendered_as_scored(run.data, scoring):
        yield (
            "This run writes examples otherwise than [scoring] has them, so its visits give no loss and no"
            " counts of tokens; agree on data.template, data.max_tokens and no system prompt."
        )
    if site.trainer.order_seed is not None:
        yield (
            "trainer.order_seed is set, so whoever asks may know which examples a visit takes; leave it out"
            " but for tests."
        )
    for name in (*policy.algorithms, *policy.transforms, *policy.optimisers, *policy.objectives):
        if "." in name:
            yield f"{name} is code from outside this package, and runs here if a run asks for it."
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield f"Others on this machine may write {path}; `chmod go-w {path}` keeps the policy yours."
    if data is not None and "heldout" in policy.metrics:
        yield from _about_scores(data, policy.min_examples)


def _about_visits(
    site: SiteSettings, asks: RunSettings | None, run: RunSettings, name: str, examples: int
) -> Iterator[str]:
    policy, batch = site.policy, run.tuning.batch_size
    whole = broken_by(policy, run, site=name, examples=examples, scoring=site.scoring)
    if broken := [each for each in whole if each.rule not in RENDERED]:  # those have a note of their own
        yield f"A usual run (one epoch a visit, in steps of {batch} examples) is refused: {broken[0]}"
        return
    taken = length(run, examples, policy.min_batch).taken
    over = _passed_over(run, examples, policy) if asks and taken < 2 * policy.min_examples else 0.0
    if over > FEW:
        yield (
            f"Of {examples} examples, {100 * over:.0f} % of each epoch are passed over by visits of {taken}:"
            f" one that would take fewer than {policy.min_examples} different ones at an epoch's end begins"
            " with the next; longer visits pass over fewer."
        )


def _passed_over(run: RunSettings, examples: int, policy: PolicyTable) -> float:
    """The share of an epoch that visits of this length do not reach, in an order that is drawn here."""
    position, taken, tuning = 0, 0, run.tuning
    for _ in range(WALKED):
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


def _about_scores(data: FoundData, least: int) -> Iterator[str]:
    whole, names = sum(data.heldout.values()), len(data.scored)
    if not data.scored:
        yield (
            f"No score is given: {whole} examples are held out, no category has {least} of them"
            f" (policy min_examples = {least}), and all small ones together have not either; raise"
            " scoring.share or scoring.examples."
        )
    elif names > MANY:
        yield (
            f"The {names} names of categories leave with a score; is data.category free text? Take"
            ' "heldout" out of policy.metrics to give no score.'
        )
