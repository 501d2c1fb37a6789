"""Draw a fixed number of clients, each with a probability proportional to its examples.

With m clients a round, client k is drawn with probability m n_k / n exactly, if it holds n_k of all n
examples. So the plain mean of the cohort is, in expectation, the mean over all clients by their sizes: use it
with `federation.weights = "equal"`. The draw is systematic (Madow, 1949): the examples of all clients, in a
random order of the clients, are numbered, and the owner of every (n / m)th from a random one on is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Selection, names_at, share_of
from shepherd.errors import FederationError


def _require_below_one(share: float) -> float:
    if share == 1:
        raise ValueError(
            'share = 1 leaves no draw by size; set a share below 1, or [selection] name = "uniform"'
            ' with federation.weights = "size"'
        )
    return share


class Config(Table):
    share: Annotated[PositiveShare, AfterValidator(_require_below_one), Field(examples=[0.1])]
    """Share of the clients that each round asks, below 1; at least one client."""


def build(config: Config) -> Selection:
    """Build the systematic draw; drawing raises FederationError if a client is too large for it."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        sizes = np.array([client.examples for client in clients], dtype=np.int64)
        whole, number = int(sizes.sum()), share_of(len(clients), config.share)
        if not whole:
            raise FederationError(
                "no client holds an example, so none can be drawn by size; change the split of the data"
            )
        largest = int(sizes.argmax())
        if number * int(sizes[largest]) > whole:
            most = whole // int(sizes[largest])
            raise FederationError(
                f"client {clients[largest].name} holds {sizes[largest]:,} of {whole:,} examples, so with"
                f" {number} clients a round it cannot be drawn by its size; set selection.share so that"
                f' {most} or fewer are drawn, or set selection.name = "uniform" with federation.weights ='
                ' "size"'
            )
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(clients))
        places = rng.integers(whole) + whole * np.arange(number)  # of number * whole: all in whole numbers
        ends = number * np.cumsum(sizes[order])
        return names_at(clients, order[np.searchsorted(ends, places, side="right")])

    return Selection(draw=draw, share=config.share, by_size=True, by_list=True)
