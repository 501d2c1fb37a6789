"""Draw some candidates at random, and ask those of them that reported the largest loss.

Of `candidates` clients for each place in the cohort, those with the largest loss in their last visit are
asked; a candidate that was never asked comes first. This is the variant pow-d of Cho et al. (arXiv
2010.01243) that takes the losses of the last visits, so that no client is polled for this round's (there
called rpow-d). There candidates are drawn by their size for a plain mean; here they are drawn uniformly, and
`federation.weights` counts the sizes.

It finds a common model that is better for clients with large losses sooner, and worse on average: the mean
over the cohort is no longer one over all clients. A client that reports too large a loss is asked in each
round, so it is refused with privacy, secure sums and robust rules. A client whose owner releases no loss, or
that failed when it was asked last, counts with the median of the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, Strict

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Selection, names_at, share_of


class Config(Table):
    share: PositiveShare = 1.0
    """Share of the clients that each round asks; at least one client."""
    candidates: Annotated[float, Strict(), Field(ge=1.0, le=1000.0)] = 3.0
    """Candidates for each place in the cohort; 1 is the uniform draw."""


def build(config: Config) -> Selection:
    """Build the draw of the largest losses among random candidates."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        number = share_of(len(clients), config.share)
        drawn = min(len(clients), math.ceil(config.candidates * number))
        candidates = np.random.default_rng(seed).choice(len(clients), drawn, replace=False)
        losses = losses_of([clients[index] for index in candidates])
        return names_at(clients, candidates[np.argsort(-losses, kind="stable")[:number]])

    return Selection(draw=draw, share=config.share, by_loss=True)


def losses_of(clients: Sequence[ClientInfo]) -> np.ndarray:
    """The loss that each client is ranked by: infinite if it was never asked, and the median of the others
    if its last visit told none."""
    known = [info.loss for info in clients if info.loss is not None]
    usual = float(np.median(known)) if known else 0.0
    return np.array(
        [math.inf if info.asked is None else usual if info.loss is None else info.loss for info in clients]
    )
