"""Audit a run: of a run folder as it is, or of a run file by training it with canaries.

RUN_FOLDER/audit/             an audit of a run folder
  audit.json                  what was found
  audit.html                  the same as a page
FOLDER/                       an audit of a run file
  canaries.json               the canaries, and what the coins decided
  asked.toml                  the run file that is audited
  run/                        the run that was trained with them
  audit.json, audit.html
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shepherd import plugins
from shepherd.audit import canaries, estimate, membership, one_update
from shepherd.audit.canaries import Planting
from shepherd.audit.membership import Candidates
from shepherd.audit.sections import RELEASED, Attacked, Claim, Section, says, sections
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Method, Parts, chain, padded, seed_for, shapes_of
from shepherd.data import data_folder, pipeline, remarks
from shepherd.data.dataset import TokenisedData
from shepherd.errors import FolderError, SettingsError
from shepherd.io import paths, private
from shepherd.io.atomic import write_atomic
from shepherd.io.progress import stage
from shepherd.machine import plan as plans
from shepherd.model.base import Base
from shepherd.overrides import dump, read_kept, require_one_stage
from shepherd.run import checkpoint, claims, folder, ledger, starting
from shepherd.run.answerer import adapter_of
from shepherd.run.changes import NO_DIFFERENCE, differing
from shepherd.run.evaluation import PASS_TOKENS
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.run import Run
from shepherd.run.score_file import WEIGHTS, digest_of
from shepherd.settings import RunSettings
from shepherd.training.local import GivenTraining, local_training, require_single
from shepherd.visible import shown_json

JSON, HTML, RUN, AUDIT, ASKED = "audit.json", "audit.html", "run", "audit", "asked.toml"
EXAMPLES = 1000
"""Largest number of members, and of others, by default."""
CANARIES, COPIES = 200, (1, 1, 4, 16)
DELTA = 1e-5
"""Delta of the bounds of epsilon, where the run does not claim one."""
COINS_BITS = 256
OF_TRAINING = ("optimiser", "objective")
WITH_CANARIES = "the run of this audit was trained on canaries as well, so its adapter is for the audit alone"
UNPROTECTED = (
    "no noise of the run covers the figures of an audit, which are made from its clients' own examples; keep"
    " them with the data"
)
Train = Callable[[Callable[[], Run]], None]  # open a run and go through its rounds, showing them


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Which canaries to plant."""

    count: int = CANARIES
    copies: tuple[int, ...] = COPIES
    """How often canaries are planted, in turn."""
    clients: tuple[str, ...] = ()
    """Clients whose data get canaries; all by default."""
    as_clients: bool = False
    """Whether each canary is a client of its own, also where no noise protects clients."""


USUAL = Planted()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Audit:
    """Result of an audit."""

    folder: Path
    """Where the files of the audit belong."""
    title: str
    settings: RunSettings
    rounds: int
    found: Attacked
    adapter: str = ""
    """Digest of the released adapter that was attacked, of an audit of a run folder; see `score_file`."""
    data: str = ""
    """Digest of the data before canaries were planted in them, of an audit of a run file."""

    def __repr__(self) -> str:
        """The run, and no text of any example."""
        return f"<Audit: {self.title}, {len(sections(self.found))} sections>"

    def row(self) -> dict[str, Any]:
        """As audit.json has it."""
        found, claim = self.found, self.found.claim
        return {
            "format": 1,
            "title": self.title,
            "base": paths.short(self.settings.model.base),
            "algorithm": self.settings.algorithm.name,
            "rounds": self.rounds,
            "adapter": self.adapter,
            "data": self.data,
            "claim": asdict(claim) if claim else None,
            "contradicted": found.contradicted,
            "membership": {name: each.row() for name, each in found.membership.items()},
            "canaries": {name: each.row() for name, each in found.remembered.items()},
            "sections": [each.row() for each in sections(found)],
            "says": says(found),
            "remarks": list(found.remarks),
        }


def audit_folder(
    path: str | Path,
    *,
    examples: int = EXAMPLES,
    consent: Consent = NOTHING,
    extra: Sequence[Section] = (),
) -> Audit:
    """Attack the adapters that are in a run folder; nothing is trained, and nothing of the run is changed.

    Args:
        examples: largest number of members, and of held-out examples, that are compared.
        consent: whether code that comes with the base may run.
        extra: sections of other attacks on the same run.

    Raises:
        FolderError: there is no run, it has no adapter yet, or it is over silos.
        DataError: too few examples are held out.
        SettingsError: scipy is missing.
    """
    estimate.require()
    where = Path(path)
    settings = folder.planned(where)
    if folder.is_over_silos(where):
        raise FolderError(
            f"the run in {where} is over silos, whose examples stay at its sites; audit a run in one process"
        )
    prepared = data_folder.load(where / "data")
    rows = read_rows(where)
    candidates = membership.candidates(
        prepared, examples, coverage_of(rows), seed_for(settings.data_seed, "audit")
    )
    with stage("auditing"):
        base = load_base(settings, consent)
        adapters = adapters_of(where, base)
        found = membership.measure(base, adapters, candidates, micro_batch=_pass_tokens(where))
    return Audit(
        folder=where / AUDIT,
        title=where.resolve().name,
        settings=settings,
        rounds=_last_round(rows),
        found=Attacked(
            membership=found,
            remembered={},
            claim=claim_of([*rows, claims.spent(where, rows)]),  # a ledger counts rounds that are lost, too
            extra=tuple(extra),
            remarks=tuple(_remarks(prepared, rows)),
        ),
        adapter=digest_of(where / "adapter") if (where / "adapter" / WEIGHTS).is_file() else "",
    )


def audit_run_file(
    settings: RunSettings,
    place: str | Path,
    *,
    train: Train,
    planted: Planted = USUAL,
    examples: int = EXAMPLES,
    consent: Consent = NOTHING,
    extra: Sequence[Section] = (),
    **parts: Any,
) -> Audit:
    """Plant canaries in the data of a run file, train it in a folder of its own, and attack the result.

    A stopped audit continues where it was: the canaries and the rounds that are there are kept.

    Args:
        place: folder of the audit, new, empty, or that of an audit of the same run file.
        train: goes through the rounds of the run that it opens.
        consent: what a person has agreed to; the run file alone cannot allow it.
        extra: sections of other attacks on the same run.
        parts: parts of the method that are given as values; see `run.opening.open_run`.

    Raises:
        FolderError: the folder holds something else, or the audit of another run file.
        DataError: the data cannot be used, or `data.max_tokens` has no room for a canary.
        SettingsError: too few canaries, or scipy is missing.
    """
    estimate.require()
    require_one_stage(settings, "audit")
    given = GivenTraining(**{name: parts[name] for name in OF_TRAINING if name in parts})
    training = local_training(settings.tuning, consent.plugins, given)
    require_single(training.objective, "an audit")
    where = Path(place)
    settings = _own(settings, where / RUN)
    kept = _kept(where, settings, planted)
    private.make(where)
    write_atomic(where / ASKED, dump(settings))
    base = load_base(settings, consent)
    dated = pipeline.dated(settings, base.tokenizer)
    prepared = pipeline.prepare(dated, base.tokenizer, consent.plugins)
    candidates = _candidates(prepared, examples, settings)
    method = _method(settings, consent, parts)
    planting = kept or _planted(base, dated, prepared, planted, method)
    tokens = canaries.tokens_of(planting, dated, base)
    if kept is None:
        canaries.save(where, planting)
    if planting.as_clients:
        push = canaries.PUSH if method.transform.mechanism else 1.0
        parts["transform"] = chain(canaries.pushing(planting, push), method.transform)
    del base  # the run loads its own
    if not folder.is_run(where / RUN):
        train(lambda: open_run(dated, canaries.plant(prepared, planting, tokens), consent, **parts))
    elif not folder.is_finished(where / RUN):
        train(lambda: resume(where / RUN, consent, **parts))
    rows = read_rows(where / RUN)
    claim = claim_of(rows)
    with stage("auditing"):
        base = load_base(settings, consent)
        adapters, size = adapters_of(where / RUN, base), _pass_tokens(where / RUN)
        found = membership.measure(base, adapters, candidates, micro_batch=size) if candidates else {}
        delta = claim.delta if claim and claim.delta else DELTA
        first = first_adapter(where / RUN, settings, base, method, adapters[RELEASED])
        update = one_update.section(
            base,
            settings,
            prepared,
            {"first round": first, RELEASED: adapters[RELEASED]},
            training=training,
            micro_batch=size,
        )
        memory = canaries.memory(base, adapters, planting, tokens, first=first, delta=delta, micro_batch=size)
    return Audit(
        folder=where,
        title=where.resolve().name,
        settings=settings,
        rounds=_last_round(rows),
        found=Attacked(
            membership=found,
            remembered=memory,
            claim=claim,
            extra=(*([update] if update else []), *extra),
            remarks=(*_remarks(prepared, rows), WITH_CANARIES),
        ),
        data=data_folder.digest(prepared),
    )


def write(found: Audit) -> Path:
    """Write audit.json.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    private.make(found.folder)
    return write_atomic(found.folder / JSON, dumped(found))


def dumped(found: Audit) -> str:
    """The audit as JSON text, with unrounded numbers."""
    return shown_json(json.dumps(found.row(), indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def adapters_of(path: Path, base: Base) -> dict[str, Adapter]:
    """The adapters in a run folder: of the rounds that are kept, and the released one last.

    Raises:
        FolderError: no round is finished yet, or the run has no one adapter.
    """
    last = adapter_of(path, base)
    rounds = {n: adapter_of(path, base, n) for n in checkpoint.kept(path / "checkpoints")}
    others = {f"round {n}": each for n, each in rounds.items() if not _equal(each, last)}
    return {**others, RELEASED: last}


def _equal(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def first_adapter(path: Path, settings: RunSettings, base: Base, method: Method, like: Adapter) -> Adapter:
    """The adapter before the first round; zeros of the shapes of a later one if its ranks are others."""
    begun = starting.kept(path, settings.adapter, base, settings.seed)
    first = padded(begun, method.aggregation.side_rank)
    if shapes_of(first) == shapes_of(like):
        return first
    return Adapter({name: np.zeros_like(tensor) for name, tensor in like.items()})


def claim_of(rows: Sequence[Mapping[str, Any]]) -> Claim | None:
    """What the log of a run says it has spent after its last round; None if it says nothing.

    Where clients are protected as well as examples, it is the claim about clients: canaries are clients then.
    """
    for row in reversed(rows):
        for key, unit in (*ledger.UNITS.items(), ("", "")):  # the last is the row itself
            spent = row.get(key) if key else row
            if not isinstance(spent, Mapping) or "epsilon" not in spent:
                continue
            epsilon, delta = spent["epsilon"], spent.get("delta")
            if not isinstance(epsilon, int | float):  # no finite one
                return None
            known = delta if isinstance(delta, float) else None
            return Claim(epsilon=float(epsilon), delta=known, unit=unit)
    return None


def coverage_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of each client's examples that was trained on, as far as the log says."""
    known = [row["coverage"] for row in rows if isinstance(row.get("coverage"), Mapping)]
    return {name: float(share) for name, share in known[-1].items()} if known else {}


def _own(settings: RunSettings, output: Path) -> RunSettings:
    """The settings of an audit's own run: they train the same, and tell nobody."""
    evaluation = settings.evaluation.model_copy(update={"answers": 0, "contribution": False})
    return settings.model_copy(
        update={
            "output": str(output),
            "evaluation": evaluation,
            "tracking": settings.tracking.model_copy(update={"trackers": ()}),
        }
    )


def _kept(where: Path, settings: RunSettings, planted: Planted) -> Planting | None:
    """The canaries of an audit that was stopped, if it is of the same run file."""
    kept = canaries.load(where)
    if kept is None:
        if where.exists() and (not where.is_dir() or {each.name for each in where.iterdir()} - {ASKED}):
            raise FolderError(f"{where} is not empty and holds no audit; name another folder with --output")
        return None
    before = read_kept(where / ASKED).model_dump(mode="json", exclude=set(NO_DIFFERENCE))
    now = settings.model_dump(mode="json", exclude=set(NO_DIFFERENCE))
    if changed := next(differing(before, now), None):
        raise FolderError(
            f"{where} holds the audit of a run with another {changed[0]}; name another folder with --output"
        )
    if len(kept.canaries) != planted.count:
        raise FolderError(
            f"{where} holds an audit with {len(kept.canaries)} canaries, not {planted.count}; give the same"
            " number to continue it, or name another folder with --output"
        )
    if not _as_asked(kept, planted):
        raise FolderError(
            f"{where} holds an audit with other canaries; give the same --copies and --client to continue it,"
            " or name another folder with --output"
        )
    return kept


def _as_asked(kept: Planting, planted: Planted) -> bool:
    texts = [each for each in kept.canaries if each.kind != canaries.DIRECTION]
    copies = [planted.copies[at % len(planted.copies)] for at in range(len(texts))]
    return (
        sorted(each.copies for each in texts) == sorted(copies)
        and (not planted.clients or {each.client for each in texts} <= set(planted.clients))
        and (kept.as_clients or not planted.as_clients)
    )


def _method(settings: RunSettings, consent: Consent, parts: Mapping[str, Any]) -> Method:
    given = {name: part for name, part in parts.items() if name not in OF_TRAINING}
    method = plugins.method(settings, consent.plugins, Parts(**given))
    if not method.algorithm.server_is_model:
        raise SettingsError(
            f"algorithm.name = {settings.algorithm.name!r} releases no model of all clients to audit"
        )
    return method


def _planted(
    base: Base, settings: RunSettings, prepared: TokenisedData, planted: Planted, method: Method
) -> Planting:
    """New canaries: clients of their own where the noise of the run protects clients."""
    with stage("making canaries"):
        return canaries.plan(
            base,
            settings,
            prepared,
            count=planted.count,
            copies=planted.copies,
            clients=planted.clients,
            as_clients=planted.as_clients or method.transform.mechanism is not None,
            # the coins must be nobody's to guess
            rng=np.random.default_rng(secrets.randbits(COINS_BITS)),
        )


def _candidates(prepared: TokenisedData, examples: int, settings: RunSettings) -> Candidates | None:
    """Members and others; None if the run holds nothing out, since the canaries are attacked anyway."""
    if not len(prepared.heldout):
        return None
    return membership.candidates(prepared, examples, {}, seed_for(settings.data_seed, "audit"))


def _pass_tokens(path: Path) -> int:
    plan = plans.read(path)
    return plan.micro_batch_tokens if plan else PASS_TOKENS


def _last_round(rows: Sequence[Mapping[str, Any]]) -> int:
    return max((int(row["round"]) for row in rows), default=0)


def _remarks(prepared: TokenisedData, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the figures rest on."""
    said = remarks.heldout_remarks(prepared)
    if claim_of(rows) is not None:
        said.append(UNPROTECTED)
    covered = list(coverage_of(rows).values())
    if covered and min(covered) < 1:
        mean = sum(covered) / len(covered)
        said.append(
            f"the rounds trained on {mean:.0%} of a client's examples on average; what was not trained on yet"
            " cannot be remembered, so longer training may leak more"
        )
    return said
