"""A run's data on disk.

A run folder keeps its own tokens, so that a run goes on when the source has moved or vanished:

data/
  index.json       clients, their examples' categories, and what was cut, dropped and left out
  heldout.jsonl    the held-out examples, in the order in which they are drawn to be scored
  heldout/         their tokens
  root/            tokens of the server's own examples, if there are any
  clients/         all clients' tokens, one after another in the order of index.json
  rejected/        the worse answers to these, and heldout-rejected/ to those, where an objective compares two
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.data import tokens as stored
from shepherd.data.dataset import TokenisedData
from shepherd.data.examples import Example, Turn
from shepherd.data.noted import Notes
from shepherd.errors import DataError, FolderError
from shepherd.io import private
from shepherd.io.atomic import disk_errors, write_atomic

INDEX, HELDOUT = "index.json", "heldout.jsonl"
REJECTED, HELDOUT_REJECTED = "rejected", "heldout-rejected"
NO_CATEGORIES: Mapping[str, Any] = {"names": [], "clients": {}}


def save(folder: Path, prepared: TokenisedData) -> None:
    """Write a run's data; `index.json` comes last, so that half a folder is never taken for a whole one.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    with disk_errors(folder):
        private.make(folder)
        stored.save_together(folder / "clients", list(prepared.clients.values()))
        prepared.heldout.save(folder / "heldout")
        if prepared.rejected:
            stored.save_together(folder / REJECTED, [prepared.rejected[name] for name in prepared.clients])
        if prepared.heldout_rejected is not None:
            prepared.heldout_rejected.save(folder / HELDOUT_REJECTED)
        if prepared.root is not None:
            prepared.root.save(folder / "root")
    lines = [json.dumps(_plain(example)) + "\n" for example in prepared.heldout_examples]
    write_atomic(folder / HELDOUT, "".join(lines))
    index = {
        "clients": list(prepared.clients),
        "sizes": list(map(len, prepared.clients.values())),
        "mixes": prepared.category_counts,
        "summary": prepared.summary,
        "dropped": list(prepared.dropped),
        "rows": prepared.notes.plain(),
        "places": {key: list(places) for key, places in prepared.places.items()},
        "by_client": {name: dict(counts) for name, counts in prepared.by_client.items()},
        "left_out": list(prepared.left_out),
        "example_categories": _numbered(prepared.example_categories),
    }
    write_atomic(folder / INDEX, json.dumps(index, indent=1))


def load(folder: Path) -> TokenisedData:
    """Read back what `save` wrote; the tokens are memory-mapped.

    Raises:
        FolderError: something is missing or damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf8"))
        lines = (folder / HELDOUT).read_text(encoding="utf8").splitlines()
        names = index["clients"]
        if "sizes" in index:
            parts = stored.load(folder / "clients").split(index["sizes"])
        else:  # an earlier version had a folder for each client
            parts = [stored.load(folder / "clients" / f"{number:04d}") for number in range(len(names))]
        clients = dict(zip(names, parts, strict=True))
        worse = stored.load(folder / REJECTED).split(index["sizes"]) if (folder / REJECTED).is_dir() else None
        unlike = stored.load(folder / HELDOUT_REJECTED) if (folder / HELDOUT_REJECTED).is_dir() else None
        if unlike is not None and len(unlike) != len(lines):
            raise DataError(f"{HELDOUT} has {len(lines)} examples, and {len(unlike)} have a worse answer")
        heldout = stored.load(folder / "heldout")
        if len(lines) != len(heldout):
            raise DataError(f"{HELDOUT} has {len(lines)} examples and their tokens {len(heldout)}")
        return TokenisedData(
            clients=clients,
            category_counts=index["mixes"],
            heldout=heldout,
            heldout_examples=[_example(json.loads(line)) for line in lines],
            summary=index["summary"],
            dropped=index.get("dropped", []),
            notes=Notes.of(index.get("rows", {})),
            places=index.get("places", {}),
            by_client=index.get("by_client", {}),
            left_out=index.get("left_out", []),
            root=stored.load(folder / "root") if (folder / "root").is_dir() else None,
            example_categories=_named(**index.get("example_categories", NO_CATEGORIES)),
            rejected={} if worse is None else dict(zip(names, worse, strict=True)),
            heldout_rejected=unlike,
        )
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise FolderError(
            f"the data of the run in {folder.parent} cannot be read ({error}); restore {folder} from a copy,"
            " or start the run again in a new folder"
        ) from error


def whole(folder: Path) -> bool:
    """Whether `save` finished there."""
    return (folder / INDEX).is_file()


def digest(prepared: TokenisedData) -> str:
    """SHA-256 of what each client trains on and of what is held out, by their tokens."""
    found = hashlib.sha256()
    worse = [] if prepared.heldout_rejected is None else [prepared.heldout_rejected]
    named = {**prepared.trained_on, **{f"\0held {n}": p for n, p in enumerate([prepared.heldout, *worse])}}
    for name, part in named.items():
        found.update(f"{name}\0{len(part)}\0".encode())
        for array in (part.ids, part.loss_mask, part.offsets):
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _numbered(categories: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Categories as numbers, since there are few names and many examples."""
    names = sorted({name for each in categories.values() for name in each})
    numbers = {name: number for number, name in enumerate(names)}
    return {"names": names, "clients": {name: [numbers[c] for c in of] for name, of in categories.items()}}


def _named(names: Sequence[str], clients: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    return {name: [names[number] for number in of] for name, of in clients.items()}


def _plain(example: Example) -> dict[str, Any]:
    return {
        "turns": [asdict(turn) for turn in example.turns],
        "category": example.category,
        "client": example.client,
        "check": example.check,
        **({"rejected": [asdict(turn) for turn in example.rejected]} if example.rejected else {}),
    }


def _example(row: Mapping[str, Any]) -> Example:
    return Example(
        turns=tuple(Turn(**turn) for turn in row["turns"]),
        rejected=tuple(Turn(**turn) for turn in row.get("rejected", ())),
        category=row["category"],
        client=row["client"],
        check=row["check"],
    )
