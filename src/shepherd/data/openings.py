"""Openings that several examples share, such as a template's preamble, so that each is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORTH = 16  # tokens; telling a shorter opening apart costs what it saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Examples whose first `tokens` tokens are the same; 0 for an example on its own."""

    tokens: int
    members: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Tokens that need not be computed again."""
        return self.tokens * (len(self.members) - 1)


def groups(examples: Sequence[NDArray[Any]]) -> list[Group]:
    """Every example in one group, so that much is saved; each keeps at least one token of its own.

    Neighbours in the order of their ids are joined, those with most in common first, as long as a join
    saves no less than it gives up. Deterministic.

    >>> preamble = list(range(20))
    >>> groups([np.array([*preamble, 7]), np.array([1, 2]), np.array([*preamble, 8, 9])])
    [Group(tokens=20, members=(0, 2)), Group(tokens=0, members=(1,))]
    """
    order = sorted(range(len(examples)), key=lambda i: examples[i].tolist())
    common = [_common(examples[a], examples[b]) for a, b in pairwise(order)]
    of = [Group(tokens=0, members=(i,)) for i in order]  # by place in the order
    for place in sorted(range(len(common)), key=lambda p: -common[p]):
        left, right = of[place], of[place + 1]
        joined = Group(tokens=common[place], members=left.members + right.members)
        if joined.tokens >= WORTH and joined.saved >= left.saved + right.saved:
            first = place + 1 - len(left.members)
            of[first : first + len(joined.members)] = [joined] * len(joined.members)
    return sorted(dict.fromkeys(of), key=lambda group: min(group.members))


def _common(one: NDArray[Any], other: NDArray[Any]) -> int:
    size = min(len(one), len(other)) - 1
    differs = np.flatnonzero(one[:size] != other[:size])
    return int(differs[0]) if len(differs) else max(0, size)
