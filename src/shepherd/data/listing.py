"""Sort the entries of a folder: data, files for testing, files of the system, and others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from shepherd.data import packed
from shepherd.errors import DataError

ARCHIVES = (".zip", ".7z", ".tar", ".tgz", ".rar")

_SYSTEM = re.compile(
    r"\..*|~\$.*|.*~|#.*#|thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|__macosx|__pycache__|\$recycle\.bin"
    r"|@eadir|system volume information|lost\+found|dataset_infos?\.json|dataset_dict\.json",
    re.IGNORECASE,
)
_TESTING = re.compile(
    r"(global[_-])?(test|testing|eval|evaluation|valid|validation)([\W\d_].*)?"
    r"|val|dev|global[_-](train|training|all|data)",
    re.IGNORECASE,
)
_SPARK = re.compile(r"part-\d{5}(-[0-9a-f-]{36})?.*")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(-[0-9a-f]{8,})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Entries of a folder by kind; `data` are data files, and folders that are data sets."""

    data: tuple[Path, ...]
    testing: tuple[str, ...]
    system: tuple[str, ...]
    others: tuple[str, ...]


def listing(
    entries: Iterable[Path], suffixes: Collection[str], folders: Collection[Path], sets: Collection[Path]
) -> Listing:
    """Sort the entries of a folder; `folders` are those that are folders, `sets` those that are data sets."""
    kinds: dict[str, list[Path]] = {"data": [], "testing": [], "system": [], "others": []}
    for entry in sorted(entries):
        is_data = entry in sets if entry in folders else packed.suffix(entry) in suffixes
        kinds[_kind(entry, is_data)].append(entry)
    return Listing(
        data=tuple(kinds["data"]),
        testing=tuple(path.name for path in kinds["testing"]),
        system=tuple(path.name for path in kinds["system"]),
        others=tuple(path.name for path in kinds["others"]),
    )


def _kind(entry: Path, is_data: bool) -> str:
    if _SYSTEM.fullmatch(entry.name):
        return "system"
    if not is_data:
        return "others"
    return "testing" if is_for_testing(packed.stem(entry)) else "data"


def is_for_testing(stem: str) -> bool:
    """Whether a file's name marks it as a file for testing: its first word is `test`, `eval` or similar.

    >>> [is_for_testing(stem) for stem in ("test", "Test_set", "eval-1", "global_test", "validation")]
    [True, True, True, True, True]
    >>> [is_for_testing(stem) for stem in ("Testklinik_Ulm", "Validierung", "Evangelisches_KH", "Val_Ga")]
    [False, False, False, False]
    """
    return _TESTING.fullmatch(stem) is not None


def sentences(found: Listing) -> list[str]:
    """Sentences on the entries of a folder that are left out, one for each reason."""
    archives = tuple(name for name in found.others if packed.suffix(Path(name)) in ARCHIVES)
    others = tuple(name for name in found.others if name not in archives)
    reasons = (
        (found.testing, "as files for testing by their names; rename those that are a client's"),
        (found.system, "as files of the system or of an editor"),
        (archives, "as archives; unpack those that hold data"),
        (others, "as no data files by their names"),
    )
    return [
        f"{_some(names)} {'is' if len(names) == 1 else 'are'} left out, {reason}"
        for names, reason in reasons
        if names
    ]


def grouped(files: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Group files by client: a file's stem, or the common name of its shards.

    Raises:
        DataError: two files belong to one client, or a shard is missing.
    """
    groups: dict[str, dict[int, Path]] = {}
    expected: dict[str, int] = {}
    for file in files:
        stem = packed.stem(file)
        if _SPARK.fullmatch(stem):  # Spark numbers tasks, some of which may write nothing
            parts = groups.setdefault("part", {})
            expected["part"] = len(parts) + 1
            parts[len(parts)] = file
            continue
        shard = _SHARD.fullmatch(stem)
        client, number = (shard[1], int(shard[2])) if shard else (stem, 0)
        count = int(shard[3]) if shard else 1
        if expected.setdefault(client, count) != count or number in groups.get(client, {}):
            raise DataError(
                f"folder {folder} has two files named {client}; rename one, since each file is a client"
            )
        groups.setdefault(client, {})[number] = file
    for client, shards in groups.items():
        missing = sorted(set(range(expected[client])) - shards.keys())
        if missing:
            raise DataError(
                f"folder {folder} lacks part {missing[0]:05} of {expected[client]:05} of {client}; fetch it,"
                " or rename the files that are there"
            )
    return {client: [shards[number] for number in sorted(shards)] for client, shards in groups.items()}


def _some(names: tuple[str, ...], most: int = 5) -> str:
    """The first names of a list, joined for a sentence.

    >>> _some(("a", "b")), _some(("a", "b", "c"), 2)
    ('a, b', 'a, b and 1 more')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
