"""What clients remember between their visits: one file a client and round, beside the checkpoints.

    clients/
      9f3c...-00007.safetensors   what one client remembered after round 7, by a digest of its name

A checkpoint holds a `Kept` for each client: the round, and the digest of the file's bytes. So a round that is
interrupted or asked again leaves no trace (law 3), and an earlier checkpoint finds what belonged to it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from safetensors.numpy import load as tensors_from
from safetensors.numpy import save as bytes_of

from shepherd import private
from shepherd.core import Payload
from shepherd.errors import CheckpointError
from shepherd.folder import mending


class Kept(NamedTuple):
    """Which memory of a client holds."""

    round: int
    """Rounds finished with the visit that left it."""
    digest: str
    """SHA-256 of its bytes; "" in a store that ends with its process."""


class ClientStore(Protocol):
    """Keeps what clients remember."""

    def get(self, client: str, kept: Kept) -> Payload:
        """What the client remembered then.

        Raises:
            CheckpointError: it is gone, or was changed.
        """

    def put(self, client: str, round: int, memory: Payload) -> Kept:
        """Keep what a client remembers after `round` rounds, and let go of what no checkpoint needs."""


@dataclass(slots=True)
class InMemory:
    """A `ClientStore` that ends with its process; it holds the last two memories of each client."""

    memories: dict[str, dict[int, Payload]] = field(default_factory=dict)

    def get(self, client: str, kept: Kept) -> Payload:
        """See `ClientStore`."""
        return self.memories[client][kept.round]

    def put(self, client: str, round: int, memory: Payload) -> Kept:
        """See `ClientStore`."""
        before = [each for each in self.memories.get(client, {}) if each < round][-1:]
        own = {each: self.memories[client][each] for each in before}
        self.memories[client] = {**own, round: memory}
        return Kept(round, "")


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A `ClientStore` in a folder, for a run that keeps its last `checkpoints` checkpoints."""

    folder: Path
    checkpoints: int
    _rounds: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of which rounds there are files, by client: to list a folder of thousands at each visit takes long."""

    def get(self, client: str, kept: Kept) -> Payload:
        """See `ClientStore`."""
        path = self._path(client, kept.round)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); {_fix(client)}") from error
        if hashlib.sha256(data).hexdigest() != kept.digest:
            raise CheckpointError(f"{path} is cut or changed; {_fix(client)}")
        return Payload(tensors_from(data))

    def put(self, client: str, round: int, memory: Payload) -> Kept:
        """See `ClientStore`; when it returns, the memory is on the disk.

        Raises:
            FolderError: the disk is full or cannot be written.
        """
        data = bytes_of(dict(memory))
        path = self._path(client, round)
        with mending(self.folder):
            private.make(self.folder)
            unfinished = path.with_suffix(".new")
            with open(unfinished, "wb", opener=private.owner_only) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            private.sync(self.folder)
            private.sync(self.folder.parent)
            self._forget(client, round)
        return Kept(round, hashlib.sha256(data).hexdigest())

    def _forget(self, client: str, round: int) -> None:
        """Delete what is older than the last one that the oldest kept checkpoint can name."""
        rounds = sorted({*self._found(_name(client)), round})
        oldest = round - self.checkpoints
        needed = max((each for each in rounds if each <= oldest), default=oldest)
        for each in rounds:
            if each < needed:
                self._path(client, each).unlink(missing_ok=True)
        self._rounds[_name(client)] = [each for each in rounds if each >= needed]

    def _found(self, name: str) -> list[int]:
        """The rounds of a client's files, by the one look at the folder that is taken."""
        if not self._rounds:
            for path in self.folder.glob("*.safetensors"):
                whose, _, number = path.stem.rpartition("-")
                if number.isdecimal():
                    self._rounds.setdefault(whose, []).append(int(number))
        return self._rounds.get(name, [])

    def _path(self, client: str, round: int) -> Path:
        return self.folder / f"{_name(client)}-{round:0{ROUND_DIGITS}d}.safetensors"


ROUND_DIGITS = 5
NAME_DIGITS = 32


def _name(client: str) -> str:
    """Hex digits for a client: its own name may be no file's."""
    return hashlib.sha256(client.encode()).hexdigest()[:NAME_DIGITS]


def _fix(client: str) -> str:
    return (
        f"it holds what client {client} remembered: delete the last checkpoint to go on from the one before,"
        " or start the run again in a new folder"
    )
