"""What a selection by loss knows of each client: the round in which it was asked last, and its loss then.

The loss is the metric of that name that the client's owner released with the last update, so an owner who
releases none is drawn without it. It is kept in the server's state, so that a resumed run draws the same
cohorts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from shepherd.core import ClientInfo, Cohort, Federation, Method, Payload
from shepherd.errors import FederationError
from shepherd.rounds.report import MAX_NATS

Metrics = Mapping[str, Mapping[str, float]]


def informed(clients: Sequence[ClientInfo], reports: Payload) -> Sequence[ClientInfo]:
    """The clients, with what was heard of them; an array of reports is (round, loss or NaN)."""
    if not reports:
        return clients
    return [
        replace(info, asked=int(known[0]), loss=None if math.isnan(known[1]) else float(known[1]))
        if (known := reports.get(info.name)) is not None
        else info
        for info in clients
    ]


def heard(reports: Payload, round: int, cohort: Cohort, metrics: Metrics) -> Payload:
    """The reports after a round. A client of the cohort that gave no usable update or no loss has none."""
    losses = {client: metrics.get(client, {}).get("loss", math.nan) for client in cohort}
    now = {name: np.array([round, np.clip(loss, 0.0, MAX_NATS)]) for name, loss in losses.items()}
    return Payload({**reports, **now})


def require_heard(method: Method, federation: Federation) -> None:
    """Raise FederationError if the losses of single clients may not or cannot be known."""
    if method.is_private or getattr(federation, "merges", False):
        raise FederationError(
            "cohorts are drawn by the losses that clients report, and noise or secure sums hide these; set"
            ' [selection] name = "uniform"'
        )
