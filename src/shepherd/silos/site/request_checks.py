"""Checks of a request before any work on it, apart from the owner's policy."""

from __future__ import annotations

import time

import numpy as np

from shepherd.core import Broadcast, Payload, not_finite, require_shapes, shapes_of
from shepherd.errors import AdapterError, SettingsError
from shepherd.model.base import Base
from shepherd.privacy import accountant
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Asked, Request
from shepherd.silos.site.policy import Refusal
from shepherd.silos.site.redaction import Diverged

MAX_CLOCK_SKEW_S = 300.0  # between the server's clock and this site's
MAX_ABS_VALUE = 1e3
"""Largest absolute value in an adapter: tuned values are far below, and larger ones can make a base overflow
on some texts and not on others."""


class RequestRefused(Exception):
    """A named rule refuses the request."""

    def __init__(self, rule: str, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = Refusal(rule, sentence)


def raise_refusal(refusal: Refusal | None) -> None:
    """Raise Refused if the owner's policy refuses the request."""
    if refusal is not None:
        raise RequestRefused(refusal.rule, refusal.sentence)


def require_accountant(name: str) -> None:
    """Raise Refused if this site cannot count what a run spends of its privacy."""
    try:
        accountant.require()
    except SettingsError as error:
        raise RequestRefused(
            "privacy",
            f"{name} cannot count what this run spends of its privacy: its installation lacks the extra"
            " [privacy]",
        ) from error


def require_version(request: Asked, name: str) -> None:
    """Raise Refused if the server has another minor version of shepherd-fit."""
    here = wire.version()
    if request.version.split(".")[:2] != here.split(".")[:2]:
        raise RequestRefused(
            "version",
            f"the server has shepherd-fit {request.version} and {name} has {here};"
            " install one version at both ends",
        )


def require_id(request: Request, name: str) -> None:
    """Raise Refused if the id is not the request's hash: budgets and kept answers depend on the id."""
    if request.id != wire.request_id(request):
        raise RequestRefused(
            "id",
            f"the id of the request to {name} does not match its content;"
            " install one version of shepherd-fit at both ends",
        )


def require_clock(request: Asked, size: int) -> None:
    """Raise Refused if the request was not sent just now, by this site's clock.

    Args:
        size: size of the message in bytes, which may have taken time on a slow link.
    """
    ahead = request.sent - time.time()
    if not -MAX_CLOCK_SKEW_S - size / wire.MIN_LINK_BYTES_PER_S <= ahead <= MAX_CLOCK_SKEW_S:
        way = "ahead of" if ahead > 0 else "behind"
        raise RequestRefused(
            "clock",
            f"the server's clock is {abs(ahead):.0f} s {way} this site's, or the message is an old one;"
            f" set both clocks (to within {MAX_CLOCK_SKEW_S:.0f} s) and try again",
        )


def require_newer(request: Request, other: Request, name: str) -> None:
    """Raise Refused if the request is of an earlier round than the one under way."""
    if request.run == other.run and request.round < other.round:
        raise RequestRefused(
            "replay",
            f"{name} is at round {other.round + 1} of this run, and the request is for round"
            f" {request.round + 1}; continue from the run's last round",
        )


def require_sound(request: Request) -> None:
    """Raise AdapterError unless the broadcast is of this round, finite and of plausible size (law 6)."""
    broadcast = request.broadcast
    if broadcast is None:
        return
    if broadcast.round != request.round:
        raise AdapterError(
            f"the broadcast is of round {broadcast.round + 1} and the request of round {request.round + 1};"
            " send the broadcast of the request's round"
        )
    for part in (broadcast.adapter, broadcast.extra):
        for name in not_finite(part):
            raise AdapterError(f"tensor {name} of the broadcast is not finite; return to an earlier round")
    for name, tensor in broadcast.adapter.items():
        if np.abs(tensor).max(initial=0.0) > MAX_ABS_VALUE:
            raise AdapterError(
                f"tensor {name} of the broadcast has values above {MAX_ABS_VALUE:g}; return to an earlier"
                " round"
            )


def require_fit(broadcast: Broadcast, base: Base) -> None:
    """Raise AdapterError unless the broadcast has the names and shapes of the base's adapter."""
    require_shapes(base.shapes, shapes_of(broadcast.adapter), "the broadcast")


def require_finite(delta: Payload, extra: Payload) -> None:
    """Raise Diverged, naming the tensor for this site's log, if an update is not finite."""
    for name in (*not_finite(delta), *not_finite(extra)):
        raise Diverged(f"tensor {name} of its update is not finite")
