"""What of a folder is data, and what lies beside it: files of the system, files for testing, other files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from shepherd.errors import DataError

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
    """The entries of a folder by what they are; `data` are files, and folders that are data sets."""

    data: tuple[Path, ...]
    testing: tuple[str, ...]
    system: tuple[str, ...]
    others: tuple[str, ...]


def listing(
    entries: Iterable[Path], suffixes: Collection[str], folders: Collection[Path], sets: Collection[Path]
) -> Listing:
    """Sort the entries of a folder, some of them `folders`, and of these some data sets."""
    kinds: dict[str, list[Path]] = {"data": [], "testing": [], "system": [], "others": []}
    for entry in sorted(entries):
        is_data = entry in sets if entry in folders else entry.suffix.lower() in suffixes
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
    return "testing" if is_for_testing(entry.stem) else "data"


def is_for_testing(stem: str) -> bool:
    """Whether a file's name says that it is no client's: `test` and its like as a word of its own, at first.

    >>> [is_for_testing(stem) for stem in ("test", "Test_set", "eval-1", "global_test", "validation")]
    [True, True, True, True, True]
    >>> [is_for_testing(stem) for stem in ("Testklinik_Ulm", "Validierung", "Evangelisches_KH", "Val_Ga")]
    [False, False, False, False]
    """
    return _TESTING.fullmatch(stem) is not None


def sentences(found: Listing) -> list[str]:
    """What is left out of a folder, one sentence a reason."""
    reasons = (
        (found.testing, "being for testing by name; rename what is a client's"),
        (found.system, "being of the system or of an editor"),
        (found.others, "being no data by name"),
    )
    return [
        f"{_some(names)} {'is' if len(names) == 1 else 'are'} left out, {reason}"
        for names, reason in reasons
        if names
    ]


def grouped(files: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the client that they are of: a file's stem, or the name that its shards have in common.

    Raises:
        DataError: two files are of one client, or a shard is missing.
    """
    groups: dict[str, dict[int, Path]] = {}
    wanted: dict[str, int] = {}
    for file in files:
        if _SPARK.fullmatch(file.stem):  # which numbers tasks, of which some may write nothing
            parts = groups.setdefault("part", {})
            wanted["part"] = len(parts) + 1
            parts[len(parts)] = file
            continue
        shard = _SHARD.fullmatch(file.stem)
        client, number = (shard[1], int(shard[2])) if shard else (file.stem, 0)
        count = int(shard[3]) if shard else 1
        if wanted.setdefault(client, count) != count or number in groups.get(client, {}):
            raise DataError(f"folder {folder} has two files named {client}; rename one, each is a client")
        groups.setdefault(client, {})[number] = file
    for client, shards in groups.items():
        missing = sorted(set(range(wanted[client])) - shards.keys())
        if missing:
            raise DataError(
                f"folder {folder} lacks part {missing[0]:05} of {wanted[client]:05} of {client}; fetch it, or"
                " rename the files that are there"
            )
    return {client: [shards[number] for number in sorted(shards)] for client, shards in groups.items()}


def _some(names: tuple[str, ...], most: int = 5) -> str:
    """Names for a sentence.

    >>> _some(("a", "b")), _some(("a", "b", "c"), 2)
    ('a, b', 'a, b and 1 more')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
