"""Compressed data files, read as what is in them. Only this file imports `pyarrow` for Zstandard.

What a file is, its first bytes say and not its name: a browser may unpack `a.jsonl.gz` and keep its name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from shepherd.errors import DataError
from shepherd.io.paths import PACKED_FILES

MAX_BYTES = 4 * 2**30
"""Most bytes that are unpacked of one file."""
MAX_RATIO, MIN_BYTES = 200, 2**28
"""Most bytes that are unpacked for each byte of a file, if that is more than the least bound."""


def suffix(path: Path) -> str:
    """Extension of a data file in lower case, without that of its compression.

    >>> suffix(Path("a.JSONL.gz")), suffix(Path("a.csv")), suffix(Path("a.gz"))
    ('.jsonl', '.csv', '')
    """
    return _inner(path).suffix.lower()


def stem(path: Path) -> str:
    """Name of a data file without its extension and that of its compression.

    >>> stem(Path("Ulm.jsonl.gz")), stem(Path("St. Anna.csv"))
    ('Ulm', 'St. Anna')
    """
    return _inner(path).stem


def _inner(path: Path) -> Path:
    return path.with_suffix("") if is_packed(path) else path


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() in PACKED_FILES


def opened(path: Path) -> BinaryIO:
    """Open a file for reading; a compressed one as what it holds.

    Raises:
        DataError: while it is read: it is damaged, or unpacks to more than the bound.
        OSError: the file cannot be read.
    """
    file = path.open("rb")
    head = file.peek(10)
    if not PACKED.match(head):
        return file
    file.close()
    opener = next(each for start, each in OPENERS.items() if re.match(start, head))
    return io.BufferedReader(_Bounded(opener(path), path), buffer_size=2**16)


def read(path: Path) -> bytes:
    """All bytes of a file, unpacked; raises as `opened` does."""
    with opened(path) as file:
        return file.read()


class _Bounded(io.RawIOBase):
    """What a compressed file holds, up to a bound on its size."""

    def __init__(self, source: Any, path: Path) -> None:
        self._source, self._path, self._read = source, path, 0
        self._most = min(MAX_BYTES, max(MIN_BYTES, MAX_RATIO * path.stat().st_size))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._source.read(len(buffer))
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"compressed file {self._path} is damaged ({error}); fetch it or compress it again"
            ) from error
        self._read += len(found)
        if self._read > self._most:
            raise DataError(
                f"compressed file {self._path} unpacks to more than {self._most // 2**20:,} MiB; unpack it if"
                " you trust it, and name the unpacked file"
            )
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._source.close()
        super().close()


def _zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


OPENERS: Mapping[bytes, Callable[[Path], Any]] = {
    rb"\x1f\x8b\x08": gzip.open,
    rb"BZh[1-9]1AY&SY": bz2.open,
    rb"\xfd7zXZ\x00|\x5d\x00\x00\x80\x00": lzma.open,
    rb"\x28\xb5\x2f\xfd": _zstd,
}
"""How to open each format, by the bytes that it begins with."""
PACKED = re.compile(b"|".join(OPENERS))
