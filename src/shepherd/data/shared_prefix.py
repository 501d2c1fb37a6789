"""Token prefixes that several examples share, such as a template's preamble, so each is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_PREFIX_TOKENS = 16
"""Shortest prefix that is shared; handling a shorter one costs what it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGroup:
    """Examples, by index, whose first `tokens` tokens are the same; 0 for an example on its own."""

    tokens: int
    members: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Number of tokens that need not be computed again."""
        return self.tokens * (len(self.members) - 1)


def group_by_prefix(examples: Sequence[NDArray[Any]]) -> list[PrefixGroup]:
    """Group examples by shared prefix so that few tokens are computed twice.

    Each example is in exactly one group and keeps at least one token after the prefix. Greedy: neighbours in
    the order of their ids are joined, longest common prefix first, as long as a join saves at least as much
    as the groups that it replaces. Deterministic.

    >>> preamble = list(range(20))
    >>> group_by_prefix([np.array([*preamble, 7]), np.array([1, 2]), np.array([*preamble, 8, 9])])
    [PrefixGroup(tokens=20, members=(0, 2)), PrefixGroup(tokens=0, members=(1,))]
    """
    order = sorted(range(len(examples)), key=lambda i: examples[i].tolist())
    common = [_common_length(examples[a], examples[b]) for a, b in pairwise(order)]
    group_at = [PrefixGroup(tokens=0, members=(i,)) for i in order]  # by place in the order
    for place in sorted(range(len(common)), key=lambda p: -common[p]):
        left, right = group_at[place], group_at[place + 1]
        joined = PrefixGroup(tokens=common[place], members=left.members + right.members)
        if joined.tokens >= MIN_PREFIX_TOKENS and joined.saved >= left.saved + right.saved:
            first = place + 1 - len(left.members)
            group_at[first : first + len(joined.members)] = [joined] * len(joined.members)
    return sorted(dict.fromkeys(group_at), key=lambda group: min(group.members))


def _common_length(one: NDArray[Any], other: NDArray[Any]) -> int:
    """Length of the common prefix; at least one token less than the shorter example."""
    size = min(len(one), len(other)) - 1
    differs = np.flatnonzero(one[:size] != other[:size])
    return int(differs[0]) if len(differs) else max(0, size)
