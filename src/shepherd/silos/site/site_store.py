"""What a site keeps of a run between rounds: where it is in its data, its memory, and what it answered.

    HOME/state/RUN/round-00003/    a checkpoint: after the third round that the run asked of it
                                   tensors: the algorithm's memory, and the update
    HOME/state/RUN/start-00003     the adapter that was trained from then, as safetensors
    HOME/runs/RUN.json             where it is in its data, the last questions answered, and its last score
    HOME/secret                    what the order of the examples comes from

Each is whole or not there. Checkpoints are kept of the last two rounds of the last eight runs; the
small record of a run for a year, so that a run that comes back goes on where it was. Nobody waits until a
start is on the disk, which would double a round: where a power cut loses it, the site gives no score until it
has trained again. None of it ever leaves the site but the update, to whoever asks the same question again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load as tensors_from
from safetensors.numpy import save as bytes_of

from shepherd.core import Adapter, Payload, ServerState, Update
from shepherd.errors import FolderError
from shepherd.io import private
from shepherd.io.atomic import disk_errors, secret, write_atomic
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.silos.site.released import Score

KEEP = 2  # rounds of a run
RUNS = 8  # those answered last
OWN = "own"
"""This site's name in the checkpoints of an earlier version."""
YEAR_S = 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The state after one answered round. Positions count examples taken, as `data.cursor` does."""

    round: int
    """The broadcast's: rounds finished before it."""
    id: str
    """Of the request."""
    update: Update
    """As it was sent, with every number that might be told; the policy of the day chooses of them."""
    start: int
    """Where the visit began."""
    position: int
    """Where it ended."""
    different: int
    """How many different examples it took."""
    examples: int
    """That the site held then."""
    memory: Payload
    moved: float
    """How far the visit went at most: the length of its change, or of what was sent where that is shorter."""
    adapter: Adapter | None
    """That was trained from; None where it is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What stays of a run for a year. Rounds are -1 before the first."""

    round: int = -1
    """The last one answered."""
    id: str = ""
    position: int = 0
    spent: bool = False
    """Whether that round's visit came to nothing that could be answered."""
    scored: int = -1
    """The last one scored."""
    scored_id: str = ""
    score: Mapping[str, Score] | None = None
    """What was told then, by category."""


@dataclass(slots=True)
class Store:
    """The states of all runs under one home; the run that was asked for last is held in memory."""

    home: Path
    _run: str = ""
    _kept: tuple[Kept, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kept(self, run: str) -> tuple[Kept, ...]:
        """What is kept of a run, oldest first.

        Raises:
            CheckpointError: it is damaged; the message names the fix.
        """
        with self._lock:
            if run != self._run:
                self._kept = tuple(_read(path) for path in _places(self.home / "state" / run))
                self._run = run
            return self._kept

    def answered(self, run: str, id: str) -> Kept | None:
        """The round that answered the request of this id, if it is still kept."""
        return next((kept for kept in self.kept(run) if kept.id == id), None)

    def before(self, run: str, round: int) -> Kept | None:
        """The state that round `round` begins with: that after the last answered round before it."""
        return next((kept for kept in reversed(self.kept(run)) if kept.round < round), None)

    def record(self, run: str) -> Record:
        """Where a run is, also where its tensors are gone.

        Raises:
            FolderError: it is there and cannot be read.
        """
        found = _record(self._place(run))
        for last in self.kept(run)[-1:]:  # a kill between the two leaves the record behind
            if last.round > found.round:
                return _answered(found, last)
        return found

    def save(self, run: str, kept: Kept) -> None:
        """Keep the state after one more round; when this returns, all but the start is on the disk.

        Raises:
            FolderError: the disk is full or cannot be written; what was there before stands.
        """
        before = self.kept(run)
        with self._lock:
            self._run = ""  # whatever happens now, the disk knows
            folder = self.home / "state" / run
            digest = _save_start(folder, kept.round, kept.adapter) if kept.adapter else ""
            checkpoint.save(folder, _checkpoint(kept, digest), keep=KEEP)
            _delete_starts(folder)
            sweep(self.home / "state", RUNS)
            known = _record(self._place(run))
            self._write(run, _answered(known, kept))
            self._run, self._kept = run, (*before, kept)[-KEEP:]

    def spend(self, run: str, round: int, id: str, position: int) -> None:
        """Keep that a round's visit was made and came to nothing, so that it is not made again.

        Raises:
            FolderError: the disk is full or cannot be written.
        """
        with self._lock:
            known = _record(self._place(run))
            self._write(run, replace(known, round=round, id=id, position=position, spent=True))

    def save_score(self, run: str, round: int, id: str, score: Mapping[str, Score]) -> None:
        """Keep the score of a round, before it is told.

        Raises:
            FolderError: the disk is full or cannot be written.
        """
        with self._lock:
            known = _record(self._place(run))
            self._write(run, replace(known, scored=round, scored_id=id, score=score))

    def secret(self) -> int:
        """This site's own, drawn once; nobody else ever sees it.

        Raises:
            FolderError: it cannot be read or written.
        """
        return secret(self.home / "secret")

    def _place(self, run: str) -> Path:
        return self.home / "runs" / f"{run}.json"

    def _write(self, run: str, record: Record) -> None:
        place = self._place(run)
        with disk_errors(place.parent):
            place.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(place, json.dumps(asdict(record)))
        for old in place.parent.iterdir():
            with suppress(OSError):
                if old.stat().st_mtime < time.time() - YEAR_S:
                    old.unlink()


def sweep(folder: Path, keep: int) -> None:
    """Delete all that lies in a folder but the `keep` things that changed last."""
    found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for old in found[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _record(place: Path) -> Record:
    try:
        table = json.loads(place.read_text(encoding="utf8"))
        score = table.pop("score", None)
        told = None if score is None else {name: Score(**each) for name, each in score.items()}
        return Record(**table, score=told)
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FolderError(
            f"the record {place} cannot be read ({type(error).__name__}); delete it, and the run begins anew"
        ) from error


def _answered(record: Record, kept: Kept) -> Record:
    return replace(record, round=kept.round, id=kept.id, position=kept.position, spent=False)


def _save_start(folder: Path, round: int, adapter: Adapter) -> str:
    """Write the adapter that a round was trained from, without waiting for the disk; give its digest."""
    data = bytes_of(dict(adapter))
    with disk_errors(folder):
        private.make(folder)
        unfinished = _start(folder, round).with_name("start.new")
        with open(unfinished, "wb", opener=private.owner_only) as file:
            file.write(data)
        unfinished.replace(_start(folder, round))
    return hashlib.sha256(data).hexdigest()


def _start(folder: Path, round: int) -> Path:
    return folder / f"start-{round + 1:05d}"  # the number of its checkpoint


def _delete_starts(folder: Path) -> None:
    """Of rounds whose checkpoint is gone."""
    with disk_errors(folder):
        for start in folder.glob("start-*"):
            if not start.with_name(start.name.replace("start", "round")).exists():
                start.unlink()


def _read_start(folder: Path, round: int, digest: str) -> Adapter | None:
    try:
        data = _start(folder, round).read_bytes()
    except OSError:
        return None
    return Adapter(tensors_from(data)) if hashlib.sha256(data).hexdigest() == digest else None


def _checkpoint(kept: Kept, start: str) -> Checkpoint:
    update = kept.update
    tensors = {"delta": update.delta, "extra": update.extra, "memory": kept.memory}
    state = ServerState(round=kept.round + 1, adapter=Adapter(), transforms=tensors)
    notes = {
        "id": kept.id,
        "clients": list(update.clients),
        "weight": update.weight,
        "metrics": dict(update.metrics),
        "start": kept.start,
        "position": kept.position,
        "different": kept.different,
        "examples": kept.examples,
        "trained_from": start,
        "moved": kept.moved,
    }
    return Checkpoint(state=state, notes=notes)


def _read(path: Path) -> Kept:
    saved = checkpoint.load(path)
    notes, tensors, round = saved.notes, saved.state.transforms, saved.state.round - 1
    return Kept(
        round=round,
        id=notes["id"],
        update=_update(round, notes, tensors),
        start=notes["start"],
        position=notes["position"],
        # an earlier version counted what it took
        different=notes.get("different", min(notes["position"] - notes["start"], notes["examples"])),
        examples=notes["examples"],
        memory=saved.clients[OWN] if saved.clients else Payload(tensors["memory"]),
        moved=notes["moved"] if "moved" in notes else _update(round, notes, tensors).delta.norm(),
        # which stood in the checkpoint itself
        adapter=saved.state.adapter or _read_start(path.parent, round, notes.get("trained_from", "")),
    )


def _update(round: int, notes: Mapping[str, Any], tensors: Mapping[str, Any]) -> Update:
    return Update(
        round=round,
        clients=tuple(notes["clients"]) if "clients" in notes else (notes["client"],),
        delta=Payload(tensors["delta"]),
        extra=Payload(tensors["extra"]),
        weight=notes["weight"],
        metrics=notes["metrics"],
    )


def _places(folder: Path) -> list[Path]:
    # what begins otherwise is unfinished
    return sorted(folder.glob("round-*"), key=lambda path: int(path.name.removeprefix("round-")))
