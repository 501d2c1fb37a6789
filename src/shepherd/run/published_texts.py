"""Folders of this machine in the texts that `shepherd push` would publish."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shepherd.errors import HubError
from shepherd.run import folder, lineage
from shepherd.settings import PATHS

TEXTS = (".json", ".md", ".jinja", ".txt")
"""Ends of names of files in which no path of this machine may stand."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
"""Files of the base that have a hundred thousand words, and `/root` or `/etc/passwd` among them."""
SYSTEM = (
    *(
        "Applications",
        "Library",
        "System",
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "proc",
        "run",
    ),
    *("sbin", "sys", "usr", "var"),
)
"""Folders at the root of a disk that are the system's, and the same on other machines."""

_ADDRESS = re.compile(r"\b(?!file:)\w+://\S*")
_PATH = re.compile(r"(?<![\w.~-])/+(\w[^\s/\"'`<>|(){}\[\],;:*?\\]*)/+([^\s/\"'`<>|(){}\[\],;:*?\\]+)")


def require_no_paths(files: Iterable[Path], run: Path, written: Path) -> None:
    """Raise HubError if a text names a folder or a file of this machine.

    Those of the run file count whether they are there or not, and others if they are.

    Args:
        run: the run's folder.
        written: the folder of the files.
    """
    known = {os.path.normpath(place) for place in _places(run, written)} - {"/"}
    for path in files:
        is_text = path.name.endswith(TEXTS) or not path.suffix
        if is_text and (found := _found(path, known)) is not None:
            raise HubError(
                f"{path.name} would publish {found}, a folder or file of this machine; export it with"
                " `shepherd export`, remove that from the file, and publish the folder by hand"
            )


def _places(run: Path, written: Path) -> Iterator[str]:
    """What the run reads and writes here."""
    given = [str(written), str(run.absolute()), str(Path.home())]
    given += _paths(folder.planned(run).model_dump())
    given += filter(os.path.isabs, [lineage.source(run).get("file", "")])
    for each in given:
        yield each
        yield os.path.realpath(each)


def _paths(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Absolute paths in a run file: of the keys that are for one, and of any other if it is there."""
    for key, value in table.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Mapping):
                yield from _paths(each, key)
            elif isinstance(each, str) and os.path.isabs(each) and _is_place(above, key, each):
                yield each


def _is_place(above: str, key: str, text: str) -> bool:
    return (above, key) in PATHS or key == "output" or os.path.exists(text)


def _found(path: Path, known: Iterable[str]) -> str | None:
    """A place of this machine that a file names; the longest of those that are known."""
    text = _text(path)
    vocabulary = path.name in VOCABULARIES
    for place in sorted(known, key=len, reverse=True):
        if vocabulary and place.count("/") < 2:
            continue
        if place in text and re.search(rf"(?<![\w.~-]){re.escape(place)}(?![\w-]|\.\w)", text):
            return place
    return None if vocabulary else next(_existing(text), None)


def _text(path: Path) -> str:
    """A file's text; of JSON, the texts in it, since a path may be escaped there."""
    text = path.read_bytes().decode("utf8", errors="replace")
    if path.suffix == ".json":
        with suppress(ValueError):
            return "\n".join(_strings(json.loads(text)))
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _existing(text: str) -> Iterator[str]:
    """What a text names of this disk: two folders of a path are enough, and nothing of the system counts."""
    for top, name in _PATH.findall(_ADDRESS.sub("", text)):
        place = f"/{top}/{name.rstrip('.!')}"
        if top not in SYSTEM and os.path.exists(place):
            yield place
