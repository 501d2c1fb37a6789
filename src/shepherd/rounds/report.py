"""What happened in one round, and its row in rounds.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shepherd.core import Cohort

MAX_NATS = 50.0
"""Of a token, in a loss over several clients: more than any guess over a vocabulary costs (ln 1e21)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What happened in one round."""

    round: int
    """How many rounds are finished with this one."""
    cohort: Cohort
    weights: Mapping[str, float]
    """What each usable update counted for, by client, in the order they came; of a merged update, each of
    its clients an equal part."""
    capped: tuple[str, ...]
    """Clients that counted for less than their weight, so as not to outweigh the others."""
    metrics: Mapping[str, Mapping[str, float]]
    """What each of these clients reported."""
    failures: Mapping[str, str]
    """Why each other client gave no usable update (or a second one)."""
    bytes_down: int
    """Of the tensors sent to the cohort, together."""
    bytes_up: int
    """Of the tensors that came back, refused ones too."""
    figures: Mapping[str, float]
    """What the algorithm's observer found, such as the gap of averaged factors (law 10)."""
    federation_seconds: float
    """Waiting for the clients: their training, in one process."""
    seconds: float
    """The whole round."""


def report_row(report: RoundReport) -> dict[str, Any]:
    """A round's report as it stands in rounds.jsonl: no tensor, no text of any example.

    A client whose owner keeps its metrics back counts nowhere but in the weights.
    """
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
        "weights": {client: weight / total for client, weight in report.weights.items()},
        "capped": list(report.capped),
        "loss": nats / tokens if tokens else None,
        "losses": losses,
        "failures": dict(report.failures),
        "bytes_down": report.bytes_down,
        "bytes_up": report.bytes_up,
        **report.figures,
        "examples": _sum(metrics, "examples"),
        "steps": _sum(metrics, "steps"),
        "tokens": {"seen": _sum(metrics, "tokens"), "trained": _sum(metrics, "trained_tokens")},
    }


def _sum(metrics: Mapping[str, Mapping[str, float]], name: str) -> int:
    return int(sum(each.get(name, 0) for each in metrics.values()))
