"""Held-out loss of clients' own models, each on examples of its own client or like them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from shepherd.data.examples import Example
from shepherd.evaluate.loss import HeldOutLoss


def own_places(
    examples: Sequence[Example], places: Sequence[int], client: str, mix: Mapping[str, int]
) -> list[int]:
    """The held-out examples that a client's own model is scored on.

    Args:
        examples: all held-out examples.
        places: indices of those that are scored.
        mix: how many examples of each category the client trains on; "all" for those without one.

    Returns:
        Those that the client itself held out; where the data do not say whose they were, those of its
        categories.
    """
    if any(examples[place].client for place in places):
        return [place for place in places if examples[place].client == client]
    return [place for place in places if (examples[place].category or "all") in mix]


def scored_clients(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of the clients, evenly over their sorted names.

    >>> scored_clients(["e", "d", "c", "b", "a"], 3)
    ['a', 'c', 'e']
    """
    return sorted(names)[:: math.ceil(len(names) / most)]


def summarise(clients: Mapping[str, HeldOutLoss]) -> HeldOutLoss:
    """The mean over clients, each counting once; a category's loss is the mean over those that have it.

    Args:
        clients: client -> the loss of its own model.
    """
    categories = sorted({name for each in clients.values() for name in each.category})
    return HeldOutLoss(
        loss=float(np.mean([each.client[name] for name, each in clients.items()])),
        category={
            name: float(np.mean([each.category[name] for each in clients.values() if name in each.category]))
            for name in categories
        },
        client={name: each.client[name] for name, each in clients.items()},
    )
