"""Drill a run file: train it for each attack and each rule, with some clients bad, and score the results.

FOLDER/                 its output, with -drill
  asked.toml            the run file, and
  plan.json             how this machine runs it
  drill.json            what was asked and found
  drill.html            the same as a page
  ATTACK/RULE/          one training: its last checkpoint, and result.json once it is finished
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote

import numpy as np

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.data import dataset, pipeline
from shepherd.data.dataset import Partition, TokenisedData
from shepherd.drill.attacks import Attack, attacks
from shepherd.drill.findings import HONEST, said, sections, sentences
from shepherd.drill.malicious import chosen
from shepherd.drill.one_training import Bench, trained
from shepherd.drill.rules import Rule, rule, usual
from shepherd.drill.scores import UNKNOWN, USUAL_PHRASE, Phrase, scores
from shepherd.errors import FolderError, SettingsError
from shepherd.io import paths, private
from shepherd.io.atomic import write_atomic
from shepherd.io.progress import many, stage
from shepherd.machine import estimate, planning
from shepherd.machine import plan as plans
from shepherd.machine.plan import PLAN, Plan
from shepherd.model.base import Base
from shepherd.overrides import dump, read_kept, require_one_stage
from shepherd.run.changes import NO_DIFFERENCE, differing
from shepherd.run.loading import load_base
from shepherd.run.requirements import require_cohort
from shepherd.run.run import executor
from shepherd.settings import RunSettings
from shepherd.training.local import local_training, require_single, require_steps_of
from shepherd.visible import shown_json

JSON, HTML, ASKED, RESULT = "drill.json", "drill.html", "asked.toml", "result.json"
log = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillSpec:
    """What a drill tries."""

    share: float = 0.3
    """Share of the clients that are bad, in [0, 1]."""
    attacks: tuple[str, ...] = ()
    """Names of attacks; the default is every one. The row without one is always there."""
    rules: tuple[str, ...] = ()
    """Rules, "NAME key=value ..." each; by default the run file's and every robust one that fits."""
    phrase: Phrase = USUAL_PHRASE
    """The backdoor."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Drill:
    """Result of a drill; `row` is drill.json."""

    folder: Path
    row: Row


def drill(
    settings: RunSettings, place: str | Path, spec: DrillSpec | None = None, consent: Consent = NOTHING
) -> Drill:
    """Train a run file under each attack with each rule; results that are in the folder are kept.

    Args:
        place: folder of the drill: new, empty, or that of a drill of the same run file.
        consent: what a person has agreed to; the run file alone cannot allow it.

    Raises:
        SettingsError: there is no such attack or rule, the share is of no client, a rule does not suit the
            run or the size of its cohort, or nothing of the run can be scored.
        FolderError: the folder holds something else, or the drill of another run file.
        DataError: the data cannot be used.
    """
    spec, where, began = spec or DrillSpec(), Path(place), perf_counter()
    require_one_stage(settings, "drill")
    tried = _attacks(spec)
    _require_sound(settings, consent)
    _require_kept(where, settings)
    division = pipeline.divide(settings, consent.plugins)
    dataset.require_heldout(len(division.held.heldout), settings.data.source)
    clients = sorted(division.clients)
    bad = _bad(clients, spec.share, settings.seed)
    cohort = plugins.selection(settings, consent.plugins).size(len(clients))
    rules = [rule(text) for text in spec.rules] or usual(settings, spec.share, cohort, consent.plugins)
    _require_rules(rules, settings, len(clients), consent)
    private.make(where)
    write_atomic(where / ASKED, dump(settings))
    base = load_base(settings, consent)
    dated = pipeline.dated(settings, base.tokenizer)
    plan = _plan(where, dated, base, division, cohort)
    with closing(executor(settings, plan, base, consent)) as worker:
        bench = Bench(
            base=base,
            plan=plan,
            settings=dated,
            executor=worker,
            division=division,
            bad=bad,
            consent=consent,
        )
        rows = _rows(where, bench, spec, tried, rules)
    row = {
        "format": 1,
        "title": where.resolve().name,
        "base": paths.short(settings.model.base),
        "rounds": settings.federation.rounds,
        "clients": len(clients),
        "cohort": cohort,
        "share": spec.share,
        "bad": sorted(bad),
        "attacks": {name: attack.words for name, attack in tried.items()},
        "rules": [each.text for each in rules],
        "phrase": asdict(spec.phrase),
        "rows": rows,
        "seconds": perf_counter() - began,
    }
    return Drill(folder=where, row={**row, "sections": sections(row), "says": sentences(row)})


def _bad(clients: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The bad clients; raises SettingsError if the share is of none."""
    bad = chosen(clients, share, seed)
    if not bad:
        raise SettingsError(
            f"a share of {share:g} of {many(len(clients), 'client')} is no bad client, so there would be no"
            f" attack; give --share {math.ceil(50 / len(clients)) / 100:g} or more"
        )
    return bad


def _rows(
    where: Path, bench: Bench, spec: DrillSpec, tried: Mapping[str, Attack], rules: Sequence[Rule]
) -> list[Row]:
    """The result of each attack with each rule, in this order."""
    rows = list[Row]()
    for name, attack in tried.items():
        prepared = _attacked(bench, attack)
        for each in rules:
            file = where / name / quote(each.text, safe=" =.+") / RESULT
            found = _result(file, bench, spec, attack, each, prepared)
            rows.append({"attack": name, "rule": each.text, **found})
            log.info("%d of %d: %s", len(rows), len(tried) * len(rules), said(rows[-1]))
    return rows


def write(found: Drill) -> Path:
    """Write drill.json.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    return write_atomic(found.folder / JSON, dumped(found))


def dumped(found: Drill) -> str:
    """The drill as JSON text, with unrounded numbers."""
    return shown_json(json.dumps(found.row, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def _attacks(spec: DrillSpec) -> dict[str, Attack]:
    """The attacks to try, after the row without one."""
    every = attacks(spec.phrase.trigger, spec.phrase.target)
    for name in spec.attacks:
        if name not in every:
            raise SettingsError(f"no attack called {name!r}; there are {', '.join(every)}")
    return {name: each for name, each in every.items() if name in (HONEST, *(spec.attacks or every))}


def _require_sound(settings: RunSettings, consent: Consent) -> None:
    """Raise SettingsError if single updates of a run may not be seen, or no model of it can be scored."""
    if settings.privacy.examples is not None or plugins.method(settings, consent.plugins).is_private:
        raise SettingsError(
            "the noise of this run hides single updates, which robust rules must see; drill a run file"
            " without it"
        )
    if settings.stragglers is not None:
        raise SettingsError(
            "a drill waits for every client, and [stragglers] does not; drill a run file without it"
        )
    if not plugins.algorithm(settings.algorithm, consent.plugins).server_is_model:
        raise SettingsError(
            f"algorithm.name = {settings.algorithm.name!r} leaves a part of each model with its client, so"
            " there is no one model to score"
        )


def _require_rules(rules: Sequence[Rule], settings: RunSettings, clients: int, consent: Consent) -> None:
    """Raise SettingsError unless each rule suits the run and the size of its cohort."""
    if len({each.text for each in rules}) < len(rules):
        raise SettingsError("a rule is named twice; name each once")
    for each in rules:
        changed = each.over(settings)
        method = plugins.method(changed, consent.plugins)
        training = local_training(changed.tuning, consent.plugins)
        require_single(training.objective, "a drill")
        require_steps_of(method.algorithm, training.optimiser, changed)
        selection = plugins.selection(changed, consent.plugins)
        require_cohort(changed, method.aggregation, selection, clients)
        if method.aggregation.needs_root and not settings.data.root:
            raise SettingsError(
                f"rule {each.text!r} needs examples of the server's own; name a file in data.root"
            )


def _require_kept(where: Path, settings: RunSettings) -> None:
    """Raise FolderError unless the folder is free, or holds a drill of this run file."""
    if not where.exists():
        return
    if not where.is_dir() or (any(where.iterdir()) and not (where / ASKED).is_file()):
        raise FolderError(f"{where} is not empty and holds no drill; name another folder with --output")
    if not (where / ASKED).is_file():
        return
    before = read_kept(where / ASKED).model_dump(mode="json", exclude=set(NO_DIFFERENCE))
    now = settings.model_dump(mode="json", exclude=set(NO_DIFFERENCE))
    if changed := next(differing(before, now), None):
        raise FolderError(
            f"{where} holds the drill of a run with another {changed[0]}; name another folder with --output"
        )


def _plan(where: Path, settings: RunSettings, base: Base, division: Partition, cohort: int) -> Plan:
    """The plan that the folder keeps, or a new one, so that every row is made the same way."""
    kept = plans.read(where)
    if kept is not None:
        return kept
    prepared = pipeline.tokenised(division, settings, base.tokenizer)
    sizes = [len(own) for own in prepared.clients.values()]
    work = estimate.amounts(settings, sizes, cohort=cohort, length=dataset.mean_length(prepared))
    plan = planning.choose(settings, base, work)
    write_atomic(where / PLAN, plan.text())
    return plan


def _attacked(bench: Bench, attack: Attack) -> TokenisedData:
    """The data of a drill's run, with the examples of bad clients as the attack makes them."""
    division, settings = bench.division, bench.settings
    examples = list(division.reading.examples)
    for number, name in enumerate(sorted(bench.bad)):
        places = division.clients[name]
        rng = np.random.default_rng([settings.seed, number])
        for place, example in zip(places, attack.on_examples(division.of(places), rng), strict=True):
            examples[place] = example
    reading = replace(division.reading, examples=tuple(examples))
    prepared = pipeline.tokenised(replace(division, reading=reading), settings, bench.base.tokenizer)
    root = pipeline.root_examples(settings, bench.base.tokenizer) if settings.data.root else None
    return replace(prepared, root=root)


def _result(
    file: Path, bench: Bench, spec: DrillSpec, attack: Attack, each: Rule, prepared: TokenisedData
) -> Row:
    """The result of one training, from its file if it is there."""
    asked = {"share": spec.share, **asdict(spec.phrase)}
    if file.is_file():
        kept: Row = json.loads(file.read_text(encoding="utf8"))
        if kept.pop("asked") != asked:
            raise FolderError(
                f"{file} is of another share of bad clients or another phrase; give the same ones, or name"
                " another folder with --output"
            )
        return kept
    with stage(f"{each.text}: {attack.words}"):
        adapter, tally, stopped = trained(file.parent, bench, attack, each, prepared)
        phrase = spec.phrase if attack.looks_for_phrase else None
        found = UNKNOWN
        if stopped is None:
            found = scores(bench.base, bench.settings, bench.plan, prepared, adapter, phrase)
            if found == UNKNOWN:
                stopped = "the model gives no finite loss"
    row = {
        **found,
        "failures": tally.failures,
        "kept_good": _share(tally.kept["good"], tally.usable["good"]),
        "kept_bad": _share(tally.kept["bad"], tally.usable["bad"]),
        "rounds": tally.rounds,
        "stopped": stopped,
    }
    private.make(file.parent)
    write_atomic(file, json.dumps({**row, "asked": asked}, indent=1, allow_nan=False) + "\n")
    return row


def _share(count: int, of: int) -> float | None:
    return count / of if of else None
