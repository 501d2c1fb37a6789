"""Which examples hang together: training on one of them would give away what another one asks or answers.

Texts are compared folded (`folding.py`). Each is kept as a digest, so that no text is held twice.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from shepherd.data.examples import Example, Turn
from shepherd.data.folding import folded, seen, spaced

_BLANK = re.compile(r"\n\s*\n")
COMMON, FEW = 0.01, 20
"""What more than this share of the conversations hold is too common to be a tie, where they are not few."""


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
        said=b"".join(digest for digest, apart in zip(turns, is_system, strict=True) if not apart),
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
    return blake2b(b"\0".join(coded), digest_size=12).digest()


@dataclass(frozen=True, slots=True)
class Ties:
    """What each of a number of examples is tied by.

    known: what is a first question, or an exchange, of one of them. common: ties that so many different
    conversations hold that they tell nothing, as a greeting is. Equal questions with equal answers, and equal
    conversations up to the last response, are ties however many there are. A group that the data name is
    a tie that is never given up.
    """

    known: Collection[bytes]
    common: Collection[bytes]

    @classmethod
    def among(cls, found: Collection[Marks]) -> Self:
        """The ties of all that are to be divided."""
        known = {tie for mark in found for tie in (*mark.questions, *mark.exchanges)}
        # what many clients have, or under many system texts, is one conversation
        held = {
            (mark.said, tie)
            for mark in found
            for tie in (*mark.questions, *mark.exchanges, *mark.later, *mark.bare)
        }
        most = max(FEW, COMMON * len({mark.said for mark in found}))
        holders = Counter(tie for _, tie in held)
        return cls(known, {tie for tie in known if holders[tie] > most})

    def every(self, mark: Marks) -> tuple[Hashable, ...]:
        """Its questions and exchanges, and those of others that it holds in another place or form."""
        held = (tie for tie in (*mark.later, *mark.bare) if tie in self.known and tie not in self.common)
        return (*self.own(mark), *held)

    def own(self, mark: Marks) -> tuple[Hashable, ...]:
        """Its first question, and each user turn with its response."""
        return (*mark.exchanges, *self.questions(mark))

    def questions(self, mark: Marks) -> tuple[Hashable, ...]:
        """Its first question."""
        return (*(tie for tie in mark.questions if tie not in self.common), *self.whole(mark))

    def whole(self, mark: Marks) -> tuple[Hashable, ...]:
        """All that comes before the last response, which may be one of several good ones."""
        return (mark.asked, mark.said, *mark.group)

    def none(self, mark: Marks) -> tuple[Hashable, ...]:
        """Nothing but its group: each other example is on its own."""
        return mark.group

    def common_questions(self, mark: Marks) -> tuple[Hashable, ...]:
        """First questions, its own or others', that it holds and that do not tie it."""
        held = {*mark.questions, *mark.later} - {mark.asked}
        return tuple(tie for tie in held if tie in self.common)


def joined(ties: Mapping[int, Iterable[Hashable]]) -> list[list[int]]:
    """Examples in groups: those that share a tie, directly or through others.

    Args:
        ties: an example's index -> what it is tied by.

    Returns:
        Groups in the order of their first member, members in the order given.

    >>> joined({0: "ab", 1: "c", 2: "bd", 3: "d"})
    [[0, 2, 3], [1]]
    """
    above = {index: index for index in ties}

    def top(index: int) -> int:
        while above[index] != index:
            above[index] = index = above[above[index]]
        return index

    first: dict[Hashable, int] = {}
    for index, own in ties.items():
        for tie in own:
            above[top(index)] = top(first.setdefault(tie, index))
    groups: dict[int, list[int]] = {}
    for index in ties:
        groups.setdefault(top(index), []).append(index)
    return list(groups.values())


def ties_shared(held: Iterable[tuple[Hashable, ...]], trained: Iterable[tuple[Hashable, ...]]) -> int:
    """How many of the held-out examples, each by its ties, share one with an example that is trained on."""
    known = {tie for own in trained for tie in own}
    return sum(not known.isdisjoint(own) for own in held)


def shared_by_most(
    held: Sequence[tuple[Hashable, ...]], trained: Sequence[tuple[Hashable, ...]]
) -> tuple[int, int]:
    """How many examples, each by its ties, share one across the sides, and how many hold the commonest."""
    sides = [Counter(tie for own in side for tie in own) for side in (held, trained)]
    across = {tie: sides[0][tie] + sides[1][tie] for tie in sides[0] if tie in sides[1]}
    sharing = sum(not across.keys().isdisjoint(own) for own in (*held, *trained))
    return sharing, max(across.values(), default=0)
