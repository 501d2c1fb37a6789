"""Ask the clients from which most is to be learned, and some that were not asked yet (Oort).

A client that was asked has the utility

    u_k  =  (U_k - min U) / (max U - min U)  +  sqrt(0.1 ln R / L_k),    U_k = n_k loss_k

with n_k its examples, loss_k the loss of its last visit, L_k that visit's round and R this round, counted
from 1. Of a cohort, a share of `explore` (by round times `explore_decay`, at least `explore_least`) is drawn
uniformly from the clients that were never asked. The others are drawn by their utility, from those that have
at least `cutoff` times the one that would be the last of the best. U is capped at its 95th percentile. Lai et
al., OSDI 2021, arXiv 2010.06081; U is scaled to [0, 1] as in the authors' code, since a loss times a size has
no scale in common with the second term.

Two things differ. U_k has the mean loss in place of the root of the mean square, since clients report no
other. And there is no factor for slow clients, since the server knows no client's time. As for
`power_of_choice`, a client that reports too large a loss is asked often, so it is refused with privacy,
secure sums and robust rules; one whose last visit told no loss counts with the median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Selection, names_at, share_of
from shepherd.selections.power_of_choice import losses_of

Share = Annotated[float, Strict(), Field(ge=0.0, le=1.0)]
CAP = 0.95
"""Quantile of the utilities at which larger ones are capped."""
MIN_CHANCE = 1e-9
"""Relative chance of a client with utility 0, so that it can be drawn where there is no other."""


class Config(Table):
    share: PositiveShare = 1.0
    """Share of the clients that each round asks; at least one client."""
    explore: Share = 0.9
    """Share of the first cohort that is drawn from clients that were never asked."""
    explore_decay: Share = 0.98
    """Factor of that share from round to round."""
    explore_least: Share = 0.2
    """Least of that share."""
    cutoff: Share = 0.95
    """How close to the utility of the last of the best a client must come, to be drawn."""


def build(config: Config) -> Selection:
    """Build the draw by utility."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        rng, number = np.random.default_rng(seed), share_of(len(clients), config.share)
        new = np.array([k for k, info in enumerate(clients) if info.asked is None], dtype=np.int64)
        old = np.array([k for k, info in enumerate(clients) if info.asked is not None], dtype=np.int64)
        share = max(config.explore_least, config.explore * config.explore_decay**round)
        explored = min(max(math.floor(share * number + 0.5), number - len(old)), len(new))
        exploited = number - explored
        chosen = rng.choice(new, explored, replace=False)
        if exploited:
            utilities = utility([clients[k] for k in old], round + 1)
            best = np.argsort(-utilities, kind="stable")
            near = best[utilities[best] >= config.cutoff * utilities[best[exploited - 1]]]
            chances = utilities[near] + MIN_CHANCE
            picked = rng.choice(old[near], exploited, replace=False, p=chances / chances.sum())
            chosen = np.concatenate([chosen, picked])
        return names_at(clients, chosen.tolist())

    return Selection(draw=draw, share=config.share, by_loss=True)


def utility(clients: Sequence[ClientInfo], now: int) -> NDArray[np.float64]:
    """The utility of clients that were asked, in round `now`, counted from 1.

    >>> infos = [ClientInfo(name=n, examples=10, asked=0, loss=x) for n, x in (("a", 1.0), ("b", 3.0))]
    >>> utility(infos, 1).tolist()
    [0.0, 1.0]
    """
    gains = losses_of(clients) * [info.examples for info in clients]
    gains = np.minimum(gains, np.quantile(gains, CAP, method="higher"))
    spread = np.ptp(gains)
    last = np.array([1 + (info.asked or 0) for info in clients])
    uncertain = np.sqrt(0.1 * math.log(now) / last)
    return np.asarray((gains - gains.min()) / (spread or 1.0) + uncertain)
