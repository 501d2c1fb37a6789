"""Keep the examples of a run while its data are made: few in memory, many in a temporary file.

A million short examples are 0.8 GB as objects, and 0.3 GB in the file. It holds private text, so it is
for its owner alone and has no name (on Windows, where an open file has one, it goes when it is closed): it is
gone with the examples, or with the process, however that ends.
"""

from __future__ import annotations

import errno
import marshal
import os
import tempfile
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from shepherd.data.chats import Turn
from shepherd.data.example import Example
from shepherd.errors import DataError

Places = Sequence[int] | NDArray[np.int64]
IN_MEMORY = 64 * 2**20
"""Most bytes of examples, about, that stay in memory as objects."""
OBJECT = 600
"""Bytes of an example as an object, beside its text."""


def keep(examples: Iterable[Example]) -> Sequence[Example]:
    """The examples as a tuple, or on disk where they are many: then each is made anew when it is asked for.

    Raises:
        DataError: the file cannot be written.
    """
    source, found, size = iter(examples), list[Example](), 0
    for example in source:
        found.append(example)
        size += OBJECT + sum(
            len(turn.text) + len(turn.context) for turn in (*example.turns, *example.rejected)
        )
        if size > IN_MEMORY:
            kept = _OnDisk()
            kept.add(found)
            found.clear()
            kept.add(source)
            return kept
    return tuple(found)


def chosen(examples: Sequence[Example], places: Places) -> Sequence[Example]:
    """The examples at `places`, which are looked up when they are asked for."""
    return _Chosen(examples, places)


class _Examples(Sequence[Example]):
    @abstractmethod
    def _one(self, place: int) -> Example:
        """The example at `place`, from 0."""

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        places = range(len(self))[index]
        return list(map(self._one, places)) if isinstance(places, range) else self._one(places)

    def __iter__(self) -> Iterator[Example]:
        return map(self._one, range(len(self)))

    def __repr__(self) -> str:
        """Their number, and no text."""
        return f"<{len(self):,} examples>"


class _Chosen(_Examples):
    def __init__(self, examples: Sequence[Example], places: Places) -> None:
        self._examples, self._places = examples, places

    def __len__(self) -> int:
        return len(self._places)

    def _one(self, place: int) -> Example:
        return self._examples[self._places[place]]


class _OnDisk(_Examples):
    """Examples in a file that only this object can reach.

    They are written by `marshal`: it keeps any text as it is, also one that no encoding can write, and what
    it reads runs nothing.
    """

    def __init__(self) -> None:
        with _disk_errors():
            self._file: BinaryIO = tempfile.TemporaryFile(prefix="shepherd-")  # noqa: SIM115
        self._ends = array("q", [0])
        self._names: dict[str, str] = {}
        """Categories and clients, so that each is held once."""
        self._whole: dict[int, Example] = {}
        """Examples whose check holds what `marshal` does not keep as it is, by their places."""

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it was not opened, or the disk is full
            self._file.close()

    def add(self, examples: Iterable[Example]) -> None:
        """Write more examples behind those that are there."""
        for example in examples:
            record = _record(example)
            if record is None:
                self._whole[len(self)] = example
                record = b""
            with _disk_errors():
                self._file.write(record)
            self._ends.append(self._ends[-1] + len(record))
        with _disk_errors():
            self._file.flush()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _one(self, place: int) -> Example:
        if place in self._whole:
            return self._whole[place]
        begin, end = self._ends[place], self._ends[place + 1]
        turns, rejected, category, client, *others = marshal.loads(_read(self._file, begin, end))
        label, group, where, check = others
        return Example(
            turns=_turns(turns),
            rejected=_turns(rejected),
            category=self._names.setdefault(category, category),
            client=self._names.setdefault(client, client),
            label=label,
            group=group,
            where=where,
            check=check,
        )


def _record(example: Example) -> bytes | None:
    """The example as bytes; None where `marshal` would not give it back."""
    turns, rejected = (
        [(turn.role, str(turn.text), str(turn.context), turn.trained) for turn in each]
        for each in (example.turns, example.rejected)
    )
    names = example.category, example.client, example.label, example.group, example.where
    check: Any = example.check
    try:
        if check is not None and marshal.loads(marshal.dumps(check)) != check:
            return None
        return marshal.dumps((turns, rejected, *names, check))
    except ValueError:  # a date, say
        return None


def _turns(records: Iterable[tuple[Any, ...]]) -> tuple[Turn, ...]:
    return tuple(
        Turn(role=role, text=text, context=context, trained=trained)
        for role, text, context, trained in records
    )


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    if hasattr(os, "pread"):  # which leaves the file's place alone, for other threads and for forks
        return os.pread(file.fileno(), end - begin, begin)
    file.seek(begin)
    return file.read(end - begin)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"refuses it ({error.strerror})"
        raise DataError(
            f"many examples are kept in a temporary file while they are read, and the disk of"
            f" {_folder()} {what}; free some space, or set TMPDIR to a folder that has it"
        ) from error


def _folder() -> str:
    with suppress(OSError):
        return tempfile.gettempdir()
    return "the temporary folder"
