"""A run over silos, at the coordinator: the same run file, the same run folder, the rounds elsewhere.

The coordinator has the base, to make the first adapter and to write the last one in PEFT's layout, and no
data but what it scores answers on. It keeps the run going while it lives; the server goes on without it.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Context, ServerState, seed_for
from shepherd.data import pipeline
from shepherd.data.examples import Example
from shepherd.data.template import Template, stop_ids
from shepherd.errors import (
    CheckpointError,
    DataError,
    FederationError,
    OutOfReach,
    SettingsError,
    SilosError,
)
from shepherd.io import private, progress
from shepherd.io.atomic import disk_errors
from shepherd.io.progress import Progress
from shepherd.machine import plan as plans
from shepherd.machine import planning
from shepherd.machine.plan import PLAN, Plan
from shepherd.model import base as bases
from shepherd.model import files, lora
from shepherd.model.coverage import coverage
from shepherd.model.digest import digest, folder_of
from shepherd.rounds import context_of, rehearse, start, weights
from shepherd.run import card, checkpoint, folder, tracking
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.folder import RunFolder
from shepherd.run.loading import load_base, load_checkpoint, placed
from shepherd.run.log import read_rows
from shepherd.run.run import answer_heldout
from shepherd.settings import RunSettings
from shepherd.silos.coordinator import state_file
from shepherd.silos.coordinator.job_follower import JobFollower, StatusUpdate
from shepherd.silos.flare import kits
from shepherd.silos.flare.session import JobGone, session
from shepherd.silos.protocol import jobspec, wire
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.training import stack
from shepherd.training.local import completed, require

log = logging.getLogger(__name__)
Row = dict[str, Any]
Echo = Callable[[str], None]
SPARE = 2.0
"""Times as long as a copy of the server's checkpoint took, until the next may begin. Each finished round is
copied into the run folder, since a site keeps its last two answers alone: from an older copy a server that
lost its disk could not go on. Still, a large adapter and short rounds shall not fill the server's time."""
SPARE_TIMES, SPARE_BYTES = 1.05, 8 * 2**20
"""What a file of a checkpoint may have beside its tensors: their names, a row of the log, notes."""


@dataclass(slots=True, kw_only=True, repr=False)
class SilosRun:
    """A run that this process keeps going; from `open_run` or `resume`."""

    settings: RunSettings
    """As they were given."""
    plan: Plan
    """What was chosen where they leave something open."""
    holder: RunFolder
    base: bases.Base
    following: JobFollower
    trackers: tracking.Trackers
    echo: Echo
    consent: Consent = NOTHING
    closed: bool = False
    _due: float = 0.0
    """When the next copy may begin."""
    _next_line: float = field(default_factory=lambda: time.monotonic() + progress.EVERY_S)
    """When the next line about the round under way is due."""
    _loaded: tuple[Path, ServerState] | None = None

    def __repr__(self) -> str:
        """Where it is and what it does, and no text of any example."""
        return f"<SilosRun {self.folder}: {self.settings.algorithm.name}, {self.until} rounds>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.holder.path

    @property
    def planned(self) -> RunSettings:
        """The settings with everything that they leave open as the plan has it."""
        return self.plan.over(self.settings)

    @property
    def until(self) -> int:
        """Rounds in all."""
        return self.settings.federation.rounds

    def rounds(self) -> Iterator[tuple[ServerState, Row]]:
        """Follow the run to its last round; each is logged here before it is yielded.

        The state that is yielded is the last one copied from the server, which may be an earlier round's.

        Raises:
            FederationError: a round could not be finished; the round before is kept, here and there. Or a
                person has stopped the run.
            SilosError: the server refuses the kit or the job.
        """
        if _whole(self.holder, self.until):
            return
        outcome: Row | None = None
        with closing(self.following.news()) as told:
            for news in told:
                self._remember(news)
                self._gone_back(news)
                for row in news.rows:
                    taken = self._taken(row)
                    if taken["round"]:
                        yield self._state(), taken
                self._show(news)
                self._copy(news)
                outcome = news.outcome
        if outcome and "error" in outcome:
            raise FederationError(outcome["error"])

    def finish(self, answer: bool = True) -> Row:
        """Write the final adapter with its card, and answer held-out examples if the run file asks for it.

        Returns:
            `adapter`, its folder; and `answers`, category -> (share right before, share right after).
        """
        self.holder.require_held()
        adapter = self._state().adapter
        files.write(self.holder.adapter, adapter, self.base)
        stop = stop_ids(Template.of(self.planned.data), self.base.tokenizer)
        files.write_tokenizer(self.holder.adapter, self.base, stop)
        scores: Mapping[str, tuple[float, float]] = {}
        if answer and self.settings.evaluation.answers:
            scores = answer_heldout(self.holder, self.planned, self.base, adapter, self._heldout())
        rows = read_rows(self.folder)
        card.write(
            self.holder.adapter,
            self.planned,
            rows=rows,
            answers=scores,
            data={},
            clients={site: int(count) for site, count in rows[-1].get("taken", {}).items()} if rows else {},
        )
        done = rows[-1]["round"] if rows else 0
        self.holder.write(folder.FINISHED, json.dumps({"round": done, "answers": scores}) + "\n")
        self.close()
        return {"adapter": self.holder.adapter, "answers": scores}

    def close(self) -> None:
        """Give the run folder back. The run at the server goes on."""
        if not self.closed:
            self.closed = True
            self.trackers.finish()
            self.holder.close()

    def _heldout(self) -> list[Example]:
        try:
            division = pipeline.divide(self.settings, self.consent.plugins)
        except DataError as error:  # the coordinator need not have any
            self.echo(f"no answers are scored here, since the data are not ({error})")
            return []
        return division.of(division.held.heldout.tolist())

    def _gone_back(self, news: StatusUpdate) -> None:
        """Where the server had to go back, the log here goes back with it."""
        if 0 < news.count < self.following.rows:
            self.echo(f"the server goes on after round {news.round}: it has lost what came after")
            self.following.rows = _known(self.holder.reconcile(news.round))

    def _taken(self, row: Row) -> Row:
        """A new row, logged: whoever stops between two goes on with the second."""
        table, federation = self.settings.tuning, self.settings.federation
        if row["round"]:
            row = {**row, "learning_rate": stack.round_rate(table, row["round"] - 1, federation.rounds)}
        self.holder.append(row)
        self.following.rows = row["round"] + 1
        self.trackers.log(row)
        return row

    def _show(self, news: StatusUpdate) -> None:
        for line in news.said:
            self.echo(line)
        if news.progress is not None:
            line_is_due = time.monotonic() >= self._next_line
            level = logging.INFO if line_is_due else logging.DEBUG
            progress.log.log(level, "%s", Progress(clients=self.following.cohort, **news.progress))
            if line_is_due:
                self._next_line = time.monotonic() + progress.EVERY_S

    def _remember(self, news: StatusUpdate) -> None:
        if news.restart:
            kept = state_file.text(self.following.kit, self.following.order, news.job)
            self.holder.write(folder.SILOS, kept)

    def _state(self) -> ServerState:
        last = _last(self.holder)
        if self._loaded is None or self._loaded[0] != last:
            self._loaded = (last, load_checkpoint(last, self.base).state)
        return self._loaded[1]

    def _copy(self, news: StatusUpdate) -> None:
        """Copy the checkpoint of the round that the server has finished."""
        finished = bool(news.outcome) and "error" not in (news.outcome or {})
        began = time.monotonic()
        place = self.holder.checkpoints / f"round-{news.round:05d}"
        if news.fetch is None or place.exists() or (began < self._due and not news.outcome):
            return
        try:
            _fetched(place, news.fetch(news.round), self.settings.checkpoints.keep)
        except (JobGone, OutOfReach):
            self.following.again = finished  # of the last one, the run is not over without
        except (FederationError, CheckpointError):  # an earlier round's may be deleted in the middle
            if finished:
                raise
        finally:
            self._due = time.monotonic() + SPARE * (time.monotonic() - began)


def open_run(
    settings: RunSettings, kit: str | Path, echo: Echo = log.info, consent: Consent = NOTHING
) -> SilosRun:
    """Prepare a new run over silos: the base, the first adapter, the run folder, and the order.

    Args:
        consent: what a person has agreed to that the settings only wish for; it holds here and not at the
            server or a site, each of which has its owner's word.

    Raises:
        SilosError: the kit or the server refuses; nothing is written then.
        FederationError: no site of the run is connected; nothing is written then.
        FolderError: `output` holds another run or anything else.
    """
    folder.require_free(settings.output)
    tracking.require(settings.tracking, consent)
    if settings.evaluation.data:
        raise SettingsError(
            "evaluation.data is for a run in one process, since each site scores its own examples; leave it"
            " out, and score the run afterwards with `shepherd evaluate RUN_FOLDER --data FILE`"
        )
    _require_submitter(kits.read(kit, "admin"))
    _require_capped(settings)
    require(settings, consent.plugins)  # a wrong name is refused before anything is made
    settings = completed(settings, consent.plugins)
    sites = _sites(settings, kit, echo)
    base = load_base(settings, consent)
    if told := files.rehearse(base):
        echo(told)
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
    kept = state_file.text(Path(kit), order, None)
    holder = folder.create(settings.output, settings, plan.text(), kept)
    with _given_back_on_error(holder):
        _save_start(holder, settings, base, len(sites), consent)
        following = _following(holder, Path(kit), order, settings, echo, consent)
        return SilosRun(
            settings=settings,
            plan=plan,
            holder=holder,
            base=base,
            following=following,
            trackers=tracking.start(filled, holder),
            echo=echo,
            consent=consent,
        )


def resume(
    path: str | Path,
    echo: Echo = log.info,
    kit: str | Path | None = None,
    consent: Consent = NOTHING,
) -> SilosRun:
    """Go on following a run, and have the server go on with it where it has stopped.

    Args:
        kit: of an administrator, where it is another than the run went on with or has moved.
        consent: what a person has agreed to that the run file in the folder only wishes for.

    Raises:
        FolderError: there is no such run, or another process holds it.
        SilosError: the kit is not there any more.
    """
    holder = folder.reopen(path)
    with _given_back_on_error(holder):
        settings, plan = folder.read_settings(holder.path), plans.read(holder.path)
        kept, order, job = state_file.recorded(holder.path)
        kept = Path(kit or kept)
        if not _whole(holder, settings.federation.rounds):
            state_file.require_kit(kept, path)
        tracking.require(settings.tracking, consent)
        base = load_base(plan.over(settings) if plan else settings, consent)
        if plan is None:
            plan = planning.for_coordinator(settings, base)
            holder.write(PLAN, plan.text())
        if checkpoint.latest(holder.checkpoints) is None:  # killed before it was written
            _save_start(holder, settings, base, len(order.sites), consent)
        following = _following(holder, kept, order, settings, echo, consent)
        following.job = job
        holder.write(folder.SILOS, state_file.text(kept, order, job))
        with disk_errors(holder.path):
            (holder.path / state_file.STOP).unlink(missing_ok=True)
        rows = read_rows(holder.path)
        rows = holder.reconcile(rows[-1]["round"]) if rows else []
        following.rows = _known(rows)
        echo(f"going on after round {max(0, following.rows - 1)} of {settings.federation.rounds}")
        return SilosRun(
            settings=settings,
            plan=plan,
            holder=holder,
            base=base,
            following=following,
            trackers=tracking.start(plan.over(settings), holder, rows),
            echo=echo,
            consent=consent,
        )


def _whole(holder: RunFolder, until: int) -> bool:
    """Whether the last round and its checkpoint are here, and the server has nothing more to tell."""
    last = checkpoint.latest(holder.checkpoints)
    rows = read_rows(holder.path)
    return last is not None and last.name == f"round-{until:05d}" and _known(rows) > until


def _require_submitter(kit: kits.Kit) -> None:
    if kit.role not in ("project_admin", "lead"):
        raise SilosError(
            f"{kit.name} is {kit.role} in the federation and may not submit a run; use the kit of a"
            " project_admin or lead"
        )


def _require_capped(settings: RunSettings) -> None:
    if settings.federation.max_share > weights.MAX_SHARE:
        raise SettingsError(
            f"federation.max_share = {settings.federation.max_share:g} is for clients in one process; over"
            f" silos write {weights.MAX_SHARE:g} or less, or leave it out"
        )


def _sites(settings: RunSettings, kit: str | Path, echo: Echo) -> tuple[str, ...]:
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


def _last(holder: RunFolder) -> Path:
    """The last checkpoint that is here."""
    last = checkpoint.latest(holder.checkpoints)
    if last is None:
        raise CheckpointError(f"{holder.path} holds no checkpoint; start the run again in a new folder")
    return last


def _following(
    holder: RunFolder, kit: Path, order: JobSpec, settings: RunSettings, echo: Echo, consent: Consent
) -> JobFollower:
    return JobFollower(
        kit=kit,
        order=order,
        cohort=plugins.selection(settings, consent.plugins).size(len(order.sites)),
        state=lambda: _last(holder),
        scratch=holder.path / "jobs",
        echo=echo,
        stopped=(holder.path / state_file.STOP).exists,
        most_bytes=_most_bytes(settings, checkpoint.load(_last(holder)).state, len(order.sites), consent),
    )


def _most_bytes(settings: RunSettings, state: ServerState, sites: int, consent: Consent) -> int:
    """Of a file of the run's checkpoints: what a state has, also after a round, which may make it grow."""
    context = _context(settings, state.adapter, sites, consent)
    after = rehearse(plugins.method(settings, consent.plugins), state, context)
    return SPARE_BYTES + math.ceil(SPARE_TIMES * max(_bytes(state), _bytes(after)))


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
    """The state before the first round; the run file alone decides its bits."""
    method = plugins.method(settings, consent.plugins)
    adapter = lora.fresh(base.targets, settings.adapter.rank, seed_for(settings.seed, "adapter"))
    notes: Row = {"positions": {}, "row": None, "base": base.fingerprint}
    state = start(method, adapter, _context(settings, adapter, sites, consent))
    checkpoint.save(holder.checkpoints, Checkpoint(state=state, notes=notes), keep=1)


def _known(rows: Sequence[Row]) -> int:
    """Rows of a log that ends with these: it has one for each round, from 0 on."""
    return int(rows[-1]["round"]) + 1 if rows else 0


def _fetched(place: Path, pieces: Iterator[tuple[str, bytes]], keep: int) -> None:
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


@contextmanager
def _given_back_on_error(holder: RunFolder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        holder.close()
        raise
