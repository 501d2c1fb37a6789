"""The state of runs that a site keeps between rounds: position in the data, client memory, last answers.

    HOME/state/RUN/round-00003/    checkpoint after round 3: the algorithm's client memory, and the update
    HOME/state/RUN/start-00003     the adapter that round 3 was trained from, as safetensors; where this site
                                   keeps a part of its model, also one that was scored and not trained from
    HOME/runs/RUN.json             record of the run: position, last requests answered, last score
    HOME/runs/privacy/             of the privacy ledgers: see `privacy_ledger`
    HOME/secret                    seed of the order of examples

Writes are atomic. Checkpoints are kept of the last two rounds of the last eight runs, records for a year, so
that a run that returns continues at its position. A start is not flushed to disk, which would double the time
of a round: if a power cut loses it, the site releases no score until it has trained again. Nothing of this
leaves the site but the update, in reply to a repeated request.
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

KEPT_ROUNDS = 2  # rounds of a run
KEPT_RUNS = 8  # those answered last
LEGACY_CLIENT = "own"
"""The client's name in checkpoints of an earlier version."""
YEAR_S = 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRound:
    """The state after one answered round. Positions count examples used, as in `data.cursor`."""

    round: int
    """Round of the broadcast: rounds finished before it."""
    id: str
    """Id of the request."""
    update: Update
    """The update as sent, with all releasable metrics; the current policy selects from them."""
    start: int
    """Position at which the visit began."""
    position: int
    """Position at which it ended."""
    different: int
    """Number of distinct examples in the visit."""
    examples: int
    """Number of examples that the site trained on then."""
    memory: Payload
    """The algorithm's client memory."""
    moved: float
    """Length of the visit's change of the adapter, or of the update as sent if that is shorter; under
    [secure] the longest that the transforms let pass."""
    adapter: Adapter | None
    """The adapter that was trained from; None if it is lost."""
    base: str = ""
    """Digest of the base that was asked for; "" in a checkpoint of an earlier version."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's tables as they were sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRecord:
    """Which sites the secure sum of a round is of; it never changes once it is written."""

    round: int
    members: tuple[str, ...]
    """The sites that the sum may be of; written before an update leaves under masks."""
    survivors: tuple[str, ...] = ()
    """The sites that this site agreed to; written before it agrees, and empty until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The record of a run, kept for a year. Rounds are -1 before the first."""

    round: int = -1
    """Last round answered."""
    id: str = ""
    """Id of its request."""
    position: int = 0
    """Position in the data after it."""
    spent: bool = False
    """Whether its visit diverged, so that it could not be answered."""
    scored: int = -1
    """Last round scored."""
    scored_id: str = ""
    """Id of its request."""
    score: Mapping[str, Score] | None = None
    """The score released then, by category."""
    scored_adapter: str = ""
    """Digest of the file of the adapter that was scored; "" if it is not kept."""
    sums: tuple[SumRecord, ...] = ()
    """The secure sums of the rounds whose answers are kept, by round."""


@dataclass(slots=True)
class Store:
    """Stores the state of all runs under `home`; the run used last is held in memory."""

    home: Path
    _run: str = ""
    _kept: tuple[AnsweredRound, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kept(self, run: str) -> tuple[AnsweredRound, ...]:
        """The answered rounds of a run that are kept, oldest first.

        Raises:
            CheckpointError: a checkpoint is damaged; the message names the fix.
        """
        with self._lock:
            if run != self._run:
                # a killed save may have left an older one, whose secure sum is recorded no longer
                found = _round_folders(self.home / "state" / run)[-KEPT_ROUNDS:]
                self._kept = tuple(map(_read_round, found))
                self._run = run
            return self._kept

    def answered(self, run: str, id: str) -> AnsweredRound | None:
        """The round that answered the request with this id, if it is still kept."""
        return next((kept for kept in self.kept(run) if kept.id == id), None)

    def before(self, run: str, round: int) -> AnsweredRound | None:
        """The state before round `round`: that after the last answered round before it."""
        return next((kept for kept in reversed(self.kept(run)) if kept.round < round), None)

    def record(self, run: str) -> RunRecord:
        """The record of a run, which outlives its checkpoints.

        Raises:
            FolderError: the record exists and cannot be read.
        """
        found = _read_record(self._place(run))
        for last in self.kept(run)[-1:]:  # killed between the two writes, the record is older
            if last.round > found.round:
                return _with_answer(found, last)
        return found

    def save(self, run: str, kept: AnsweredRound) -> None:
        """Save the state after a round; on return, everything but the start is flushed to disk.

        Raises:
            FolderError: the disk is full or cannot be written; the state before is kept.
        """
        before = self.kept(run)
        with self._lock:
            self._run = ""  # read again from the disk if this fails
            folder = self.home / "state" / run
            digest = _save_start(folder, kept.round, kept.adapter) if kept.adapter else ""
            checkpoint.save(folder, _to_checkpoint(kept, digest), keep=KEPT_ROUNDS)
            _delete_starts(folder)
            sweep(self.home / "state", KEPT_RUNS)
            known = _read_record(self._place(run))
            self._write(run, _with_answer(known, kept))
            self._run, self._kept = run, (*before, kept)[-KEPT_ROUNDS:]

    def spend(self, run: str, round: int, id: str, position: int) -> None:
        """Record that the visit of a round diverged, so that it is not repeated.

        Raises:
            FolderError: the disk is full or cannot be written.
        """
        with self._lock:
            known = _read_record(self._place(run))
            self._write(run, replace(known, round=round, id=id, position=position, spent=True))

    def save_score(
        self, run: str, round: int, id: str, score: Mapping[str, Score], common: Adapter | None = None
    ) -> None:
        """Save the score of a round; call it before the score is released.

        Args:
            common: the adapter that was sent, where it is a part of this site's own model.

        Raises:
            FolderError: the disk is full or cannot be written.
        """
        with self._lock:
            known = _read_record(self._place(run))
            digest = _save_start(self.home / "state" / run, round, common) if common else ""
            scored = replace(known, scored=round, scored_id=id, score=score, scored_adapter=digest)
            self._write(run, scored)

    def sum_of(self, run: str, round: int) -> SumRecord | None:
        """What is recorded of a round's secure sum; None before an update has left under masks.

        Raises:
            FolderError: the record exists and cannot be read.
        """
        return next((each for each in self.record(run).sums if each.round == round), None)

    def save_sum(self, run: str, kept: SumRecord) -> None:
        """Record a round's secure sum, flushed to disk on return; the caller changes no recorded set.

        Raises:
            FolderError: the disk is full or cannot be written.
        """
        with self._lock:
            known = _read_record(self._place(run))
            others = [each for each in known.sums if each.round != kept.round]
            sums = sorted([*others, kept], key=lambda each: each.round)
            self._write(run, replace(known, sums=tuple(sums[-KEPT_ROUNDS:])))

    def runs(self) -> list[str]:
        """The runs of which answered rounds are kept, the one answered last at the end."""
        folder = self.home / "state"
        found = [path for path in folder.iterdir() if _round_folders(path)] if folder.is_dir() else []
        return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]

    def last_sent(self, run: str) -> tuple[int, Adapter] | None:
        """The last adapter of a run that was scored or trained from, with its round; None if it is lost.

        Raises:
            CheckpointError, FolderError: as for `kept` and `record`.
        """
        record, kept = self.record(run), self.kept(run)
        if not kept:
            return None
        folder, last = self.home / "state" / run, kept[-1]
        scored = _read_start(folder, record.scored, record.scored_adapter) if record.scored_adapter else None
        if scored is not None and record.scored > last.round:
            return record.scored, scored
        return (last.round, last.adapter) if last.adapter is not None else None

    def secret(self) -> int:
        """The secret seed of this site, drawn once and never disclosed.

        Raises:
            FolderError: it cannot be read or written.
        """
        return secret(self.home / "secret")

    def _place(self, run: str) -> Path:
        return self.home / "runs" / f"{run}.json"

    def _write(self, run: str, record: RunRecord) -> None:
        place = self._place(run)
        with disk_errors(place.parent):
            place.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(place, json.dumps(asdict(record)))
        for old in place.parent.glob("*.json"):
            with suppress(OSError):
                if old.stat().st_mtime < time.time() - YEAR_S:
                    # its answers first, so that none outlives the record of the sum that it was in
                    _delete(self.home / "state" / old.stem)
                    old.unlink()


def _delete(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def sweep(folder: Path, keep: int) -> None:
    """Delete all subfolders but the `keep` that changed last."""
    found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for old in found[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _read_record(place: Path) -> RunRecord:
    try:
        table = json.loads(place.read_text(encoding="utf8"))
        score = table.pop("score", None)
        scores = None if score is None else {name: Score(**each) for name, each in score.items()}
        sums = tuple(_read_sum(each) for each in table.pop("sums", ()))
        return RunRecord(**table, score=scores, sums=sums)
    except FileNotFoundError:
        return RunRecord()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FolderError(
            f"the record {place} cannot be read ({type(error).__name__}); delete it and"
            f" {place.parent.parent / 'state' / place.stem}, and the run starts again at the beginning of the"
            " data"
        ) from error


def _read_sum(table: Mapping[str, Any]) -> SumRecord:
    return SumRecord(
        round=table["round"], members=tuple(table["members"]), survivors=tuple(table["survivors"])
    )


def _with_answer(record: RunRecord, kept: AnsweredRound) -> RunRecord:
    return replace(record, round=kept.round, id=kept.id, position=kept.position, spent=False)


def _save_start(folder: Path, round: int, adapter: Adapter) -> str:
    """Write the adapter that a round was trained from, without flushing it, and return its digest."""
    data = bytes_of(dict(adapter))
    with disk_errors(folder):
        private.make(folder)
        unfinished = _start_path(folder, round).with_name("start.new")
        with open(unfinished, "wb", opener=private.owner_only) as file:
            file.write(data)
        unfinished.replace(_start_path(folder, round))
    return hashlib.sha256(data).hexdigest()


def _start_path(folder: Path, round: int) -> Path:
    return folder / f"start-{round + 1:05d}"  # numbered like its checkpoint


def _delete_starts(folder: Path) -> None:
    """Delete the starts of rounds whose checkpoint is gone."""
    with disk_errors(folder):
        for start in folder.glob("start-*"):
            if not start.with_name(start.name.replace("start", "round")).exists():
                start.unlink()


def _read_start(folder: Path, round: int, digest: str) -> Adapter | None:
    try:
        data = _start_path(folder, round).read_bytes()
    except OSError:
        return None
    return Adapter(tensors_from(data)) if hashlib.sha256(data).hexdigest() == digest else None


def _to_checkpoint(kept: AnsweredRound, start: str) -> Checkpoint:
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
        "base": kept.base,
        "settings": dict(kept.settings),
    }
    return Checkpoint(state=state, notes=notes)


def _read_round(path: Path) -> AnsweredRound:
    saved = checkpoint.load(path)
    notes, tensors, round = saved.notes, saved.state.transforms, saved.state.round - 1
    return AnsweredRound(
        round=round,
        id=notes["id"],
        update=_read_update(round, notes, tensors),
        start=notes["start"],
        position=notes["position"],
        # an earlier version kept only the positions
        different=notes.get("different", min(notes["position"] - notes["start"], notes["examples"])),
        examples=notes["examples"],
        memory=saved.clients[LEGACY_CLIENT] if saved.clients else Payload(tensors["memory"]),
        moved=notes["moved"] if "moved" in notes else _read_update(round, notes, tensors).delta.norm(),
        # an earlier version kept it in the checkpoint itself
        adapter=saved.state.adapter or _read_start(path.parent, round, notes.get("trained_from", "")),
        base=notes.get("base", ""),
        settings=notes.get("settings", {}),
    )


def _read_update(round: int, notes: Mapping[str, Any], tensors: Mapping[str, Any]) -> Update:
    return Update(
        round=round,
        clients=tuple(notes["clients"]) if "clients" in notes else (notes["client"],),
        delta=Payload(tensors["delta"]),
        extra=Payload(tensors["extra"]),
        weight=notes["weight"],
        metrics=notes["metrics"],
    )


def _round_folders(folder: Path) -> list[Path]:
    # other names are unfinished writes
    return sorted(folder.glob("round-*"), key=lambda path: int(path.name.removeprefix("round-")))
