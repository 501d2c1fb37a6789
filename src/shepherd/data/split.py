"""Examples to clients, and what is held out. The only file that imports `flwr_datasets`."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import seed_for
from shepherd.data import files
from shepherd.data.examples import Example, by_category
from shepherd.errors import DataError
from shepherd.settings import SplitTable

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HoldOut:
    """Indices for training and for scoring, ascending; `duplicates` examples are in neither."""

    train: Indices
    heldout: Indices
    duplicates: int


def hold_out(examples: Sequence[Example], share: float, seed: int) -> HoldOut:
    """Set aside `share` of each category (rounded; at least one where there are two), with the seed.

    First an example whose instruction and context were seen before (but for case and white space; of a
    chat, all that comes before its last response) is removed. Then those whose instruction occurs once
    are drawn before the others, so that as long as a category has enough of them no held-out
    instruction is trained on with another context.
    A client's last example is never held out.

    Raises:
        DataError: a client (of a ready-made or natural split) holds nothing but duplicates.
    """
    kept = _distinct(examples)
    left = Counter(examples[index].client for index in kept)
    for client in {example.client for example in examples} - set(left):
        raise DataError(f"client {client} holds only duplicates of other clients' examples; remove its file")
    times = Counter(_folded(examples[index].instruction) for index in kept)
    drawn: list[int] = []
    for name, places in by_category([examples[index] for index in kept]).items():
        shuffled = np.random.default_rng(seed_for(seed, "holdout", name)).permutation(places)
        order = [kept[place] for place in shuffled]
        order.sort(key=lambda index: times[_folded(examples[index].instruction)] > 1)
        drawn += _spared(order, _quota(len(order), share), examples, left)
    return HoldOut(
        train=_indices(set(kept) - set(drawn)),
        heldout=_indices(drawn),
        duplicates=len(examples) - len(kept),
    )


def _distinct(examples: Sequence[Example]) -> list[int]:
    """The first of each prompt, ascending."""
    first: dict[tuple[tuple[str, str], ...], int] = {}
    for index, example in enumerate(examples):
        asked = tuple((_folded(turn.text), _folded(turn.context)) for turn in example.turns[:-1])
        first.setdefault(asked, index)
    return list(first.values())


def _indices(found: Iterable[int]) -> Indices:
    return np.array(sorted(found), dtype=np.int64)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _quota(size: int, share: float) -> int:
    return min(size - 1, max(1, round(size * share))) if share > 0 and size >= 2 else 0


def _spared(order: Sequence[int], quota: int, examples: Sequence[Example], left: Counter[str]) -> list[int]:
    """The first `quota` of `order` whose client keeps another example; `left` is brought up to date."""
    drawn: list[int] = []
    for index in order:
        client = examples[index].client
        if len(drawn) < quota and (not client or left[client] > 1):
            left[client] -= 1
            drawn.append(int(index))
    return drawn


def split(examples: Sequence[Example], table: SplitTable, seed: int) -> dict[str, Indices]:
    """Client name -> indices of its examples, ascending: disjoint, none empty, all covered.

    Names are "client-03", or the file's stem, or the field's value, in natural order. The seed alone
    decides; no global random generator is read.

    Raises:
        DataError: a client would be empty, or the examples lack what the split goes by; names the
            client or the key, and the mend.
    """
    if not examples:
        raise DataError("there is no example to split; check data.source and data.limit")
    if table.by in ("natural", "ready-made"):
        return _by_client(examples, table)
    if table.clients > len(examples):
        raise DataError(
            f"split.clients is {table.clients} but there are only {len(examples)} examples, so client "
            f"{_name(len(examples), table.clients)} would be empty; use fewer clients or more data"
        )
    shares = SPLITS[table.by](examples, table, seed)
    found = {_name(k, table.clients): _indices(part) for k, part in enumerate(shares)}
    return _checked(found, len(examples))


def _checked(found: dict[str, Indices], size: int) -> dict[str, Indices]:
    """What the partitioner gave, if every example has one client and every client an example."""
    for name, part in found.items():
        if not len(part):
            raise DataError(f"the split leaves client {name} empty; lower split.clients or use more data")
    if not np.array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(size)):
        raise DataError("the split lost or repeated an example; set split.by or split.alpha to another value")
    return found


def _name(client: int, clients: int) -> str:
    return f"client-{client:0{len(str(clients - 1))}d}"


def _by_client(examples: Sequence[Example], table: SplitTable) -> dict[str, Indices]:
    for example in examples:
        if not example.client:
            need = "split.field" if table.by == "natural" else "a folder with one file a client"
            raise DataError(f"{example.where or 'an example'} has no client; {table.by} needs {need}")
    from flwr_datasets.partitioner import NaturalIdPartitioner

    partitioner = NaturalIdPartitioner(partition_by="label")
    parts = _parts(partitioner, range(len(examples)), [example.client for example in examples])
    names = partitioner.partition_id_to_natural_id
    found = {names[k]: _indices(part) for k, part in enumerate(parts)}
    return {name: found[name] for name in sorted(found, key=files.natural)}


def _parts(partitioner: Any, order: Sequence[int], labels: Sequence[Any] = ()) -> list[list[int]]:
    """What the partitioner makes of the examples in this order, back as indices."""
    columns: dict[str, list[Any]] = {"index": [int(index) for index in order]}
    if labels:
        columns["label"] = list(labels)
    partitioner.dataset = files.columns(**columns)
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():  # a bar, and advice on small parts
        warnings.simplefilter("ignore")
        return [list(partitioner.load_partition(k)["index"]) for k in range(partitioner.num_partitions)]


def _iid(examples: Sequence[Example], table: SplitTable, seed: int) -> list[list[int]]:
    from flwr_datasets.partitioner import IidPartitioner

    return _parts(IidPartitioner(table.clients), _shuffled(len(examples), seed))


def _size(examples: Sequence[Example], table: SplitTable, seed: int) -> list[list[int]]:
    from flwr_datasets.partitioner import SizePartitioner

    sizes = sizes_for(len(examples), table.clients, table.size_exponent)
    return _parts(SizePartitioner(sizes), _shuffled(len(examples), seed))


def sizes_for(examples: int, clients: int, exponent: float) -> list[int]:
    """Client k's share of the examples is proportional to (k + 1) ** exponent; each gets at least one.

    >>> sizes_for(12, 3, 1.0)
    [2, 4, 6]
    """
    weights = np.linspace(1 / clients, 1, clients) ** exponent
    exact = 1 + (examples - clients) * weights / weights.sum()
    ideal = examples * weights / weights.sum()
    exact = ideal if ideal.min() >= 1 else exact
    sizes = np.floor(exact).astype(np.int64)
    missing = np.argsort(sizes - exact, kind="stable")[: examples - sizes.sum()]  # largest remainders
    sizes[missing] += 1
    return [int(size) for size in sizes]


def _dirichlet(examples: Sequence[Example], table: SplitTable, seed: int) -> list[list[int]]:
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=table.clients,
        partition_by="label",
        alpha=float(table.alpha),
        min_partition_size=1,
        seed=seed_for(seed, "dirichlet"),
    )
    try:
        return _parts(partitioner, range(len(examples)), _labels(examples, table))
    except ValueError as error:  # after its 11 draws
        raise DataError(
            f"a Dirichlet split with alpha {table.alpha:g} left some of the {table.clients} clients empty in "
            "every one of 11 draws; raise split.alpha or lower split.clients"
        ) from error


def _shards(examples: Sequence[Example], table: SplitTable, seed: int) -> list[list[int]]:
    """FedIT's split (arXiv 2305.05644): sort by category, cut into shards, deal them out.

    The partitioner cuts shards of one size and loses what remains. So the cut is made as even as it can
    be, the last example of each longer shard is laid aside, and it then joins its shard.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    count = table.clients * table.shards_per_client
    if count > len(examples):
        raise DataError(
            f"{table.clients} clients with {table.shards_per_client} shards each are {count} shards of only "
            f"{len(examples)} examples; lower split.clients or split.shards_per_client"
        )
    labels = _labels(examples, table)
    order = sorted(_shuffled(len(examples), seed), key=lambda index: labels[index])
    shards = np.array_split(np.array(order), count)
    size = len(examples) // count
    partitioner = ShardPartitioner(
        num_partitions=table.clients,
        partition_by="label",
        num_shards_per_partition=table.shards_per_client,
        seed=seed_for(seed, "shards"),
    )
    parts = _parts(partitioner, [int(i) for shard in shards for i in shard[:size]], range(size * count))
    extra = {int(shard[0]): int(shard[size]) for shard in shards if len(shard) > size}
    return [[*part, *(extra[index] for index in part if index in extra)] for part in parts]


def _labels(examples: Sequence[Example], table: SplitTable) -> list[str]:
    labels = [example.label if table.field else example.category for example in examples]
    for example, label in zip(examples, labels, strict=True):
        if not label:
            field = table.field or "category"
            raise DataError(
                f"{example.where or 'an example'} has no {field}, which split.by {table.by!r} goes by; fill "
                "it in, or name another field in split.field"
            )
    return labels


def _shuffled(size: int, seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed_for(seed, "split")).permutation(size)]


SPLITS: Mapping[str, Callable[[Sequence[Example], SplitTable, int], list[list[int]]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "size": _size,
}
