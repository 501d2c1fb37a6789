"""Examples to clients, and what is held out. The only file that imports `flwr_datasets`."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shepherd.core import seed_for
from shepherd.data import files
from shepherd.data.examples import Example
from shepherd.data.groups import FEW, Marks, Ties, joined, marks, shared_by_most, ties_shared
from shepherd.errors import DataError
from shepherd.settings import SplitTable

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HoldOut:
    """Indices for training, ascending, and for scoring, in the order in which they are to be scored."""

    train: Indices
    heldout: Indices
    """Any number from the front is spread evenly over categories, and over clients where there are any."""
    duplicates: int
    """Examples in neither: the same client has the same question with the same answer already."""
    copies: int = 0
    """Examples that another client has as well: each client keeps its own, all on one side."""
    shared: int = 0
    """Held-out examples that share a question with training, since too many hang together."""
    common: int = 0
    """Examples on both sides that share a first instruction which is too common to keep them together."""
    commonest: int = 0
    """How many of them share the commonest of these."""


def hold_out(examples: Sequence[Example], share: float, seed: int) -> HoldOut:
    """Set aside `share` of the examples, of each category and client its part, with the seed.

    First an example that its client has already, question and answer, is removed. Examples that share
    their first instruction with its context, or any user turn with its response, stay on one side, whole
    groups at a time, so the share is met to within one group. What too many share to tell anything, such as a
    greeting, does not tie; `common` counts it. Groups too large to be held out are trained on, where that
    leaves twice the share to choose from; else they are taken apart, by weaker ties first; `shared` counts
    what that costs. A client's last example is never held out.
    """
    found = {index: marks(example) for index, example in enumerate(examples)}
    kept = _distinct(examples, found)
    rng = np.random.default_rng(seed_for(seed, "holdout"))
    wanted = min(len(kept) - 1, max(1, round(share * len(kept)))) if share > 0 and len(kept) > 1 else 0
    room = _Room(
        categories=_quotas(Counter(examples[index].category for index in kept), wanted, rng),
        clients=_quotas(Counter(examples[index].client for index in kept), wanted, rng),
        trained=Counter(examples[index].client for index in kept),
        left=wanted,
        size=len(kept),
    )
    ties = Ties.among([found[index] for index in kept])
    tied = {index: ties.every(found[index]) for index in kept}
    held = _drawn(tied, found, ties, examples, room, rng) if wanted else set()
    train = [index for index in kept if index not in held]
    scored = joined({index: tied[index] for index in sorted(held)})
    common, commonest = shared_by_most(
        *([ties.common_questions(found[index]) for index in side] for side in (held, train))
    )
    return HoldOut(
        train=_indices(train),
        heldout=np.array(_scoring_order(scored, examples, seed), dtype=np.int64),
        duplicates=len(examples) - len(kept),
        copies=_copies([found[index] for index in kept]),
        shared=ties_shared((tied[index] for index in held), (tied[index] for index in train)),
        common=common,
        commonest=commonest,
    )


def hold_out_remarks(
    *, shared: int, copies: int, common: int = 0, commonest: int = 0, size: int = 0
) -> list[str]:
    """What is to be said of these counts of a `HoldOut` of `size` examples: a sentence each, none where 0."""
    said = []
    if common:
        said.append(
            f"{common:,} examples share a first instruction that up to {commonest / size:.0%} have;"
            " they were divided all the same"
        )
    if shared:
        said.append(
            f"{shared:,} held-out examples share a question with examples that are trained on: too many hang"
            " together by common turns to be kept apart, so scores on them may be too good"
        )
    if copies:
        said.append(f"{copies:,} examples are held by more than one client; each client keeps its own")
    return said


def _drawn(
    tied: Mapping[int, Iterable[Hashable]],
    found: Mapping[int, Marks],
    ties: Ties,
    examples: Sequence[Example],
    room: _Room,
    rng: np.random.Generator,
) -> set[int]:
    """Whole groups, and parts of those that are too large, where there is too little without them."""
    groups = joined(tied)
    for weaker in (ties.own, ties.questions, ties.whole, ties.none):
        held = _taken(groups, examples, room.copy(), rng)
        large = _too_large(groups, held, examples, room)
        if not large:
            return held
        whole = [group for place, group in enumerate(groups) if place not in large]
        apart = {index: weaker(found[index]) for place in sorted(large) for index in groups[place]}
        groups = whole + joined(apart)
    return _taken(groups, examples, room, rng)


def _too_large(
    groups: Sequence[list[int]], held: Set[int], examples: Sequence[Example], room: _Room
) -> set[int]:
    """Places of the groups to be taken apart, if any.

    Those that cannot be held out whole, where there is not twice of what is wanted besides: what is scored
    would else be of one kind, and none of it be trained on. And where less than half of what is wanted was
    held out, those that stood in the way.
    """
    spared = [room.spares([examples[index] for index in group]) for group in groups]
    sizes = [len(group) for group in groups]
    most = room.most()
    vast = {place for place, size in enumerate(sizes) if size > most}
    whole = sum(size for size, spare in zip(sizes, spared, strict=True) if spare and size <= most)
    if vast and whole < 2 * room.left:
        return vast
    if 2 * len(held) >= room.left:
        return set()
    left = room.left - len(held)
    return {
        place
        for place, (group, spare) in enumerate(zip(groups, spared, strict=True))
        if len(group) > (left if spare else min(left, FEW)) and held.isdisjoint(group)
    }


def _distinct(examples: Sequence[Example], found: Mapping[int, Marks]) -> list[int]:
    """The first of each conversation that a client has, ascending."""
    first: dict[tuple[str, bytes], int] = {}
    for index, mark in found.items():
        first.setdefault((examples[index].client, mark.whole), index)
    return list(first.values())


def _copies(kept: Sequence[Marks]) -> int:
    times = Counter(mark.whole for mark in kept)
    return sum(count for count in times.values() if count > 1)


def _quotas(sizes: Mapping[str, int], wanted: int, rng: np.random.Generator) -> Counter[str]:
    """How many of each category, or client: `wanted` in all, each its part to within one.

    Where there are no more of them than are wanted, each that has two gets at least one.
    """
    names = sorted(sizes)
    counts = np.array([sizes[name] for name in names], dtype=np.float64)
    parts = wanted * counts / max(1.0, counts.sum())
    small = np.zeros(len(names), dtype=bool)
    while wanted >= len(names) and (more := (parts < 1) & (counts > 1) & ~small).any():
        small |= more
        parts[small] = 1
        parts[~small] = (wanted - small.sum()) * counts[~small] / max(1.0, counts[~small].sum())
    # systematic sampling: each part is rounded up with the chance of its fraction, and the sum stays
    order = rng.permutation(len(names))
    ends = np.floor(np.concatenate([[0], np.cumsum(parts[order])]) + rng.random() + 1e-9).astype(int)
    return Counter({names[place]: int(n) for place, n in zip(order, np.diff(ends), strict=True)})


@dataclass(slots=True)
class _Room:
    """What may still be held out: of each category and client, in all, and so that each client keeps one."""

    categories: Counter[str]
    clients: Counter[str]
    trained: Counter[str]
    """How many examples each client has left to train on."""
    left: int
    size: int
    """How many examples there are, held out or not."""

    def copy(self) -> Self:
        parts = self.categories, self.clients, self.trained
        categories, clients, trained = (part.copy() for part in parts)
        return replace(self, categories=categories, clients=clients, trained=trained)

    def most(self) -> int:
        """How many examples one group may have that is held out whole: twice what is wanted, or a few."""
        return max(2 * self.left, min(FEW, self.size // 4))

    def spares(self, group: Sequence[Example]) -> bool:
        """Whether each client keeps an example without this group."""
        own = Counter(example.client for example in group if example.client)
        return all(self.trained[client] > count for client, count in own.items())

    def in_categories(self, group: Sequence[Example]) -> bool:
        """Whether the group fits into what is left of its categories."""
        own = Counter(example.category for example in group)
        return all(count <= self.categories[name] for name, count in own.items())

    def in_clients(self, group: Sequence[Example]) -> bool:
        """Whether the group fits into what is left of its clients."""
        own = Counter(example.client for example in group)
        return all(count <= self.clients[name] for name, count in own.items())

    def take(self, group: Sequence[Example]) -> None:
        self.categories.subtract(example.category for example in group)
        self.clients.subtract(example.client for example in group)
        self.trained.subtract(example.client for example in group)
        self.left -= len(group)


def _taken(
    groups: Sequence[list[int]], examples: Sequence[Example], room: _Room, rng: np.random.Generator
) -> set[int]:
    """Groups that fit their categories and clients, then their categories, then at all; then the smallest,
    if that comes nearer."""
    held: set[int] = set()
    most = room.most()
    order = [groups[place] for place in rng.permutation(len(groups))]
    for within in ((room.in_categories, room.in_clients), (room.in_categories,), ()):
        for group in order:
            members = [examples[index] for index in group]
            fits = len(group) <= room.left and held.isdisjoint(group) and room.spares(members)
            if fits and all(fit(members) for fit in within):
                room.take(members)
                held.update(group)
    open_ = [g for g in order if held.isdisjoint(g) and room.spares([examples[index] for index in g])]
    smallest: list[int] = min(open_, key=len, default=[])
    if smallest and _worth_it(len(smallest), len(held), room, most):
        room.take([examples[index] for index in smallest])
        held.update(smallest)
    return held


def _worth_it(group: int, held: int, room: _Room, most: int) -> bool:
    """Whether to hold out a group that is larger than what is left to hold out.

    It is, where that comes nearer to what is wanted; and where next to nothing would be held out without it,
    as long as no more than `most` are then.
    """
    if room.left <= 0 or held + group >= room.size:
        return False
    few = held < room.left and held + group <= most
    return few or group - room.left < room.left


def _scoring_order(groups: Sequence[Sequence[int]], examples: Sequence[Example], seed: int) -> list[int]:
    """At random, but in turn over the categories and over the clients, and one of a group before a second."""
    rng = np.random.default_rng(seed_for(seed, "scored"))
    rank = {index: place for group in groups for place, index in enumerate(rng.permutation(group).tolist())}
    members = _by_category(sorted(rank), examples)
    names = rng.permutation(sorted(members)).tolist()
    queues = [_Queue.of(members[name], rank, examples, seed_for(seed, "scored", name)) for name in names]
    order: list[int] = []
    taken: Counter[str] = Counter()
    while queues := [queue for queue in queues if queue.heap]:
        order += [queue.next(taken) for queue in queues]
    return order


@dataclass(frozen=True, slots=True)
class _Queue:
    """The examples of one category: the next is of the client of which the fewest have been taken."""

    heap: list[tuple[int, int, str]]
    """For each client: how many of it were taken when it was put here, its place by lot, its name."""
    own: Mapping[str, list[int]]
    """Of each client, the next one last."""

    @classmethod
    def of(
        cls, members: Sequence[int], rank: Mapping[int, int], examples: Sequence[Example], seed: int
    ) -> Self:
        rng = np.random.default_rng(seed)
        own: dict[str, list[int]] = {}
        for index in sorted(rng.permutation(members).tolist(), key=lambda index: -rank[index]):
            own.setdefault(examples[index].client, []).append(index)
        return cls(sorted(zip([0] * len(own), rng.permutation(len(own)).tolist(), own, strict=True)), own)

    def next(self, taken: Counter[str]) -> int:
        """Take one, and count it."""
        while self.heap[0][0] != taken[self.heap[0][2]]:  # since then another category has taken of it
            _, lot, client = self.heap[0]
            heapreplace(self.heap, (taken[client], lot, client))
        _, lot, client = heappop(self.heap)
        taken[client] += 1
        index = self.own[client].pop()
        if self.own[client]:
            heappush(self.heap, (taken[client], lot, client))
        return index


def _by_category(indices: Iterable[int], examples: Sequence[Example]) -> dict[str, list[int]]:
    """Category -> those of the indices that are of it, in their order."""
    found: dict[str, list[int]] = {}
    for index in indices:
        found.setdefault(examples[index].category, []).append(index)
    return found


def _indices(found: Iterable[int]) -> Indices:
    return np.array(sorted(found), dtype=np.int64)


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
