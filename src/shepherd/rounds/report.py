"""What happened in one round, and its row in rounds.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shepherd.core import Cohort

MAX_NATS = 50.0
"""Largest loss of a client, in nats per token, in a loss over several clients; above any guess (ln 1e21)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What happened in one round."""

    round: int
    """Rounds that are finished, this one included."""
    cohort: Cohort
    weights: Mapping[str, float]
    """Weight of each client with a usable update, in order of arrival; the clients of a merged update have
    equal parts of its weight."""
    capped: tuple[str, ...]
    """Clients whose weight was reduced so that they do not outweigh the others."""
    metrics: Mapping[str, Mapping[str, float]]
    """Metrics that each of these clients reported."""
    failures: Mapping[str, str]
    """Client -> why it gave no usable update, or why a second one was refused."""
    late: Cohort = ()
    """Clients of the cohort that were still at work when the round ended."""
    dropped: Cohort = ()
    """Those of them whose update counts in no round; the others send it in a later one."""
    carried: Mapping[str, int] = field(default_factory=dict)
    """Client whose update of an earlier round counts here -> how many rounds late it is."""
    bytes_down: int
    """Bytes of the tensors sent to the cohort, over all its clients."""
    bytes_up: int
    """Bytes of the tensors received, refused updates included."""
    figures: Mapping[str, float]
    """Figures of the observer and of the audit, such as the gap of averaged factors (law 10)."""
    cosines: Mapping[str, float] = field(default_factory=dict)
    """Cosine of each client's change with the result; empty unless all clients allow figures about one."""
    federation_seconds: float
    """Seconds of waiting for the clients; in one process, of their training."""
    seconds: float
    """Seconds of the whole round."""
    private: bool = False
    """Whether noise hides each client. What the report says of the cohort is then for the server alone: who
    was asked, who answered, how many and how fast are covered by no noise."""
    merged: bool = False
    """Whether updates arrived as a sum. `weights` then says which clients are in it, and not what each
    counted for."""


def report_row(report: RoundReport) -> dict[str, Any]:
    """A round's report as a row of rounds.jsonl, without tensors or texts of examples.

    A client whose owner does not release its metrics counts in the weights only. Where noise hides each
    client, the row has the round's number alone; where updates arrived as a sum, the names of its clients,
    and no number of any of them.
    """
    if report.private:
        return {"round": report.round}
    total = sum(report.weights.values())
    metrics = report.metrics
    losses = {
        client: min(max(0.0, each["loss"]), MAX_NATS) for client, each in metrics.items() if "loss" in each
    }
    # a count below 0 could bring the sum next to it, and the mean to infinity
    trained = {client: max(0.0, metrics[client].get("trained_tokens", 0.0)) for client in losses}
    tokens = sum(trained.values())
    nats = sum(losses[client] * trained[client] for client in losses)
    return {
        "round": report.round,
        "cohort": list(report.cohort),
        "weights": {} if report.merged else {name: part / total for name, part in report.weights.items()},
        **({"summed": list(report.weights)} if report.merged else {}),
        "capped": list(report.capped),
        "loss": nats / tokens if tokens else None,
        "losses": losses,
        "failures": dict(report.failures),
        **_late(report),
        "bytes_down": report.bytes_down,
        "bytes_up": report.bytes_up,
        **report.figures,
        **({"cosines": dict(report.cosines)} if report.cosines else {}),
        "examples": _sum(metrics, "examples"),
        "steps": _sum(metrics, "steps"),
        "tokens": {"seen": _sum(metrics, "tokens"), "trained": _sum(metrics, "trained_tokens")},
    }


def _late(report: RoundReport) -> dict[str, Any]:
    """What came late, where anything did."""
    found = {"late": list(report.late), "dropped": list(report.dropped), "carried": dict(report.carried)}
    return {name: clients for name, clients in found.items() if clients}


def _sum(metrics: Mapping[str, Mapping[str, float]], name: str) -> int:
    return int(sum(each.get(name, 0) for each in metrics.values()))
