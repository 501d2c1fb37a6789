"""Which examples hang together: training on one of them would give away what another one asks or answers.

Texts are compared folded (`folding.py`). Each is kept as a digest, and then as a number, so that a million
examples take some tens of bytes each, and what ties them is found by array operations.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from shepherd.data.examples import Example, Turn
from shepherd.data.folding import folded, seen, spaced

Places = NDArray[np.int64]
"""Places of examples among those of which the marks were taken."""

_BLANK = re.compile(r"\n\s*\n")
COMMON, FEW = 0.01, 20
"""What more than this share of the conversations hold is too common to be a tie, where they are not few."""
DIGEST_BYTES = 12
KINDS = ("whole", "said", "asked", "questions", "exchanges", "later", "bare", "group")
"""Kinds of `Marks`; of the first three each example has exactly one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Digests of what an example says, in each way that a question about a text may be written.

    The text may stand in the field of the context, in the user turn, or in the system turn.

    whole: every turn, responses letter by letter, since another spelling is another answer. said: every turn
    but the system's. asked: every turn but the last response. questions: its first user turn.
    exchanges: each user turn with the response to it. later: the user turns after the first. bare: the
    exchanges without what may be their context. group: what the data say it belongs to, if anything.
    """

    whole: bytes
    said: bytes
    asked: bytes
    questions: tuple[bytes, ...]
    exchanges: tuple[bytes, ...]
    later: tuple[bytes, ...]
    bare: tuple[bytes, ...]
    group: tuple[bytes, ...] = ()


def marks(example: Example) -> Marks:
    """What the example shares with others, if anything."""
    texts = [(folded(turn.text), folded(turn.context)) for turn in example.turns]
    every = (*example.turns, *example.rejected)  # a better answer with another worse one is no duplicate
    turns = [
        _digest(turn.role, *both, *([] if turn.trained else ["masked"]))
        for turn, both in zip(example.turns, texts, strict=True)
    ]
    is_system = [turn.role == "system" for turn in example.turns]
    system = texts[is_system.index(True)][0] if any(is_system) else ""
    users = [place for place, turn in enumerate(example.turns) if turn.role == "user"]
    asked = {place: _questions(*texts[place], system) for place in users}
    told = [(place, texts[place + 1][0]) for place in users if place + 1 < len(texts)]
    return Marks(
        whole=_digest(*turns, *(_exact(turn.text) for turn in every if turn.role == "assistant")),
        said=_digest(*(digest for digest, apart in zip(turns, is_system, strict=True) if not apart)),
        asked=_digest(*(spaced(" ".join(both)) for both in texts[:-1])),
        questions=_digests((question,) for question in asked[users[0]]),
        exchanges=_digests((question, response) for place, response in told for question in asked[place]),
        later=_digests((question,) for place in users[1:] for question in asked[place]),
        bare=_digests(
            (question, response)
            for place, response in told
            for question in _instructions(example.turns[place])
        ),
        group=(_digest("group", example.group),) if example.group else (),
    )


def _exact(text: str) -> str:
    """A response as a reader sees it: capitals, signs and inner spaces count, as they do in a program."""
    return unicodedata.normalize("NFC", seen(text)).strip()


def _questions(text: str, context: str, system: str) -> list[str]:
    """A user turn with its context as one text; a system text may be a context, and need not."""
    about = context or system
    both = [spaced(f"{text} {about}"), spaced(f"{about} {text}")] if about else []
    return both if context else [text, *both]


def _instructions(turn: Turn) -> set[str]:
    """What may be the question alone: beside a context, or first or last in a text of several parts."""
    if turn.context:
        return {folded(turn.text)}
    lines = [line for line in turn.text.splitlines() if line.strip()]
    if len(lines) < 2:
        return set()
    blocks = _BLANK.split(turn.text.strip())
    return {folded(part) for part in {lines[0], lines[-1], blocks[0], blocks[-1]} - {turn.text.strip()}}


def _digests(parts: Iterable[Sequence[str]]) -> tuple[bytes, ...]:
    return tuple(sorted({_digest(*each) for each in parts}))


def _digest(*parts: str | bytes) -> bytes:
    coded = (part if isinstance(part, bytes) else part.encode("utf8", "surrogatepass") for part in parts)
    return blake2b(b"\0".join(coded), digest_size=DIGEST_BYTES).digest()


class Edges(NamedTuple):
    """Which example has which mark: pairs of an example's place and the number of a mark, both (m,) int32."""

    places: NDArray[np.int32]
    marks: NDArray[np.int32]

    @classmethod
    def together(cls, parts: Sequence[Edges]) -> Self:
        """The pairs of all parts."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def where(self, kept: NDArray[np.bool_]) -> Edges:
        """The pairs of which `kept` is true."""
        return self if kept.all() else Edges(self.places[kept], self.marks[kept])


class Whose(NamedTuple):
    """What an example is divided by."""

    client: str
    category: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Marked:
    """The marks of many examples, in which equal digests have one number from 0 to `numbers` - 1."""

    whose: Sequence[Whose]
    """Of each example, whether or not its marks are among these."""
    edges: Mapping[str, Edges]
    """The marks of each of `KINDS`, examples ascending."""
    numbers: int

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Self:
        """Take the marks of all the examples, in one pass."""
        places, kinds, digests = array("i"), bytearray(), bytearray()
        known: dict[Whose, Whose] = {}
        whose = []
        for place, example in enumerate(examples):
            found = marks(example)
            for kind, name in enumerate(KINDS):
                own = getattr(found, name)
                for digest in (own,) if isinstance(own, bytes) else own:
                    places.append(place)
                    kinds.append(kind)
                    digests += digest
            both = Whose(example.client, example.category)
            whose.append(known.setdefault(both, both))
        numbers = _numbers(digests)
        every = Edges(np.array(places, np.int32), numbers)
        of = np.array(kinds)
        edges = {name: every.where(of == kind) for kind, name in enumerate(KINDS)}
        return cls(whose=whose, edges=edges, numbers=int(numbers.max(initial=-1)) + 1)

    def only(self, places: Places) -> Self:
        """The marks of the examples at `places` alone."""
        kept = self.at(places)
        return replace(self, edges={kind: each.where(kept[each.places]) for kind, each in self.edges.items()})

    def at(self, places: Places) -> NDArray[np.bool_]:
        """For each example, whether it is among `places`."""
        return _flags(len(self.whose), places)


def _numbers(digests: bytearray) -> NDArray[np.int32]:
    """A number for each digest: the same for those that are equal."""
    halves = np.array(digests, np.uint8).view([("first", "<u8"), ("last", "<u4")])
    first, last = halves["first"], halves["last"]
    order = np.lexsort((last, first))
    new = np.zeros(len(order), np.bool_)
    for half in (first, last):
        ordered = half[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    found = np.empty(len(order), np.int32)
    found[order] = np.cumsum(new, dtype=np.int32)
    return found


def _flags(size: int, places: NDArray[np.integer]) -> NDArray[np.bool_]:
    found = np.zeros(size, np.bool_)
    found[places] = True
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Ties:
    """What each of a number of examples is tied by.

    known: whether a mark is a first question, or an exchange, of one of them. common: ties that so many
    different conversations hold that they tell nothing, as a greeting is. Equal questions with equal answers,
    and equal conversations up to the last response, are ties however many there are. A group that the data
    name is a tie that is never given up.
    """

    of: Marked
    known: NDArray[np.bool_]
    common: NDArray[np.bool_]

    @classmethod
    def among(cls, found: Marked) -> Self:
        """The ties of all that are to be divided."""
        edges, size = found.edges, found.numbers
        known = _flags(size, edges["questions"].marks) | _flags(size, edges["exchanges"].marks)
        said = np.zeros(len(found.whose), np.int64)
        said[edges["said"].places] = edges["said"].marks
        held = Edges.together([edges[kind] for kind in ("questions", "exchanges", "later", "bare")])
        held = held.where(known[held.marks])
        # what many clients have, or under many system texts, is one conversation
        pairs = np.unique(said[held.places] * size + held.marks)
        holders = np.bincount(pairs % max(1, size), minlength=size)
        most = max(FEW, COMMON * len(np.unique(edges["said"].marks)))
        return cls(found, known, known & (holders > most))

    def every(self) -> Edges:
        """Questions and exchanges, and those of others that an example holds in another place or form."""
        held = Edges.together([self.of.edges["later"], self.of.edges["bare"]])
        return Edges.together([self.own(), held.where((self.known & ~self.common)[held.marks])])

    def own(self) -> Edges:
        """First questions, and each user turn with its response."""
        return Edges.together([self.of.edges["exchanges"], self.questions()])

    def questions(self) -> Edges:
        """First questions."""
        asked = self.of.edges["questions"]
        return Edges.together([asked.where(~self.common[asked.marks]), self.whole()])

    def whole(self) -> Edges:
        """All that comes before the last response, which may be one of several good ones."""
        return Edges.together([self.of.edges[kind] for kind in ("asked", "said", "group")])

    def none(self) -> Edges:
        """Nothing but the groups: each other example is on its own."""
        return self.of.edges["group"]

    def common_questions(self) -> Edges:
        """First questions, its own or others', that an example holds and that do not tie it."""
        asked = np.zeros(len(self.of.whose), np.int32)
        asked[self.of.edges["asked"].places] = self.of.edges["asked"].marks
        held = Edges.together([self.of.edges["questions"], self.of.edges["later"]])
        held = held.where(self.common[held.marks] & (held.marks != asked[held.places]))
        size = max(1, self.of.numbers)
        pairs = np.unique(held.places.astype(np.int64) * size + held.marks)  # each once
        return Edges((pairs // size).astype(np.int32), (pairs % size).astype(np.int32))


class Groups:
    """Groups of examples, each a list of places, held as two arrays: their members, and where each ends."""

    def __init__(self, members: Places, sizes: Places) -> None:
        self.members, self.sizes = members, sizes
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, place: int) -> list[int]:
        end = self._ends[place]
        found: list[int] = self.members[end - self.sizes[place] : end].tolist()
        return found

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.__getitem__, range(len(self)))

    def of(self, chosen: NDArray[np.bool_]) -> Groups:
        """The groups of which `chosen` is true."""
        return Groups(self.members[np.repeat(chosen, self.sizes)], self.sizes[chosen])

    def __add__(self, others: Groups) -> Groups:
        return Groups(
            np.concatenate([self.members, others.members]), np.concatenate([self.sizes, others.sizes])
        )


def joined(places: Places, ties: Edges) -> Groups:
    """Examples in groups: those that share a tie, directly or through others.

    Returns:
        Groups in the order of their first member, members in the order of `places`.

    >>> ties = Edges(np.array([0, 0, 1, 2, 2, 3], np.int32), np.array([0, 1, 2, 1, 3, 3], np.int32))
    >>> list(joined(np.arange(4), ties))
    [[0, 2, 3], [1]]
    """
    rank = np.full(max(places.max(initial=-1), ties.places.max(initial=-1)) + 1, -1, np.int32)
    rank[places] = np.arange(len(places))
    ties = ties.where(rank[ties.places] >= 0)
    ties = ties.where(np.bincount(ties.marks)[ties.marks] > 1) if len(ties.marks) else ties
    above = array("i", range(len(places)))

    def top(index: int) -> int:
        while above[index] != index:
            above[index] = index = above[above[index]]
        return index

    first = array("i", [-1]) * (int(ties.marks.max(initial=-1)) + 1)
    for index, tie in zip(rank[ties.places].data, ties.marks.data, strict=True):
        if first[tie] < 0:
            first[tie] = index
        else:
            one, other = sorted((top(index), top(first[tie])))
            above[other] = one  # so that the top of a group is its first member
    tops = np.array(above, np.int32)
    while not np.array_equal(tops, tops[tops]):
        tops = tops[tops]
    order = np.argsort(tops, kind="stable")
    return Groups(places[order], np.unique(tops, return_counts=True)[1])


def ties_shared(ties: Edges, held: NDArray[np.bool_], trained: NDArray[np.bool_]) -> Places:
    """Places of the examples of `held` that share a tie with one of `trained`, ascending."""
    known = _flags(int(ties.marks.max(initial=-1)) + 1, ties.marks[trained[ties.places]])
    return np.unique(ties.places[held[ties.places] & known[ties.marks]]).astype(np.int64)


def shared_by_most(ties: Edges, held: NDArray[np.bool_], trained: NDArray[np.bool_]) -> tuple[int, int]:
    """How many examples share a tie across the sides, and how many hold the commonest of these ties."""
    times = [np.bincount(ties.marks[side[ties.places]], minlength=1) for side in (held, trained)]
    most = max(map(len, times))
    of_held, of_trained = (np.pad(each, (0, most - len(each))) for each in times)
    across = np.where((of_held > 0) & (of_trained > 0), of_held + of_trained, 0)
    ties = ties.where((held | trained)[ties.places])
    sharing = len(np.unique(ties.places[across[ties.marks] > 0]))
    return sharing, int(across.max())
