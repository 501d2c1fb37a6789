"""Sums in one process: what a server gets under `[secure]`, with no secret kept from anybody.

The updates of a round are added up as whole numbers of the ring, and the server gets the sum alone. It is
the same number, bit for bit, that masked updates of sites add up to, so a simulation of a run with `[secure]`
gives the same adapters (law 2). It protects nobody: this process sees each update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Broadcast, ClientInfo, Failure, Federation, Layout, Payload, Update, shapes_of
from shepherd.rounds.ring import centred, fewest_in_sum

Ring = dict[str, NDArray[np.uint64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """A Federation that yields one merged update a round: the sum of its clients' codes, named in order."""

    federation: Federation
    ring_bits: int
    merges: bool = True

    def clients(self) -> Sequence[ClientInfo]:
        """The clients that can be asked now."""
        return self.federation.clients()

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Ask the cohort and add up what it answers; one sum is held, and one update at a time (law 5).

        A client whose update is no whole numbers, or not of the first one's shapes, is a failure; and so is
        each client of a sum that has too few of them.
        """
        delta: Ring = {}
        extra: Ring = {}
        names: list[str] = []
        for answer in self.federation.run(broadcast, cohort):
            if isinstance(answer, Failure):
                yield answer
                continue
            fault = _fault(answer, (shapes_of(delta), shapes_of(extra)) if names else None)
            if fault:
                yield Failure(client=answer.client, reason=fault)
            else:
                _add(delta, answer.delta)
                _add(extra, answer.extra)
                names += answer.clients
            del answer
        least = fewest_in_sum(len(cohort))
        if len(names) < least:
            reason = f"its sum has {len(names)} of {len(cohort)} clients, and is opened with {least} or more"
            yield from (Failure(client=name, reason=reason) for name in names)
            return
        yield Update(
            round=broadcast.round,
            clients=tuple(names),
            weight=float(len(names)),
            delta=Payload({name: centred(sums, self.ring_bits) for name, sums in delta.items()}),
            extra=Payload({name: centred(sums, self.ring_bits) for name, sums in extra.items()}),
        )


def _fault(update: Update, shapes: tuple[Layout, Layout] | None) -> str:
    """Why an update cannot be added to a sum of these shapes; "" if it can."""
    if any(codes.dtype != np.int64 for part in (update.delta, update.extra) for codes in part.values()):
        return "its update is not made of whole numbers; apply the run file's transforms at the client"
    if shapes is not None and (shapes_of(update.delta), shapes_of(update.extra)) != shapes:
        return "its update has other shapes than the others of its sum; train the same tensors at each client"
    return ""


def _add(sums: Ring, part: Mapping[str, NDArray[Any]]) -> None:
    """Add whole numbers modulo 2^64, and so modulo any smaller power of two."""
    for name, codes in part.items():
        sums[name] = sums.get(name, np.zeros(codes.shape, np.uint64)) + codes.view(np.uint64)
