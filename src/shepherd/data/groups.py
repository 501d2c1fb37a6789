"""Which examples hang together: training on one of them would give away what another one asks or answers.

Texts are compared folded: Unicode's compatibility form (NFKC), and without regard to case, white space and
characters that show nothing. Each is kept as a digest, so that no text is held twice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from shepherd.data.examples import Example, Turn

_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls (Cc) but those that are white space
    "\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a"  # formats (Cf)
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"  # selectors and fillers
    "\U000e0000-\U000e0fff"  # tags, selectors and what is kept for more of them
    "]"
)


def folded(text: str) -> str:
    """The text as it is compared.

    >>> folded("Cafe\\u0301  AU\\u00a0lait\\n") == folded("caf\\u00e9 au lait")
    True
    """
    seen = _UNSEEN.sub("", text)
    if seen.isascii():
        return " ".join(seen.lower().split())
    once = unicodedata.normalize("NFKC", seen).casefold()
    return " ".join(unicodedata.normalize("NFKC", once).split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Digests of what an example says.

    whole: every turn. asked: every turn but the last response. first: its first user turn with the context.
    exchanges: each user turn, with its context, and the response to it.
    """

    whole: bytes
    asked: bytes
    first: bytes
    exchanges: tuple[bytes, ...]


def marks(example: Example) -> Marks:
    """What the example shares with others, if anything."""
    turns = [_digest(turn) for turn in example.turns]
    users = [place for place, turn in enumerate(example.turns) if turn.role == "user"]
    return Marks(
        whole=b"".join(turns),
        asked=b"".join(turns[:-1]),
        first=turns[users[0]],
        exchanges=tuple(b"".join(turns[place : place + 2]) for place in users if place + 1 < len(turns)),
    )


def _digest(turn: Turn) -> bytes:
    text = f"{turn.role}\0{folded(turn.text)}\0{folded(turn.context)}"
    return blake2b(text.encode(), digest_size=12).digest()


def every_tie(mark: Marks) -> tuple[Hashable, ...]:
    """The first instruction, and each user turn with its response."""
    return (mark.first, *mark.exchanges)


def first_question(mark: Marks) -> tuple[Hashable, ...]:
    """The first instruction alone."""
    return (mark.first,)


def whole_question(mark: Marks) -> tuple[Hashable, ...]:
    """All that comes before the last response: the same question may have several good answers."""
    return (mark.asked,)


def no_tie(mark: Marks) -> tuple[Hashable, ...]:
    """Nothing: each example on its own."""
    return ()


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


def ties_shared(held: Sequence[Marks], trained: Sequence[Marks]) -> int:
    """How many of the held-out examples share a tie with one that is trained on."""
    known = {tie for mark in trained for tie in every_tie(mark)}
    return sum(not known.isdisjoint(every_tie(mark)) for mark in held)
