"""A run over silos at the coordinator: the same run file and run folder, with the rounds at the server.

The coordinator needs the base, to create the first adapter and to write the last one in PEFT's layout, and no
data but the examples whose answers it scores. It restarts jobs that die; without it, the server continues the
job that it has.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Context, ServerState
from shepherd.data import pipeline
from shepherd.data.examples import Example
from shepherd.data.template import Template, stop_ids
from shepherd.errors import (
    CheckpointError,
    DataError,
    FederationError,
    OutOfReach,
    SettingsError,
    ShepherdError,
    SilosError,
)
from shepherd.io import private, progress
from shepherd.io.atomic import disk_errors
from shepherd.io.progress import Progress
from shepherd.machine import plan as plans
from shepherd.machine import planning
from shepherd.machine.plan import PLAN, Plan
from shepherd.model import base as bases
from shepherd.model import files
from shepherd.model.coverage import coverage
from shepherd.model.digest import digest, folder_of
from shepherd.privacy import client_level, required
from shepherd.privacy.client_level import ClientPrivacy
from shepherd.rounds import context_of, rehearse, start, weights
from shepherd.rounds.ranks import require_for_sites
from shepherd.rounds.ring import require_sums
from shepherd.run import (
    card,
    changes,
    checkpoint,
    claims,
    folder,
    hidden,
    ledger,
    lineage,
    release,
    starting,
    tracking,
)
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.folder import HeldRun, RunFolder
from shepherd.run.loading import load_base, load_checkpoint, placed
from shepherd.run.log import agreeing, read_rows
from shepherd.run.requirements import require_cohort
from shepherd.run.run import answer_heldout
from shepherd.settings import RunSettings
from shepherd.silos.coordinator import state_file
from shepherd.silos.coordinator.job_follower import JobFollower, StatusUpdate
from shepherd.silos.flare import kits
from shepherd.silos.flare.session import JobGone, session
from shepherd.silos.protocol import jobspec, wire
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.training import stack
from shepherd.training.local import completed, local_training, require

log = logging.getLogger(__name__)
Row = dict[str, Any]
Echo = Callable[[str], None]
COPY_PAUSE_RATIO = 2.0
"""Pause after copying a checkpoint from the server, as a multiple of the copy's duration. Each finished round
is copied into the run folder, since a site keeps only its last two answers: a server that lost its disk could
not continue from an older copy. The pause keeps a large adapter from filling the server's time."""
MAX_FILE_RATIO, MAX_FILE_EXTRA_BYTES = 1.05, 8 * 2**20
"""Upper bound on a checkpoint's file: a multiple of its tensors' size, plus names, a log row and notes."""


@dataclass(slots=True, kw_only=True, repr=False)
class SilosRun(HeldRun):
    """A run over silos that this process follows; made by `open_run` or `resume`."""

    settings: RunSettings
    """The run file as the person wrote it."""
    plan: Plan
    """Values chosen for the keys that it leaves open."""
    holder: RunFolder
    base: bases.Base
    follower: JobFollower
    trackers: tracking.Trackers
    echo: Echo
    consent: Consent = NOTHING
    closed: bool = False
    _next_copy: float = 0.0
    """Monotonic time from which the next checkpoint may be copied."""
    _next_line: float = field(default_factory=lambda: time.monotonic() + progress.EVERY_S)
    """Monotonic time at which the next progress line is due."""
    _loaded: tuple[Path, ServerState] | None = None
    _said: Mapping[str, Any] = field(default_factory=dict)
    """The largest epsilon of single examples that a row has said, with its delta."""
    before_more: str | None = None
    """What silos.json said before more rounds were asked for, until the first of them is here; else None.
    Server and sites may refuse them until then, and the folder stays that of the shorter run."""

    def __repr__(self) -> str:
        """The folder, the algorithm and the number of rounds."""
        return f"<SilosRun {self.folder}: {self.settings.algorithm.name}, {self.until} rounds>"

    def rounds(self) -> Iterator[tuple[ServerState, Row]]:
        """Follow the run to its last round; yield each round's state and log row, once it is logged here.

        The state is the last one copied from the server, which may be an earlier round's.

        Raises:
            FederationError: a round failed; the rounds before it are kept here and at the server. Or a person
                has stopped the run.
            SilosError: the server refuses the kit or the job.
        """
        if _is_complete(self.holder, self.until):
            if self.follower.outdated:
                self._end_more()
            return
        self._said = claims.largest(self.folder, read_rows(self.folder))
        try:
            yield from self._followed()
        except ShepherdError:
            # a job that could not be ended stays on record, so that a person can follow or stop it
            if self.before_more is not None and self.follower.withdraw():
                self.holder.write(folder.SILOS, self.before_more)
            raise

    def _followed(self) -> Iterator[tuple[ServerState, Row]]:
        outcome: Row | None = None
        with closing(self.follower.news()) as updates:
            for news in updates:
                self._record_job(news)
                self._rewind_log(news)
                for row in news.rows:
                    taken = self._log_row(row)
                    if taken["round"]:
                        yield self._state(), taken
                self._show(news)
                self._copy_checkpoint(news)
                outcome = news.outcome
        if outcome and "error" in outcome:
            raise FederationError(outcome["error"])

    def _end_more(self) -> None:
        """End the job of more rounds that were asked for once, and are given up before the first is here."""
        if not self.follower.withdraw():
            self.echo(
                "the server cannot be reached, and may be making the rounds that were asked for before; end"
                f" them later with `shepherd silos stop {self.folder}`"
            )
            return
        self.follower.job, self.follower.outdated = None, False
        self._write_state(None)

    def _write_state(self, job: str | None) -> None:
        """Write silos.json with the order as it is now."""
        self.holder.write(folder.SILOS, state_file.text(self.follower.kit, self.follower.order, job))

    def finish(self, answer: bool = True) -> Row:
        """Write the final adapter with its model card, and score answers if the run file asks for it.

        Returns:
            `adapter`, its folder, or None where each site keeps a part of its model; `answers`, category ->
            (share correct before, share correct after); and `remarks`, the verdict of the release gate.

        Raises:
            FolderError: a ledger of the run is missing.
        """
        self.holder.require_held()
        rows = read_rows(self.folder)
        hidden.require_ledgers(self.folder, self.settings, rows)
        adapter = self._state().adapter
        if not plugins.algorithm(self.settings.algorithm, self.consent.plugins).server_is_model:
            self._record_end({})
            return {"adapter": None, "answers": {}}
        files.write(self.holder.adapter, adapter, self.base)
        stop = stop_ids(Template.of(self.planned.data), self.base.tokenizer)
        files.write_tokenizer(self.holder.adapter, self.base, stop)
        scores: Mapping[str, tuple[float, float]] = {}
        if answer and self.settings.evaluation.answers:
            began = starting.before(self.folder, self.settings, self.base)
            scores = answer_heldout(self.holder, self.planned, self.base, (began, adapter), self._heldout())
        spent = claims.spent(self.folder, rows)
        card.write(
            self.holder.adapter,
            self.planned,
            rows=rows,
            answers=scores,
            data={},
            clients=self._taken(rows),
            privacy=spent.get(ledger.CLIENTS, {}),
            of_examples=spent.get(ledger.EXAMPLES, {}),
            revision=files.named(self.base)[1],
            start=lineage.source(self.folder),
            before=lineage.before(self.folder),
        )
        self._record_end(scores)
        verdict = release.settled(self.folder).sentence()
        caveats = lineage.caveats(lineage.source(self.folder), lineage.before(self.folder)) if spent else []
        return {
            "adapter": self.holder.adapter,
            "answers": scores,
            "remarks": [*([verdict] if verdict else []), *caveats],
        }

    def _taken(self, rows: Sequence[Row]) -> dict[str, int]:
        """Site -> examples that it has trained on; 0 of each where noise hides them."""
        if rows and any(level in rows[-1] for level in ledger.LEVELS):
            return dict.fromkeys(self.follower.order.sites, 0)
        return {site: int(count) for site, count in rows[-1].get("taken", {}).items()} if rows else {}

    def _record_end(self, scores: Mapping[str, tuple[float, float]]) -> None:
        rows = read_rows(self.folder)
        done = rows[-1]["round"] if rows else 0
        self.holder.write(folder.FINISHED, json.dumps({"round": done, "answers": scores}) + "\n")
        self.close()

    def close(self) -> None:
        """Release the run folder. The run at the server continues."""
        if not self.closed:
            self.closed = True
            self.trackers.finish()
            self.holder.close()

    def _heldout(self) -> Sequence[Example]:
        try:
            division = pipeline.divide(self.settings, self.consent.plugins)
        except DataError as error:  # the coordinator may have no data
            self.echo(f"answers are not scored, since the coordinator has no data to score them on ({error})")
            return []
        return division.of(division.held.heldout.tolist())

    def _rewind_log(self, news: StatusUpdate) -> None:
        """Cut the log here to the server's last round, if the server has lost later ones."""
        if 0 < news.count < self.follower.rows:
            self._count_lost(news.round)
            self.echo(f"the server continues after round {news.round}: it has lost the rounds after it")
            self.follower.rows = _row_count(self.holder.reconcile(news.round))

    def _count_lost(self, finished: int) -> None:
        """Count the rounds after `finished` once more, which the server makes again."""
        rows, again = read_rows(self.folder), dict(self.follower.order.again)
        for level, name in ledger.LEVELS.items():
            kept = ledger.read(self.folder, name)
            at = ledger.standing(kept, rows, level, finished, again=again.get(level, 0))
            if level == ledger.EXAMPLES and self.settings.privacy.examples is not None:
                spent = ledger.reported(kept, rows, at)
                again[level] = spent["again"]
                ledger.write_reported(
                    self.folder, self.settings, spent, finished=finished, last_lost=at.last_lost
                )
            if level == ledger.CLIENTS and (privacy := self._privacy()) is not None:
                again[level] = at.again + privacy.redone(finished, at.released)
                ledger.write(
                    self.folder,
                    replace(privacy, again=again[level]),
                    begun=finished + again[level],
                    finished=finished,
                    last_lost=at.last_lost,
                )
        self.follower.order = replace(self.follower.order, again=again)
        self._write_state(self.follower.job)

    def _counted(self, row: Row) -> Row:
        """A row with what is counted besides for rounds that were made again: the more of what both know."""
        known = self.follower.order.again
        found = {level: int(row[level].get("again", 0)) for level in ledger.LEVELS if level in row}
        again = {level: max(count, known.get(level, 0)) for level, count in found.items()}
        if more := {level: count for level, count in again.items() if count > known.get(level, 0)}:
            self.follower.order = replace(self.follower.order, again={**known, **more})
        privacy, count = self._privacy(), again.get(ledger.CLIENTS, 0)
        if privacy is None or count <= found.get(ledger.CLIENTS, 0):
            return row
        return {**row, ledger.CLIENTS: replace(privacy, again=count).row(row["round"])}

    def _never_less(self, row: Row) -> Row:
        """A row with no smaller epsilon of examples than one before it.

        The server may have lost what it knew of a site that has left, and a site that is back may have other
        examples.
        """
        if not (spent := row.get(ledger.EXAMPLES, self._said)):
            return row
        self._said = claims.at_least(spent, self._said)
        return {**row, ledger.EXAMPLES: self._said}

    def _privacy(self) -> ClientPrivacy | None:
        """What the rounds spend of each site's privacy; None if no transform hides sites."""
        settings = ledger.as_counted(self.settings, self.folder, ledger.CLIENTS)
        method = plugins.method(settings, self.consent.plugins)
        selection = plugins.selection(settings, self.consent.plugins)
        noise = plugins.noise_of(settings, self.consent.plugins)
        return client_level.of_run(settings, method, selection, len(self.follower.order.sites), noise)

    def _log_row(self, row: Row) -> Row:
        """Log a new row before it is yielded, so that stopping between two rows loses none."""
        table, federation = self.settings.tuning, self.settings.federation
        if row["round"]:
            rate = stack.round_rate(table, row["round"] - 1, federation.rounds)
            row = {**self._never_less(self._counted(row)), "learning_rate": rate}
        if self.before_more is not None and row["round"] > changes.rounds_before(self.folder):
            changes.keep(self.holder, self.settings)  # more rounds go on, so nobody has refused them
            self.before_more = None
        self._keep_ledger(row)  # first: a log may not say that a round was released of which no ledger knows
        self.holder.append(row)
        self.follower.rows = row["round"] + 1
        self.trackers.log(row)
        return row

    def _keep_ledger(self, row: Row) -> None:
        """Write what the rounds have spent; the server has the rounds that began and released nothing."""
        if ledger.CLIENTS in row and (privacy := self._privacy()) is not None:
            privacy = replace(privacy, again=row[ledger.CLIENTS].get("again", 0))
            finished: int = row["round"]
            ledger.write(self.folder, privacy, begun=finished + privacy.again, finished=finished)
        if ledger.EXAMPLES in row and self.settings.privacy.examples is not None:
            ledger.write_reported(self.folder, self.settings, row[ledger.EXAMPLES], finished=row["round"])

    def _show(self, news: StatusUpdate) -> None:
        for line in news.said:
            self.echo(line)
        if news.progress is not None:
            line_is_due = time.monotonic() >= self._next_line
            level = logging.INFO if line_is_due else logging.DEBUG
            progress.log.log(level, "%s", Progress(clients=self.follower.cohort, **news.progress))
            if line_is_due:
                self._next_line = time.monotonic() + progress.EVERY_S

    def _record_job(self, news: StatusUpdate) -> None:
        if news.restart:
            self._write_state(news.job)

    def _state(self) -> ServerState:
        last = _last_checkpoint(self.holder)
        if self._loaded is None or self._loaded[0] != last:
            self._loaded = (last, load_checkpoint(last, self.base).state)
        return self._loaded[1]

    def _copy_checkpoint(self, news: StatusUpdate) -> None:
        """Copy the checkpoint of the round that the server has finished."""
        finished = bool(news.outcome) and "error" not in (news.outcome or {})
        began = time.monotonic()
        place = self.holder.checkpoints / f"round-{news.round:05d}"
        if news.fetch is None or place.exists() or (began < self._next_copy and not news.outcome):
            return
        try:
            _fetch_checkpoint(place, news.fetch(news.round), self.settings.checkpoints.keep)
        except (JobGone, OutOfReach):
            self.follower.again = finished  # the run does not end without the last checkpoint
        except (FederationError, CheckpointError):  # the server may delete an earlier round's meanwhile
            if finished:
                raise
        finally:
            self._next_copy = time.monotonic() + COPY_PAUSE_RATIO * (time.monotonic() - began)


def open_run(
    settings: RunSettings, kit: str | Path, echo: Echo = log.info, consent: Consent = NOTHING
) -> SilosRun:
    """Prepare a new run over silos: load the base, create the first adapter, the run folder and the job.

    Args:
        consent: risky requests of the run file that a person has agreed to; it applies to this machine only,
            since the owners of the server and of each site decide there.

    Raises:
        SilosError: the kit is unsuitable or the server refuses it; nothing is written then.
        FederationError: no site of the run is connected; nothing is written then.
        FolderError: the folder `output` is not empty.
    """
    folder.require_free(settings.output)
    tracking.require(settings.tracking, consent)
    if settings.evaluation.data:
        raise SettingsError(
            "evaluation.data is for a run in one process, since each site scores its own examples; leave it"
            " out, and score the run afterwards with `shepherd evaluate RUN_FOLDER --data FILE`"
        )
    if settings.data.root:
        raise SettingsError(
            "data.root is for a run in one process, since the server of a federation does not train; leave it"
            " out, and choose another aggregation than one that needs it"
        )
    if settings.evaluation.contribution:
        raise SettingsError(
            "evaluation.contribution is for a run in one process, since sites score a round once; leave it"
            " out"
        )
    _require_submitter(kits.read(kit, "admin"))
    _require_capped(settings)
    require(settings, consent.plugins)  # refuse a wrong name before anything is written
    _require_no_side_ranks(settings, consent)
    settings = completed(settings, consent.plugins)
    sites = _choose_sites(settings, kit, echo)
    aggregation = plugins.aggregation(settings.aggregation, consent.plugins)
    require_for_sites(settings.adapter, aggregation, sites)
    if aggregation.needs_root:
        raise SettingsError(
            f"the aggregation {settings.aggregation.name!r} tunes examples of the server's own, which is for"
            ' a run in one process; over silos, set [aggregation] name = "geometric_median"'
        )
    if settings.adapter.start and local_training(settings.tuning, consent.plugins).paired:
        raise SettingsError(
            f"the objective {settings.tuning.objective.name!r} compares with the adapter that a run begins"
            " from, and sites keep none; leave out adapter.start, or run it in one process"
        )
    selection = plugins.selection(settings, consent.plugins)
    require_cohort(settings, aggregation, selection, len(sites))
    method = plugins.method(settings, consent.plugins)
    require_sums(settings, method, selection, len(sites))
    base = load_base(settings, consent)
    first = starting.first(settings, base, method)
    if first.says:
        echo(first.says)
    if warning := files.rehearse(base):
        echo(warning)
    echo(coverage(base.model, base.targets).sentence)
    plan = planning.for_coordinator(pipeline.dated(settings, base.tokenizer), base)
    filled = plan.over(settings)
    order = JobSpec(
        run=secrets.token_hex(8),
        base=digest(folder_of(placed(filled.model).base, filled.model.revision)),
        fingerprint=base.fingerprint,
        version=wire.version(),
        sites=sites,
        settings=jobspec.settings_of(filled),
    )
    privacy = required.of_clients(settings, method, selection, len(sites), consent.plugins)
    for sentence in privacy.sentences() if privacy is not None else ():
        echo(sentence)
    kept = state_file.text(Path(kit), order, None)
    holder = folder.create(settings.output, settings, plan.text(), kept)
    with holder.closed_on_error():
        starting.keep(holder, first, base)
        _save_start(holder, settings, base, len(sites), consent)
        follower = _make_follower(holder, Path(kit), order, settings, echo, consent)
        return SilosRun(
            settings=settings,
            plan=plan,
            holder=holder,
            base=base,
            follower=follower,
            trackers=tracking.start(filled, holder),
            echo=echo,
            consent=consent,
        )


def resume(
    path: str | Path,
    echo: Echo = log.info,
    kit: str | Path | None = None,
    consent: Consent = NOTHING,
    overrides: Iterable[str] = (),
) -> SilosRun:
    """Follow a run again, and have the server continue it if it has stopped.

    Args:
        overrides: `key=value` texts; "federation.rounds=30" gives the run more rounds, see `run.changes`.
        kit: an administrator's kit to use instead of the recorded one.
        consent: risky requests of the run file that a person has agreed to.

    Raises:
        FolderError: there is no such run, another process holds it, or its run file was edited in a key that
            its rounds depend on.
        SettingsError: an override changes such a key.
        SilosError: the recorded kit does not exist any more.
    """
    holder = folder.reopen(path)
    with holder.closed_on_error():
        kept, order, job = state_file.read_state(holder.path)
        overrides = list(overrides)
        names_rounds = any(text.startswith(f"{changes.ROUNDS}=") for text in overrides)
        if not names_rounds and order.federation.rounds > changes.rounds_before(path):
            overrides.append(f"{changes.ROUNDS}={order.federation.rounds}")  # its job may be at the server
        settings, plan = changes.continued(path, overrides), plans.read(holder.path)
        kept = Path(kit or kept)
        if not _is_complete(holder, settings.federation.rounds):
            state_file.require_kit(kept, path)
        tracking.require(settings.tracking, consent)
        base = load_base(plan.over(settings) if plan else settings, consent)
        if plan is None:
            plan = planning.for_coordinator(settings, base)
            holder.write(PLAN, plan.text())
        if checkpoint.latest(holder.checkpoints) is None:  # killed before it was saved
            _save_start(holder, settings, base, len(order.sites), consent)
        rows = read_rows(holder.path)
        shorter = min(order.federation.rounds, changes.rounds_before(path))
        asked = replace(
            _order_of(order, settings, shorter, echo, consent), again=_again(holder, order.again, rows)
        )
        follower = _make_follower(holder, kept, asked, settings, echo, consent)
        follower.job, follower.outdated = job, asked.settings != order.settings
        follower.most_rounds = max(order.federation.rounds, asked.federation.rounds)
        trackers = tracking.start(
            plan.over(settings), holder, agreeing(rows, rows[-1]["round"]) if rows else []
        )
        # all that may refuse here has done so: from here on the folder changes
        before_more = None
        if settings.federation.rounds > shorter:
            before_more = (holder.path / folder.SILOS).read_text(encoding="utf8")
        else:
            changes.keep(holder, settings)
        if not follower.outdated:  # else it says so once there is a job with this order
            holder.write(folder.SILOS, state_file.text(kept, asked, job))
        with disk_errors(holder.path):
            (holder.path / state_file.STOP_FILE).unlink(missing_ok=True)
        rows = holder.reconcile(rows[-1]["round"]) if rows else []
        follower.rows = _row_count(rows)
        echo(f"continuing after round {max(0, follower.rows - 1)} of {settings.federation.rounds}")
        return SilosRun(
            settings=settings,
            plan=plan,
            holder=holder,
            base=base,
            follower=follower,
            trackers=trackers,
            echo=echo,
            consent=consent,
            before_more=before_more,
        )


def _again(holder: RunFolder, known: Mapping[str, int], rows: Sequence[Row]) -> dict[str, int]:
    """Rounds that are counted besides, by all that the run folder says of them."""
    found = {}
    for level, name in ledger.LEVELS.items():
        kept, counted = ledger.read(holder.path, name), known.get(level, 0)
        found[level] = ledger.standing(kept, rows, level, 0, again=counted).again
    return {level: count for level, count in found.items() if count}


def _order_of(order: JobSpec, settings: RunSettings, shorter: int, echo: Echo, consent: Consent) -> JobSpec:
    """The order with the number of rounds that the run has now.

    A folder whose coordinator was killed as it asked for more rounds may have an order of these.

    Args:
        shorter: how many rounds the run had before.

    Raises:
        SettingsError: there are more now, and a transform set its noise for the number of rounds.
    """
    now = settings.federation.rounds
    if now > shorter:
        changes.require_extendable(plugins.method(settings, consent.plugins))
        echo(f"the run has {now} rounds instead of {shorter}, as far as each site's owner allows")
    if now == order.federation.rounds:
        return order
    asked = {**order.settings, "federation": {**order.settings.get("federation", {}), "rounds": now}}
    return replace(order, settings=asked)


def _is_complete(holder: RunFolder, until: int) -> bool:
    """Whether the last round and its checkpoint are here, so that the server is not needed."""
    last = checkpoint.latest(holder.checkpoints)
    rows = read_rows(holder.path)
    return last is not None and last.name == f"round-{until:05d}" and _row_count(rows) > until


def _require_submitter(kit: kits.Kit) -> None:
    if kit.role not in ("project_admin", "lead"):
        raise SilosError(
            f"{kit.name} has the role {kit.role} in the federation and may not submit a run; use the kit of a"
            " project_admin or lead"
        )


def _require_capped(settings: RunSettings) -> None:
    if settings.federation.max_share > weights.MAX_SHARE:
        raise SettingsError(
            f"federation.max_share = {settings.federation.max_share:g} is possible only in one process;"
            f" over silos, set it to {weights.MAX_SHARE:g} or less, or leave it out"
        )


def _require_no_side_ranks(settings: RunSettings, consent: Consent) -> None:
    ranks = plugins.method(settings, consent.plugins).aggregation.side_rank
    if ranks:
        raise SettingsError(
            f"the aggregation {settings.aggregation.name!r} adds {ranks} side ranks to the adapter, and a"
            " site takes an adapter of adapter.rank alone; over silos, set [aggregation] name ="
            ' "product" or "mean"'
        )


def _choose_sites(settings: RunSettings, kit: str | Path, echo: Echo) -> tuple[str, ...]:
    with session(kit) as server:
        connected = server.connected()
    sites = sorted(set(settings.silos.sites)) or connected
    missing = ", ".join(site for site in sites if site not in connected)
    if not set(sites) & set(connected):
        named = f"of silos.sites ({missing}) " if missing else ""
        raise FederationError(
            f"no site {named}is connected (connected: {', '.join(connected) or 'none'}); start"
            " `shepherd silos site` at the sites, or correct silos.sites"
        )
    echo(f"sites: {', '.join(sites)}" + (f" (not connected: {missing})" if missing else ""))
    return tuple(sites)


def _last_checkpoint(holder: RunFolder) -> Path:
    """The last checkpoint in the run folder."""
    last = checkpoint.latest(holder.checkpoints)
    if last is None:
        raise CheckpointError(f"{holder.path} has no checkpoint; start the run again in a new folder")
    return last


def _make_follower(
    holder: RunFolder, kit: Path, order: JobSpec, settings: RunSettings, echo: Echo, consent: Consent
) -> JobFollower:
    return JobFollower(
        kit=kit,
        order=order,
        cohort=plugins.selection(settings, consent.plugins).size(len(order.sites)),
        state=lambda: _last_checkpoint(holder),
        scratch=holder.path / "jobs",
        echo=echo,
        stopped=(holder.path / state_file.STOP_FILE).exists,
        max_file_bytes=_max_file_bytes(
            settings, checkpoint.load(_last_checkpoint(holder)).state, len(order.sites), consent
        ),
    )


def _max_file_bytes(settings: RunSettings, state: ServerState, sites: int, consent: Consent) -> int:
    """Largest file of the run's checkpoints that is accepted: a round may make the state grow."""
    context = _context(settings, state.adapter, sites, consent)
    after = rehearse(plugins.method(settings, consent.plugins), state, context)
    return MAX_FILE_EXTRA_BYTES + math.ceil(MAX_FILE_RATIO * max(_bytes(state), _bytes(after)))


def _context(settings: RunSettings, adapter: Adapter, sites: int, consent: Consent) -> Context:
    return context_of(settings, plugins.selection(settings, consent.plugins), adapter, sites)


def _bytes(state: ServerState) -> int:
    return sum(map(_tree_bytes, (state.adapter, state.memory, state.optimiser, state.transforms)))


def _tree_bytes(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(map(_tree_bytes, tree.values()))
    return sum(map(_tree_bytes, tree)) if isinstance(tree, tuple) else int(np.asarray(tree).nbytes)


def _save_start(
    holder: RunFolder, settings: RunSettings, base: bases.Base, sites: int, consent: Consent
) -> None:
    """Save the state before the first round; the run file, and adapter.start, alone determine its bits."""
    method = plugins.method(settings, consent.plugins)
    adapter = starting.of_run(holder, settings, base, method)
    notes: Row = {"positions": {}, "row": None, "base": base.fingerprint}
    state = start(method, adapter, _context(settings, adapter, sites, consent))
    checkpoint.save(holder.checkpoints, Checkpoint(state=state, notes=notes), keep=1)


def _row_count(rows: Sequence[Row]) -> int:
    """Number of rows in a log that ends with these: one for each round from 0."""
    return int(rows[-1]["round"]) + 1 if rows else 0


def _fetch_checkpoint(place: Path, pieces: Iterator[tuple[str, bytes]], keep: int) -> None:
    unfinished = place.with_name(checkpoint.UNFINISHED + place.name)
    with disk_errors(place.parent.parent):
        shutil.rmtree(unfinished, ignore_errors=True)
        private.make(unfinished)
        try:
            for name, data in pieces:
                with open(unfinished / name, "ab", opener=private.owner_only) as file:
                    file.write(data)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    checkpoint.adopt(unfinished, place, keep=keep)
