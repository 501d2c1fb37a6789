"""What is held out of training, to be scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shepherd.core import seed_for
from shepherd.data.examples import Example
from shepherd.data.groups import FEW, Groups, Marked, Ties, Whose, joined, shared_by_most, ties_shared
from shepherd.io.progress import many

Indices = NDArray[np.int64]
SHOWN, UNUSUAL = 3, 0.05
"""Of duplicates, this many are shown; of more than this share of the examples, there is a warning."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HoldOut:
    """Indices for training, ascending, and for scoring, in the order in which they are to be scored."""

    train: Indices
    heldout: Indices
    """Any number from the front is spread evenly over categories, and over clients where there are any."""
    duplicates: int
    """Examples in neither: the same client has the same question with the same answer already."""
    repeated: int = 0
    """The same, where they are kept as well."""
    repeats: tuple[tuple[int, int], ...] = ()
    """The first few of them, each with the example that it is equal to."""
    copies: int = 0
    """Examples that another client has as well: each client keeps its own, all on one side."""
    shared: int = 0
    """Held-out examples that share a question with training, since too many hang together."""
    common: int = 0
    """Examples on both sides that share a first instruction which is too common to keep them together."""
    commonest: int = 0
    """How many of them share the commonest of these."""
    tested: int = 0
    """Examples in neither: the test set holds them, or one of their group."""
    first_tested: int | None = None
    """The first of them."""
    first_shared: int | None = None
    """The first example of the test set that shares a question with training."""


def hold_out(
    examples: Sequence[Example], share: float, seed: int, *, keep_duplicates: bool = False
) -> HoldOut:
    """Set aside `share` of the examples, of each category and client its part, with the seed.

    First an example that its client has already, question and answer, is removed, unless duplicates are kept.
    Examples that share
    their first instruction with its context, or any user turn with its response, stay on one side, whole
    groups at a time, so the share is met to within one group. What too many share to tell anything, such as a
    greeting, does not tie; `common` counts it. Groups too large to be held out are trained on, where that
    leaves twice the share to choose from; else they are taken apart, by weaker ties first; `shared` counts
    what that costs. A group that the data name is never taken apart. A client's last example is never held
    out.
    """
    found = Marked.of(examples)
    distinct, repeats = _distinct(found, len(examples))
    kept = np.arange(len(examples)) if keep_duplicates else distinct
    rng = np.random.default_rng(seed_for(seed, "holdout"))
    wanted = min(len(kept) - 1, max(1, round(share * len(kept)))) if share > 0 and len(kept) > 1 else 0
    categories, clients = (
        Counter(getattr(found.whose[index], name) for index in kept) for name in ("category", "client")
    )
    room = _Room(
        categories=_quotas(categories, wanted, rng),
        clients=_quotas(clients, wanted, rng),
        trained=clients,
        left=wanted,
        size=len(kept),
    )
    ties = Ties.among(found.only(kept))
    tied = ties.every()
    held = np.array(sorted(_drawn(kept, ties, room, rng)) if wanted else [], np.int64)
    train = np.setdiff1d(kept, held, assume_unique=True)
    sides = found.at(held), found.at(train)
    common, commonest = shared_by_most(ties.common_questions(), *sides)
    return HoldOut(
        train=train,
        heldout=np.array(_scoring_order(joined(held, tied), found.whose, seed), dtype=np.int64),
        duplicates=len(examples) - len(kept),
        repeated=len(repeats),
        repeats=tuple(repeats[:SHOWN]),
        copies=_copies(found, distinct),
        shared=len(ties_shared(tied, *sides)),
        common=common,
        commonest=commonest,
    )


def set_apart(
    examples: Sequence[Example], tested: Sequence[Example], seed: int, *, keep_duplicates: bool = False
) -> HoldOut:
    """Train on `examples` without those that a test set holds, and score the test set, all of it.

    An example that is in the test set, whatever its system text, or of whose group one is, is not trained
    on. What shares a question with the test set but has another answer is trained on, and `shared` counts
    the examples of the test set that it concerns.

    Returns:
        Indices into `examples` followed by `tested`.
    """
    size = len(examples)
    found = Marked.of(chain(examples, tested))
    scored = np.arange(size, size + len(tested))
    distinct, repeats = _distinct(found, size)
    kept = np.arange(size) if keep_duplicates else distinct
    in_test = found.at(scored)
    gone = np.unique(
        np.concatenate(
            [ties_shared(found.edges[kind], found.at(kept), in_test) for kind in ("said", "group")]
        )
    )
    train = np.setdiff1d(kept, gone, assume_unique=True)
    trained = found.at(train)
    ties = Ties.among(found.only(np.concatenate([train, scored])))
    tied = ties.every()
    shared = ties_shared(tied, in_test, trained)
    common, commonest = shared_by_most(ties.common_questions(), in_test, trained)
    return HoldOut(
        train=train,
        heldout=np.array(_scoring_order(joined(scored, tied), found.whose, seed), dtype=np.int64),
        duplicates=size - len(kept),
        repeated=len(repeats),
        repeats=tuple(repeats[:SHOWN]),
        copies=_copies(found, distinct),
        shared=len(shared),
        common=common,
        commonest=commonest,
        tested=len(gone),
        first_tested=_first(gone),
        first_shared=_first(shared),
    )


def duplicate_remarks(repeated: int, *, kept: bool, size: int, places: Sequence[str]) -> list[str]:
    """What is to be said of `repeated` examples of `size` that their client has already.

    Args:
        kept: whether they are trained on all the same.
        places: where the first of them are.
    """
    if not repeated:
        return []
    done = 'kept (data.duplicates = "keep")' if kept else "left out"
    rest = f"; the first: {'; '.join(places)}" if places else ""
    equal = "equals an earlier one" if repeated == 1 else "equal an earlier one each"
    return [
        f"{many(repeated, 'example')} ({repeated / size:.1%}) {equal} of the same client, question and"
        f" answer, and {'is' if repeated == 1 else 'are'} {done}{rest}"
    ]


def duplicate_warning(repeated: int, *, kept: bool, size: int) -> str:
    """Warning if the share of duplicates suggests a mistake; "" if not."""
    if repeated <= UNUSUAL * size:
        return ""
    fix = (
        'set data.duplicates = "drop" to leave them out'
        if kept
        else 'set data.duplicates = "keep" if they are meant'
    )
    return (
        f"warning: {repeated / size:.1%} of the examples are duplicates, more than {UNUSUAL:.0%}; check that"
        f" data.fields names what tells them apart, or {fix}"
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


def _drawn(kept: Indices, ties: Ties, room: _Room, rng: np.random.Generator) -> set[int]:
    """Whole groups, and parts of those that are too large, where there is too little without them."""
    whose = ties.of.whose
    groups = joined(kept, ties.every())
    for weaker in (ties.own, ties.questions, ties.whole, ties.none):
        held = _taken(groups, whose, room.copy(), rng)
        large = _too_large(groups, held, whose, room)
        if not large.any():
            return held
        groups = groups.of(~large) + joined(groups.of(large).members, weaker())
    return _taken(groups, whose, room, rng)


def _too_large(groups: Groups, held: Set[int], whose: Sequence[Whose], room: _Room) -> NDArray[np.bool_]:
    """Of each group, whether it is to be taken apart.

    Those that cannot be held out whole, where there is not twice of what is wanted besides: what is scored
    would else be of one kind, and none of it be trained on. And where less than half of what is wanted was
    held out, those that stood in the way.
    """
    sizes = groups.sizes
    vast = sizes > room.most()
    enough = 2 * len(held) >= room.left
    if not vast.any() and enough:
        return vast
    spared = np.array([room.spares([whose[index] for index in group]) for group in groups])
    if vast.any() and int(sizes[spared & ~vast].sum()) < 2 * room.left:
        return vast
    if enough:
        return np.zeros_like(vast)
    left = room.left - len(held)
    large = sizes > np.where(spared, left, min(left, FEW))
    for place in np.flatnonzero(large).tolist():
        large[place] = held.isdisjoint(groups[place])
    return large


def _distinct(found: Marked, size: int) -> tuple[Indices, list[tuple[int, int]]]:
    """The first of each conversation that a client has, of the first `size` examples, ascending; and each
    later one with its first."""
    clients: dict[str, int] = {}
    own = np.array([clients.setdefault(each.client, len(clients)) for each in found.whose[:size]], np.int64)
    keys = own * found.numbers + found.edges["whole"].marks[:size]
    first, same = np.unique(keys, return_index=True, return_inverse=True)[1:]
    firsts = first[same]
    later = np.flatnonzero(firsts != np.arange(size))
    return np.sort(first), list(zip(later.tolist(), firsts[later].tolist(), strict=True))


def _copies(found: Marked, distinct: Indices) -> int:
    times = np.bincount(found.edges["whole"].marks[distinct], minlength=1)
    return int(times[times > 1].sum())


def _first(places: Indices) -> int | None:
    return int(places[0]) if len(places) else None


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

    def spares(self, group: Sequence[Whose]) -> bool:
        """Whether each client keeps an example without this group."""
        own = Counter(example.client for example in group if example.client)
        return all(self.trained[client] > count for client, count in own.items())

    def in_categories(self, group: Sequence[Whose]) -> bool:
        """Whether the group fits into what is left of its categories."""
        own = Counter(example.category for example in group)
        return all(count <= self.categories[name] for name, count in own.items())

    def in_clients(self, group: Sequence[Whose]) -> bool:
        """Whether the group fits into what is left of its clients."""
        own = Counter(example.client for example in group)
        return all(count <= self.clients[name] for name, count in own.items())

    def take(self, group: Sequence[Whose]) -> None:
        self.categories.subtract(example.category for example in group)
        self.clients.subtract(example.client for example in group)
        self.trained.subtract(example.client for example in group)
        self.left -= len(group)


def _taken(groups: Groups, whose: Sequence[Whose], room: _Room, rng: np.random.Generator) -> set[int]:
    """Groups that fit their categories and clients, then their categories, then at all; then the smallest,
    if that comes nearer."""
    held: set[int] = set()
    most = room.most()
    order = rng.permutation(len(groups))
    sizes = groups.sizes[order]
    for within in ((room.in_categories, room.in_clients), (room.in_categories,), ()):
        for place in order[sizes <= room.left]:
            group = groups[place]
            members = [whose[index] for index in group]
            fits = len(group) <= room.left and held.isdisjoint(group) and room.spares(members)
            if fits and all(fit(members) for fit in within):
                room.take(members)
                held.update(group)
                if not room.left:
                    return held
    by_size = (groups[place] for place in order[np.argsort(sizes, kind="stable")])
    smallest: list[int] = next(
        (g for g in by_size if held.isdisjoint(g) and room.spares([whose[index] for index in g])), []
    )
    if smallest and _worth_it(len(smallest), len(held), room, most):
        room.take([whose[index] for index in smallest])
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


def _scoring_order(groups: Iterable[list[int]], whose: Sequence[Whose], seed: int) -> list[int]:
    """At random, but in turn over the categories and over the clients, and one of a group before a second."""
    rng = np.random.default_rng(seed_for(seed, "scored"))
    rank = {index: place for group in groups for place, index in enumerate(rng.permutation(group).tolist())}
    members = _by_category(sorted(rank), whose)
    names = rng.permutation(sorted(members)).tolist()
    queues = [_Queue.of(members[name], rank, whose, seed_for(seed, "scored", name)) for name in names]
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
    def of(cls, members: Sequence[int], rank: Mapping[int, int], whose: Sequence[Whose], seed: int) -> Self:
        rng = np.random.default_rng(seed)
        own: dict[str, list[int]] = {}
        for index in sorted(rng.permutation(members).tolist(), key=lambda index: -rank[index]):
            own.setdefault(whose[index].client, []).append(index)
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


def _by_category(indices: Iterable[int], whose: Sequence[Whose]) -> dict[str, list[int]]:
    """Category -> those of the indices that are of it, in their order."""
    found: dict[str, list[int]] = {}
    for index in indices:
        found.setdefault(whose[index].category, []).append(index)
    return found
