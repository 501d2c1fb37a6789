"""Scores of single adapters: what is released is one of them, and not the mean over the seeds of an arm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shepherd.evaluate.draws import Draws
from shepherd.evaluate.statistics import between, interval, sample
from shepherd.evaluate.still import Span


def each_against(
    adapters: ArrayLike, base: ArrayLike, drawn: Draws, weights: ArrayLike | None, span: Span
) -> list[dict[str, Any]]:
    """Score each adapter of an arm, and its difference from the base, paired by document.

    The intervals are over the documents alone: one adapter has no luck of training.

    Args:
        adapters: (S, Q), one row an adapter, or (Q,) of one.
        base: (1, Q) or (Q,).
        drawn: draws of any number of seeds.
        weights, span: as for `statistics.sample`.
    """
    alone = drawn.one_seed
    before = sample(base, alone, weights, span)
    found = [sample(values, alone, weights, span) for values in np.atleast_2d(np.asarray(adapters))]
    return [{**interval(one).row(), "difference": between(one, before).difference.row()} for one in found]
