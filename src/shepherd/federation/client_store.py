"""The store of client memories: one file per client and round, next to the checkpoints.

    clients/
      9f3c...-00007.safetensors   what one client remembered after round 7, by a digest of its name

A checkpoint holds a `StoredMemory` for each client: the round and the digest of the file's bytes. So a round
that is interrupted or repeated leaves no trace (law 3), and an earlier checkpoint finds the memories that
belong to it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from safetensors.numpy import load as tensors_from
from safetensors.numpy import save as bytes_of

from shepherd.core import Payload
from shepherd.errors import CheckpointError
from shepherd.io import private
from shepherd.io.atomic import disk_errors


class StoredMemory(NamedTuple):
    """Identifies one stored memory of a client."""

    round: int
    """Rounds that were finished after the visit that stored it."""
    digest: str
    """SHA-256 of its bytes; "" in a store in memory."""


class ClientStore(Protocol):
    """Stores what clients remember between visits."""

    def get(self, client: str, kept: StoredMemory) -> Payload:
        """The memory that `put` stored.

        Raises:
            CheckpointError: it is missing or was changed.
        """

    def put(self, client: str, round: int, memory: Payload) -> StoredMemory:
        """Store a client's memory after `round` rounds, and delete those that no checkpoint needs."""

    def delete(self, client: str, kept: StoredMemory) -> None:
        """Delete what `put` stored; nothing happens where it is gone."""


@dataclass(slots=True)
class InMemory:
    """A `ClientStore` in this process's memory, with the last two memories of each client."""

    memories: dict[str, dict[int, Payload]] = field(default_factory=dict)

    def get(self, client: str, kept: StoredMemory) -> Payload:
        """See `ClientStore`."""
        return self.memories[client][kept.round]

    def put(self, client: str, round: int, memory: Payload) -> StoredMemory:
        """See `ClientStore`."""
        before = [each for each in self.memories.get(client, {}) if each < round][-1:]
        own = {each: self.memories[client][each] for each in before}
        self.memories[client] = {**own, round: memory}
        return StoredMemory(round, "")

    def delete(self, client: str, kept: StoredMemory) -> None:
        """See `ClientStore`."""
        self.memories.get(client, {}).pop(kept.round, None)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A `ClientStore` in a folder, for a run that keeps its last `checkpoints` checkpoints."""

    folder: Path
    checkpoints: int
    _rounds: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of which rounds there are files, by client: to list a folder of thousands at each visit takes long."""

    def get(self, client: str, kept: StoredMemory) -> Payload:
        """See `ClientStore`."""
        path = self._path(client, kept.round)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); {_fix(client)}") from error
        if hashlib.sha256(data).hexdigest() != kept.digest:
            raise CheckpointError(f"{path} is truncated or was changed; {_fix(client)}")
        return Payload(tensors_from(data))

    def put(self, client: str, round: int, memory: Payload) -> StoredMemory:
        """See `ClientStore`; when it returns, the memory is on the disk.

        Raises:
            FolderError: the disk is full or cannot be written.
        """
        data = bytes_of(dict(memory))
        path = self._path(client, round)
        with disk_errors(self.folder):
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
        return StoredMemory(round, hashlib.sha256(data).hexdigest())

    def delete(self, client: str, kept: StoredMemory) -> None:
        """See `ClientStore`.

        Raises:
            FolderError: the folder cannot be written.
        """
        with disk_errors(self.folder):
            self._path(client, kept.round).unlink(missing_ok=True)
        self._rounds[_name(client)] = [each for each in self._found(_name(client)) if each != kept.round]

    def _forget(self, client: str, round: int) -> None:
        """Delete the files that are older than any that a kept checkpoint refers to."""
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
    """File name for a client as hex digits, since its own name may not be a valid one."""
    return hashlib.sha256(client.encode()).hexdigest()[:NAME_DIGITS]


def _fix(client: str) -> str:
    return (
        f"it holds the memory of client {client}: delete the last checkpoint to resume from the one before,"
        " or start the run again in a new folder"
    )
