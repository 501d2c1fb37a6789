"""Parameters that stack one matrix per expert: PEFT orders A's rows by expert and B's columns by rank.

A is (E r, in) and B (out, r E). A parameter of one matrix is a stack of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def experts_of(a: NDArray[Any], rank: int | None) -> int:
    """Number of matrices that a parameter's A stacks; 1 if no rank is known.

    >>> experts_of(np.zeros((6, 4)), 2), experts_of(np.zeros((6, 4)), None)
    (3, 1)
    """
    return max(1, len(a) // (rank or len(a)))


def split_a(a: NDArray[Any], experts: int) -> NDArray[np.float64]:
    """A (E r, in) as (E, r, in)."""
    return a.reshape(experts, -1, a.shape[1]).astype(np.float64)


def split_b(b: NDArray[Any], experts: int) -> NDArray[np.float64]:
    """B (out, r E) as (E, out, r)."""
    return b.reshape(len(b), -1, experts).transpose(2, 0, 1).astype(np.float64)


def joined_a(a: NDArray[Any]) -> NDArray[Any]:
    """(E, r, in) as A (E r, in)."""
    return a.reshape(-1, a.shape[2])


def joined_b(b: NDArray[Any]) -> NDArray[Any]:
    """(E, out, r) as B (out, r E).

    >>> b = np.arange(12.0).reshape(2, 6)
    >>> bool((joined_b(split_b(b, 3)) == b).all())
    True
    """
    return b.transpose(1, 2, 0).reshape(b.shape[1], -1)
