"""What a site keeps of a run between rounds: where it is in its data, its memory, and what it answered.

    HOME/state/RUN/round-00003/    a checkpoint: after the third round that the run asked of it
                                   tensors: the algorithm's memory, and the reply as it was sent

Each is written whole or not at all (`shepherd.checkpoint`), and the last two of a run are kept. None of it
ever leaves the site but the reply, to whoever asks the same question again.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shepherd import checkpoint
from shepherd.checkpoint import Checkpoint
from shepherd.core import Adapter, ServerState

KEEP = 2  # rounds of a run
RUNS = 8  # those answered last
OWN = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The state after one answered round. `position` counts examples taken, as `data.cursor` does."""

    round: int
    """The broadcast's: rounds finished before it."""
    id: str
    """Of the request."""
    reply: bytes
    position: int
    memory: Adapter


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
            CheckpointError: it is damaged; the message names the mend.
        """
        with self._lock:
            if run != self._run:
                self._kept = tuple(_read(path) for path in _places(self.home / "state" / run))
                self._run = run
            return self._kept

    def answered(self, run: str, id: str) -> bytes | None:
        """The reply to the request of this id, if it is still kept."""
        return next((kept.reply for kept in self.kept(run) if kept.id == id), None)

    def last(self, run: str) -> Kept | None:
        """The state after the last round that was answered."""
        return next(reversed(self.kept(run)), None)

    def before(self, run: str, round: int) -> Kept | None:
        """The state that round `round` begins with: that after the last answered round before it."""
        return next((kept for kept in reversed(self.kept(run)) if kept.round < round), None)

    def save(self, run: str, kept: Kept) -> None:
        """Keep the state after one more round; when this returns, it is on the disk.

        Raises:
            FolderError: the disk is full or cannot be written; what was there before stands.
        """
        before = self.kept(run)
        with self._lock:
            self._run = ""  # whatever happens now, the disk knows
            checkpoint.save(self.home / "state" / run, _checkpoint(kept), keep=KEEP)
            sweep(self.home / "state", RUNS)
            self._run, self._kept = run, (*before, kept)[-KEEP:]


def sweep(folder: Path, keep: int) -> None:
    """Delete all that lies in a folder but the `keep` things that changed last."""
    found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for old in found[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _checkpoint(kept: Kept) -> Checkpoint:
    reply = np.frombuffer(kept.reply, dtype=np.uint8)
    state = ServerState(round=kept.round + 1, adapter=Adapter(), transforms={"reply": reply})
    notes = {"id": kept.id, "position": kept.position}
    return Checkpoint(state=state, clients={OWN: kept.memory}, notes=notes)


def _read(path: Path) -> Kept:
    saved = checkpoint.load(path)
    return Kept(
        round=saved.state.round - 1,
        id=saved.notes["id"],
        reply=saved.state.transforms["reply"].tobytes(),
        position=saved.notes["position"],
        memory=saved.clients[OWN],
    )


def _places(folder: Path) -> list[Path]:
    # what begins otherwise is unfinished
    return sorted(folder.glob("round-*"), key=lambda path: int(path.name.removeprefix("round-")))
