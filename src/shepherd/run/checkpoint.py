"""Checkpoints: the server state and the run's notes as one folder per round.

    checkpoints/
      round-00011/
      round-00012/
        tensors.safetensors   every tensor, bit for bit
        state.json            the round, the meaning of each tensor, and the notes
        SHA256SUMS            checksums of the two; `sha256sum -c` reads it

A checkpoint is written under another name, forced to the disk, and only then renamed: after a kill or on a
full disk it is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load as tensors_from
from safetensors.numpy import save as bytes_of

from shepherd.core import Adapter, Payload, ServerState
from shepherd.core.tree import flattened, rebuilt
from shepherd.errors import CheckpointError, FolderError
from shepherd.io import private
from shepherd.io.atomic import os_errors

FIX = "free the disk or repair the folder, then resume"
FORMAT = 2
READ = (1, 2)
"""Formats that this version reads; format 1 had no server optimiser, and held the clients' memories."""
TENSORS, STATE, SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"
FILES = (TENSORS, STATE, SUMS)
UNFINISHED = ".unfinished-"
"""Prefix of folders that are being written or deleted; the next save deletes what a kill left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything that a run needs to continue with the same bits."""

    state: ServerState
    clients: Mapping[str, Payload] = field(default_factory=dict)
    """Memory of each client, in a checkpoint of format 1; read but no longer written."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON object: the clients' positions and memories, the row of rounds.jsonl, the base's fingerprint."""


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `folder/round-00012`, delete all but the last `keep` rounds, and return its path.

    The checkpoint is on the disk when this returns; if it raises, the earlier ones are unchanged.

    Raises:
        FolderError: the disk is full, the folder cannot be written, or the round exists already.
    """
    place = folder / f"round-{checkpoint.state.round:05d}"
    with os_errors(f"checkpoint {place} cannot be written", FIX):
        _write(place, _contents(checkpoint))
    with os_errors(f"checkpoints before {place} cannot be deleted", FIX):
        _delete_before(place, keep)
    return place


def adopt(unfinished: Path, place: Path, *, keep: int) -> Path:
    """Move a checkpoint that was copied from another machine into place, if it is complete.

    Raises:
        CheckpointError: it is cut, changed, or of another round; it is then deleted.
        FolderError: the disk is full or the folder cannot be written.
    """
    try:
        _require_whole(unfinished, place)
        with os_errors(f"checkpoint {place} cannot be written", FIX):
            for name in FILES:
                with open(unfinished / name, "rb") as file:
                    os.fsync(file.fileno())
            unfinished.rename(place)
            private.sync(place.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    with os_errors(f"checkpoints before {place} cannot be deleted", FIX):
        _delete_before(place, keep)
    return place


def _require_whole(unfinished: Path, place: Path) -> None:
    try:
        whole = f"round-{load(unfinished).state.round:05d}" == place.name
    except Exception as error:  # sums may be right for any content
        raise CheckpointError(
            f"the copy of {place.name} is cut or changed; resume to take another"
        ) from error
    if not whole:
        raise CheckpointError(f"the copy of {place.name} holds another round; resume to take another")


def latest(folder: Path) -> Path | None:
    """Path of the last round's checkpoint in a folder, or None."""
    found = _by_round(folder)
    return found[-1] if found else None


def kept(folder: Path) -> dict[int, Path]:
    """Checkpoints in a folder, round -> path, ascending."""
    return {int(path.name.removeprefix("round-")): path for path in _by_round(folder)}


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that `save` wrote; every file is checked against its checksum first.

    Raises:
        CheckpointError: a file is missing, cut, changed or of another format; says how to continue.
    """
    sums = _read_sums(path)
    kept = _state_of(path, _read_checked(path, STATE, sums))
    tensors = tensors_from(_read_checked(path, TENSORS, sums))
    tree = rebuilt(kept["tree"], tensors)
    state = ServerState(
        round=kept["round"],
        adapter=Adapter(tree["adapter"]),
        memory={name: Payload(part) for name, part in tree["memory"].items()},
        optimiser={name: Payload(part) for name, part in tree.get("optimiser", {}).items()},
        transforms=tree["transforms"],
        reports=Payload(tree.get("reports", {})),
    )
    clients = {name: Payload(part) for name, part in tree.get("clients", {}).items()}
    return Checkpoint(state=state, clients=clients, notes=kept["notes"])


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    state = checkpoint.state
    tensors: dict[str, Any] = {}
    parts = {
        "adapter": state.adapter,
        "memory": state.memory,
        "optimiser": state.optimiser,
        "transforms": state.transforms,
        "reports": state.reports,
    }
    tree = flattened(parts, tensors)
    kept = {"format": FORMAT, "round": state.round, "tree": tree, "notes": checkpoint.notes}
    contents = {TENSORS: bytes_of(tensors), STATE: json.dumps(kept, indent=1).encode()}
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items())
    return {**contents, SUMS: "".join(lines).encode()}


def _write(place: Path, contents: Mapping[str, bytes]) -> None:
    if place.exists():
        raise FolderError(f"checkpoint {place} exists already; resume from it or delete it")
    private.make(place.parent)
    for left in place.parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left)
    unfinished = _unfinished(place)
    try:
        _write_files(unfinished, contents)
        unfinished.rename(place)
        private.sync(place.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)  # frees a full disk
        raise


def _write_files(unfinished: Path, contents: Mapping[str, bytes]) -> None:
    unfinished.mkdir(mode=private.FOLDER)
    for name, data in contents.items():
        with open(unfinished / name, "wb", opener=private.owner_only) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    private.sync(unfinished)


def _delete_before(place: Path, keep: int) -> None:
    found = _by_round(place.parent)
    for old in found[: max(0, found.index(place) + 1 - keep)]:
        doomed = old.rename(_unfinished(old))  # a half-deleted folder must not look like a checkpoint
        shutil.rmtree(doomed)


def _unfinished(place: Path) -> Path:
    return place.with_name(UNFINISHED + place.name)


def _by_round(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if re.fullmatch(r"round-\d{5,}", path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("round-")))


def _read_sums(path: Path) -> dict[str, str]:
    lines = _read_bytes(path, SUMS).decode(errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _read_checked(path: Path, name: str, sums: Mapping[str, str]) -> bytes:
    data = _read_bytes(path, name)
    if hashlib.sha256(data).hexdigest() != sums.get(name):
        raise CheckpointError(f"{path / name} is cut or changed; {_remedy(path)}")
    return data


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path / name} cannot be read ({error.strerror}); {_remedy(path)}") from error


def _state_of(path: Path, data: bytes) -> Any:
    kept = json.loads(data)
    if kept.get("format") not in READ:
        raise CheckpointError(
            f"{path / STATE} has format {kept.get('format')}, but this version reads {FORMAT}; "
            "resume with the version that wrote it"
        )
    return kept


def _remedy(path: Path) -> str:
    others = [other for other in _by_round(path.parent) if other != path]
    if others:
        return f"delete {path} to continue from {others[-1].name}"
    return "no other round is kept, so start the run again in a new folder"
