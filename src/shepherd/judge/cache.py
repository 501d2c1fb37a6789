"""Append-only cache of the judge's replies, one line each, by a hash of the request.

Each line is on the disk before the next request is sent. `kill -9` can only truncate the last line, which is
then asked again; nothing else is lost, and nothing is ever overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shepherd.io import private
from shepherd.io.atomic import os_errors

FILE = "verdicts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply of the judge; `cut` if it ran into max_tokens. Token counts are 0 if not reported.

    `own_temperature` is true where the judge refused the requested temperature and replied at its own.
    """

    text: str
    cut: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    own_temperature: bool = False


@dataclass(frozen=True, slots=True)
class Cache:
    """Replies by key, and the open file; made by `opened`."""

    path: Path
    replies: dict[str, Reply]
    handle: int

    def add(self, key: str, reply: Reply, about: Mapping[str, Any]) -> None:
        """Keep a reply, synced to disk before returning; `about` is kept for a person to read.

        Raises:
            FolderError: the disk is full.
        """
        row = {"key": key, **asdict(reply), "about": dict(about)}
        with _os_errors(self.path):
            data = (json.dumps(row) + "\n").encode()
            while data:
                data = data[os.write(self.handle, data) :]
            os.fsync(self.handle)
        self.replies[key] = reply


@contextmanager
def opened(folder: Path) -> Iterator[Cache]:
    """Open the cache in `folder`, which is made if missing.

    Raises:
        FolderError: the folder cannot be used, or its disk is full.
    """
    path = folder / FILE
    with _os_errors(path):
        private.make(folder)
        content = path.read_bytes() if path.exists() else b""
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, private.FILE)
    try:
        if content and not content.endswith(b"\n"):
            with _os_errors(path):
                os.write(handle, b"\n")  # end a truncated line
        yield Cache(path, dict(_lines(content)), handle)
    finally:
        os.close(handle)


def read(folder: Path) -> dict[str, Reply]:
    """Read the replies in `folder`; writes nothing there.

    Raises:
        FolderError: the file exists and cannot be read.
    """
    path = folder / FILE
    with _os_errors(path):
        return dict(_lines(path.read_bytes())) if path.exists() else {}


def has_pair(folder: Path, first: str, second: str) -> bool:
    """Whether the folder has a reply about two arms of these names."""
    path = folder / FILE
    with _os_errors(path):
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    return any(_pair(line) == (first, second) for line in lines)


def _pair(line: bytes) -> tuple[str, str] | None:
    try:
        about = json.loads(line)["about"]
        return str(about["first"]), str(about["second"])
    except (ValueError, TypeError, KeyError):
        return None


def key(model: str, base_url: str, prompt: str, temperature: float, max_tokens: int, repeat: int) -> str:
    """Hash of everything that a reply depends on; `repeat` tells the repeats of one question apart."""
    parts = [model, base_url.rstrip("/"), prompt, float(temperature), max_tokens, repeat]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _lines(content: bytes) -> Iterator[tuple[str, Reply]]:
    """Readable lines; any other line was truncated, and its question is asked again."""
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
            key, reply = (
                str(row["key"]),
                Reply(
                    text=str(row["text"]),
                    cut=bool(row["cut"]),
                    prompt_tokens=int(row["prompt_tokens"]),
                    completion_tokens=int(row["completion_tokens"]),
                    own_temperature=bool(row.get("own_temperature")),
                ),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if reply.text.strip() or not reply.cut:  # cut before its first word: an earlier version kept those
            yield key, reply


def _os_errors(path: Path) -> AbstractContextManager[None]:
    return os_errors(
        f"the file of verdicts {path} cannot be used",
        "free some space or check its permissions, then run the same command again",
    )
