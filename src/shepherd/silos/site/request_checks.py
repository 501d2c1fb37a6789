"""What is asked of a request before anything is done with it, besides the owner's policy."""

from __future__ import annotations

import time

import numpy as np

from shepherd.core import Broadcast, Update, not_finite, require_shapes, shapes_of
from shepherd.errors import AdapterError
from shepherd.model.base import Base
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Request
from shepherd.silos.site.policy import Refusal
from shepherd.silos.site.redaction import Diverged

CLOCKS = 300.0  # seconds that the server's clock and ours may be apart
LARGEST = 1e3
"""Of an adapter's numbers, in size: none that was tuned comes near it, and larger ones make a base overflow
for some texts and not for others."""


class Refused(Exception):
    """The request is not answered, by a rule that has a name."""

    def __init__(self, rule: str, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = Refusal(rule, sentence)


def require_none(refusal: Refusal | None) -> None:
    """Raise Refused with what the owner's policy has against a request."""
    if refusal is not None:
        raise Refused(refusal.rule, refusal.sentence)


def require_version(request: Request, name: str) -> None:
    here = wire.version()
    if request.version.split(".")[:2] != here.split(".")[:2]:
        raise Refused(
            "version",
            f"the server has shepherd-fit {request.version} and {name} has {here};"
            " install one version at both ends",
        )


def require_id(request: Request, name: str) -> None:
    """What was granted is counted by its id, and answers are kept under it: the asker cannot choose it."""
    if request.id != wire.request_id(request):
        raise Refused(
            "id",
            f"the request's id is not the one of what it asks of {name};"
            " install one version of shepherd-fit at both ends",
        )


def require_clock(request: Request, size: int) -> None:
    """Raise Refused where the request was sent at another time than now.

    Args:
        size: bytes of the message, which took their time if the line is slow.
    """
    ahead = request.sent - time.time()
    if not -CLOCKS - size / wire.SLOWEST <= ahead <= CLOCKS:
        way = "ahead of" if ahead > 0 else "behind"
        raise Refused(
            "clock",
            f"the server's clock is {abs(ahead):.0f} s {way} this site's, or the message is an old one;"
            f" set both clocks (at most {CLOCKS:.0f} s apart) and ask again",
        )


def require_newer(request: Request, other: Request, name: str) -> None:
    """What is left over from an earlier round must not disturb a later one."""
    if request.run == other.run and request.round < other.round:
        raise Refused(
            "replay",
            f"{name} is at round {other.round + 1} of this run, and not {request.round + 1} as asked;"
            " go on from the run's last round",
        )


def require_sound(request: Request) -> None:
    """The broadcast, if there is one, is of this round and finite (law 6, on arrival at a site)."""
    broadcast = request.broadcast
    if broadcast is None:
        return
    if broadcast.round != request.round:
        raise AdapterError(
            f"the broadcast is of round {broadcast.round + 1}, not {request.round + 1} as asked; send it"
        )
    for part in (broadcast.adapter, broadcast.extra):
        for name in not_finite(part):
            raise AdapterError(f"tensor {name} of the broadcast is not finite; go back to an earlier round")
    for name, tensor in broadcast.adapter.items():
        if np.abs(tensor).max(initial=0.0) > LARGEST:
            raise AdapterError(
                f"tensor {name} of the broadcast has numbers above {LARGEST:g}; go back to an earlier round"
            )


def require_fit(broadcast: Broadcast, base: Base) -> None:
    """The broadcast has the base's layout."""
    require_shapes(base.shapes, shapes_of(broadcast.adapter), "the broadcast")


def require_finite(update: Update) -> None:
    """Raise Diverged, naming the tensor for this site's log, where a visit came to numbers that are none."""
    for name in (*not_finite(update.delta), *not_finite(update.extra)):
        raise Diverged(f"tensor {name} of its update is not finite")
