"""Which clients make up the cohort of a round: pure functions of the clients, the round and a seed.

Each takes `(clients, share, round, seed)` and gives names in the fixed order of `clients`, at least one
(only `poisson` may draw none). `round` counts from 0, `share` is in (0, 1], and the seed is the round's
own: nothing else is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from shepherd.core import ClientInfo
from shepherd.errors import FederationError
from shepherd.settings import FederationTable

Cohort = tuple[str, ...]
Select = Callable[[Sequence[ClientInfo], int, int], Cohort]


def selector(table: FederationTable) -> Select:
    """`select(clients, round, seed)` as the run file asks for it.

    Raises:
        FederationError: from `select`, where there is no client to choose from.
    """
    ways = {
        "uniform": uniform,
        "poisson": poisson,
        "size-weighted": size_weighted,
        "round-robin": round_robin,
        "all": everyone,
    }
    way = ways[table.select]

    def select(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        if not clients:
            raise FederationError("there is no client to ask; connect one, or mend the split of the data")
        return way(clients, table.share, round, seed)

    return select


def require_possible(table: FederationTable, sizes: Mapping[str, int]) -> None:
    """Raise FederationError, before anything is trained, where no cohort of these clients can be drawn.

    Args:
        sizes: client -> how many examples it holds.
    """
    selector(table)([ClientInfo(name=name, examples=count) for name, count in sizes.items()], 0, 0)


def size(clients: Sequence[ClientInfo], share: float) -> int:
    """How many clients a share is: the nearest whole number, and at least one."""
    return share_of(len(clients), share)


def share_of(count: int, share: float) -> int:
    """The nearest whole number to a share of `count`, and at least one."""
    return max(1, round(share * count))


def uniform(clients: Sequence[ClientInfo], share: float, round: int, seed: int) -> Cohort:
    """A fixed number, each set of that size as likely as any other (FedIT, arXiv 2305.05644)."""
    rng = np.random.default_rng(seed)
    return _named(clients, rng.choice(len(clients), size(clients, share), replace=False))


def poisson(clients: Sequence[ClientInfo], share: float, round: int, seed: int) -> Cohort:
    """Each client by a coin of its own, with chance max(share, 1/N): the draw that privacy accounting
    assumes. So it may draw no client; the round then passes with the adapter as it was."""
    chance = max(share, 1 / len(clients))
    return _named(clients, np.flatnonzero(np.random.default_rng(seed).random(len(clients)) < chance))


def size_weighted(clients: Sequence[ClientInfo], share: float, round: int, seed: int) -> Cohort:
    """A fixed number m, each client with chance m n_k / n exactly, where it holds n_k of all n examples.

    So the plain mean of the cohort is, in expectation, the mean over all clients by their sizes: use it with
    `federation.weights = "equal"`. The draw is systematic (Madow, 1949): clients stand in a random order,
    each as long as its examples, and every (n / m)th place from a random one on is drawn.

    Raises:
        FederationError: no client has an example, or one would have to be drawn more than once.
    """
    sizes = np.array([client.examples for client in clients], dtype=np.int64)
    whole, number = int(sizes.sum()), size(clients, share)
    if not whole:
        raise FederationError("no client has an example to be drawn by; mend the split of the data")
    largest = int(sizes.argmax())
    if number * int(sizes[largest]) > whole:
        most = whole // int(sizes[largest])
        raise FederationError(
            f"client {clients[largest].name} holds {sizes[largest]:,} of {whole:,} examples, so of {number}"
            f" clients a round it cannot be drawn by its size; set federation.share so that {most} or fewer"
            ' are drawn, or set select = "uniform" with weights = "size"'
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(clients))
    places = rng.integers(whole) + whole * np.arange(number)  # of number * whole, so all is in whole numbers
    return _named(clients, order[np.searchsorted(number * np.cumsum(sizes[order]), places, side="right")])


def round_robin(clients: Sequence[ClientInfo], share: float, round: int, seed: int) -> Cohort:
    """The next ones in order, and after the last the first: all are asked before one is asked again."""
    number = size(clients, share)
    return _named(clients, (round * number + np.arange(number)) % len(clients))


def everyone(clients: Sequence[ClientInfo], share: float, round: int, seed: int) -> Cohort:
    """All clients, whatever the share."""
    return tuple(client.name for client in clients)


def _named(clients: Sequence[ClientInfo], places: Iterable[int]) -> Cohort:
    return tuple(clients[place].name for place in sorted(places))
