"""A run over silos, at the coordinator: the same run file, the same run folder, the rounds elsewhere.

The coordinator has the base, to make the first adapter and to write the last one in PEFT's layout, and no
data but what it scores answers on. It keeps the run going while it lives; the server goes on without it.

runs/NAME/silos.json   the kit, what was ordered, and the last job
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from shepherd import card, checkpoint, folder, plugins, prepare, select, tracking
from shepherd.checkpoint import Checkpoint
from shepherd.core import ServerState, seed_for
from shepherd.errors import CheckpointError, FederationError, FolderError, SettingsError
from shepherd.federation.nvflare import kits
from shepherd.federation.nvflare.session import JobGone, session
from shepherd.federation.service import Order
from shepherd.federation.simulation import Progress
from shepherd.folder import RunFolder
from shepherd.loading import load_base, load_checkpoint, placed
from shepherd.model import base as bases
from shepherd.model import files, lora, stack
from shepherd.model.digest import digest
from shepherd.rounds import start
from shepherd.run import answered
from shepherd.settings import RunSettings
from shepherd.silos.following import Following, News

Row = dict[str, Any]
Say = Callable[[str], None]
MIRROR = 60.0
"""Seconds between two copies of the server's checkpoint into the run folder; the last is always copied."""


@dataclass(slots=True, kw_only=True)
class SilosRun:
    """A run that this process keeps going; from `open_run` or `resume`."""

    settings: RunSettings
    holder: RunFolder
    base: bases.Base
    following: Following
    trackers: tracking.Trackers
    say: Say
    progress: Callable[[Progress], None] | None = None
    closed: bool = False
    _mirrored: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.holder.path

    @property
    def until(self) -> int:
        """Rounds in all."""
        return self.settings.federation.rounds

    def rounds(self) -> Iterator[tuple[ServerState, Row]]:
        """Follow the run to its last round; each is logged here before it is yielded.

        The state that is yielded is the last one copied from the server, which may be an earlier round's.

        Raises:
            FederationError: a round could not be finished; the round before is kept, here and there.
            SilosError: the server refuses the kit or the job.
        """
        for news in self.following.news():
            self._remember(news)
            for row in self._taken(news):
                self.trackers.log(row)
                if row["round"]:
                    yield self._state(), row
            self._show(news)
            if news.outcome and "error" in news.outcome:
                self._copy(news)
                raise FederationError(news.outcome["error"])
            if news.outcome or time.monotonic() - self._mirrored > MIRROR:
                self._copy(news)

    def finish(self, answer: bool = True) -> Row:
        """Write the final adapter with its card, and answer held-out examples if the run file asks for it.

        Returns:
            `adapter`, its folder; and `answers`, category -> (share right before, share right after).
        """
        self.holder.require_held()
        adapter = self._state().adapter
        files.write(self.holder.adapter, adapter, self.base)
        scores: Mapping[str, tuple[float, float]] = {}
        if answer and self.settings.evaluation.answers:
            division = prepare.divide(self.settings)
            held = division.of(division.held.heldout.tolist())
            scores = answered(self.holder, self.settings, self.base, adapter, held)
        rows = folder.read_rows(self.folder)
        card.write(
            self.holder.adapter,
            self.settings,
            rows=rows,
            answers=scores,
            data={},
            clients={site: int(count) for site, count in rows[-1].get("taken", {}).items()},
        )
        self.close()
        return {"adapter": self.holder.adapter, "answers": scores}

    def close(self) -> None:
        """Give the run folder back. The run at the server goes on."""
        if not self.closed:
            self.closed = True
            self.trackers.finish()
            self.holder.close()

    def _taken(self, news: News) -> list[Row]:
        """New rows, logged; where the server had to go back, the log here goes back with it."""
        if news.count < self.following.rows:
            self.following.rows = len(self.holder.reconcile(news.round))
            return []
        rows = [self._completed(row) for row in news.rows]
        for row in rows:
            self.holder.append(row)
        self.following.rows += len(rows)
        return rows

    def _completed(self, row: Row) -> Row:
        if not row["round"]:
            return row
        table, federation = self.settings.tuning, self.settings.federation
        return {**row, "learning_rate": stack.round_rate(table, row["round"] - 1, federation.rounds)}

    def _show(self, news: News) -> None:
        for line in news.said:
            self.say(line)
        if self.progress is not None and news.progress is not None:
            cohort = select.share_of(len(self.following.order.sites), self.settings.federation.share)
            self.progress(Progress(clients=cohort, **news.progress))

    def _remember(self, news: News) -> None:
        if news.restart:
            _record(self.holder, self.following)

    def _state(self) -> ServerState:
        last = checkpoint.latest(self.holder.checkpoints)
        if last is None:
            raise CheckpointError(f"{self.folder} holds no checkpoint; start the run again in a new folder")
        return load_checkpoint(last, self.base).state

    def _copy(self, news: News) -> None:
        """Copy the server's last checkpoint here, whole or not at all."""
        self._mirrored = time.monotonic()
        place = self.holder.checkpoints / f"round-{news.round:05d}"
        if place.exists() or news.fetch is None:
            return
        try:
            _fetched(place, news.fetch(news.round), self.settings.checkpoints.keep)
        except JobGone:
            if news.outcome:
                raise


def open_run(settings: RunSettings, kit: str | Path, say: Say = print) -> SilosRun:
    """Prepare a new run over silos: the base, the first adapter, the run folder, and the order.

    Raises:
        SilosError: the kit or the server refuses; nothing is written then.
        FolderError: `output` holds another run or anything else.
    """
    folder.require_free(settings.output)
    tracking.require(settings.tracking)
    kits.read(kit, "admin")
    algorithm, transform = plugins.algorithm(settings.algorithm), plugins.transform(settings.transforms)
    sites = _sites(settings, kit, say)
    base = load_base(settings, say)
    settings = _resolved(settings, base, sites)
    holder = folder.create(settings.output, settings)
    with _given_back_on_error(holder):
        adapter = lora.fresh(base.sites, settings.adapter.rank, seed_for(settings.seed, "adapter"))
        state = start(algorithm, transform, adapter)
        notes: Row = {"positions": {}, "row": None, "base": base.fingerprint}
        checkpoint.save(holder.checkpoints, Checkpoint(state=state, notes=notes), keep=1)
        order = Order(
            run=secrets.token_hex(8),
            base=digest(placed(settings.model).base),
            fingerprint=base.fingerprint,
            version=metadata.version("shepherd-fit"),
            sites=sites,
            settings=_plain(settings),
        )
        following = _following(holder, Path(kit), order, say)
        _record(holder, following)
        return SilosRun(
            settings=settings,
            holder=holder,
            base=base,
            following=following,
            trackers=tracking.start(settings, holder),
            say=say,
        )


def resume(path: str | Path, say: Say = print) -> SilosRun:
    """Go on following a run, and have the server go on with it where it has stopped.

    Raises:
        FolderError: there is no such run, or another process holds it.
    """
    holder = folder.reopen(path)
    with _given_back_on_error(holder):
        settings = folder.read_settings(holder.path)
        kit, order, job = _recorded(holder.path)
        base = load_base(settings, say)
        following = _following(holder, kit, order, say)
        following.job = job
        rows = folder.read_rows(holder.path)
        following.rows = len(holder.reconcile(rows[-1]["round"])) if rows else 0
        return SilosRun(
            settings=settings,
            holder=holder,
            base=base,
            following=following,
            trackers=tracking.start(settings, holder, after_round=rows[-1]["round"] if rows else -1),
            say=say,
        )


def under_way(path: str | Path) -> tuple[Path, str | None]:
    """The administrator's kit that a run over silos goes on with, and its last job.

    Raises:
        FolderError: the run in the folder is not over silos.
    """
    if not folder.is_over_silos(path):
        raise FolderError(f"{path} holds no run over silos; name the folder of one")
    kit, _, job = _recorded(Path(path))
    return kit, job


def _sites(settings: RunSettings, kit: str | Path, say: Say) -> tuple[str, ...]:
    if settings.federation.sites:
        return tuple(sorted(settings.federation.sites))
    with session(kit) as server:
        connected = tuple(server.connected())
    if not connected:
        raise FederationError(
            "no site is connected; start `shepherd silos site` at the sites, or name them in federation.sites"
        )
    say(f"sites: {', '.join(connected)}")
    return connected


def _resolved(settings: RunSettings, base: bases.Base, sites: tuple[str, ...]) -> RunSettings:
    """What holds at every site, written out: one client at once, and the base's dtype."""
    if settings.tuning.workers not in ("auto", 1):
        raise SettingsError("tuning.workers is for clients in one process; leave it out over silos")
    tuning = settings.tuning.model_copy(update={"cohort_size": 1, "workers": 1})
    model = settings.model.model_copy(update={"dtype": str(base.dtype).removeprefix("torch.")})
    federation = settings.federation.model_copy(update={"sites": sites})
    return settings.model_copy(update={"tuning": tuning, "model": model, "federation": federation})


def _plain(settings: RunSettings) -> Row:
    plain = settings.model_dump(mode="json", exclude_none=True)
    if settings.tuning.clip_norm is None:
        plain["tuning"]["clip_norm"] = False  # as the run file says it
    return plain


def _following(holder: RunFolder, kit: Path, order: Order, say: Say) -> Following:
    def state() -> Path:
        last = checkpoint.latest(holder.checkpoints)
        if last is None:
            raise CheckpointError(f"{holder.path} holds no checkpoint; start the run again in a new folder")
        return last

    return Following(kit=kit, order=order, state=state, scratch=holder.path / "jobs", say=say)


def _record(holder: RunFolder, following: Following) -> None:
    kept = {"kit": str(following.kit.absolute()), "job": following.job}
    holder.write(
        folder.SILOS, json.dumps({**kept, "order": json.loads(following.order.text())}, indent=1) + "\n"
    )


def _recorded(path: Path) -> tuple[Path, Order, str | None]:
    from shepherd.federation.service import order

    try:
        kept = json.loads((path / folder.SILOS).read_text(encoding="utf8"))
        return Path(kept["kit"]), order(json.dumps(kept["order"])), kept["job"]
    except (OSError, ValueError, KeyError) as error:
        raise FolderError(f"{path / folder.SILOS} cannot be read ({error}); start the run again") from error


def _fetched(place: Path, pieces: Iterator[tuple[str, bytes]], keep: int) -> None:
    unfinished = place.with_name(checkpoint.UNFINISHED + place.name)
    with folder.mending(place.parent.parent):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            for name, data in pieces:
                with open(unfinished / name, "ab") as file:
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
