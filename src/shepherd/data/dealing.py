"""Shared parts of the splits: shuffling, labels, client names, and `flwr_datasets`' partitioners."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from typing import Any

import numpy as np

from shepherd.core import seed_for
from shepherd.data import files
from shepherd.data.examples import Example
from shepherd.data.split import Parts
from shepherd.errors import DataError


def partitioned(partitioner: Any, order: Sequence[int], labels: Sequence[Any] = ()) -> list[list[int]]:
    """Indices of each part that a partitioner makes of the examples in this order."""
    columns: dict[str, list[Any]] = {"index": [int(index) for index in order]}
    if labels:
        columns["label"] = list(labels)
    partitioner.dataset = files.columns(**columns)
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():  # a bar, and advice on small parts
        warnings.simplefilter("ignore")
        return [list(partitioner.load_partition(k)["index"]) for k in range(partitioner.num_partitions)]


def shuffled(size: int, seed: int) -> list[int]:
    """A permutation of 0 to size - 1, drawn with the seed."""
    return [int(i) for i in np.random.default_rng(seed_for(seed, "split")).permutation(size)]


def labels(examples: Sequence[Example], field: str, by: str) -> list[str]:
    """Label of each example that a split uses: the value of `field`, or the category where `field` is "".

    Raises:
        DataError: an example has none.
    """
    found = [example.label if field else example.category for example in examples]
    for example, label in zip(examples, found, strict=True):
        if not label:
            raise DataError(
                f"{example.where or 'an example'} has no {field or 'category'}, which split.by {by!r} needs;"
                " fill it in, or name another field in split.field"
            )
    return found


def require_enough(examples: Sequence[Example], clients: int) -> None:
    """Raise DataError where there are more clients than examples."""
    if clients > len(examples):
        raise DataError(
            f"split.clients is {clients} but there are only {len(examples)} examples, so client "
            f"{_name(len(examples), clients)} would be empty; use fewer clients or more data"
        )


def numbered(parts: Iterable[Sequence[int]], clients: int) -> Parts:
    """Name the parts "client-00", "client-01" and so on."""
    return {_name(k, clients): part for k, part in enumerate(parts)}


def by_client(examples: Sequence[Example], by: str, need: str) -> Parts:
    """Group examples by the client that they name, in natural order ("c2" before "c10").

    Args:
        need: what the data must have, for the message.

    Raises:
        DataError: an example names no client.
    """
    found: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if not example.client:
            raise DataError(f"{example.where or 'an example'} has no client; {by} needs {need}")
        found.setdefault(example.client, []).append(index)
    return {name: found[name] for name in sorted(found, key=files.natural)}


def _name(client: int, clients: int) -> str:
    return f"client-{client:0{len(str(clients - 1))}d}"
