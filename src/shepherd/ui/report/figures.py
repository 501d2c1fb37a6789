"""Which figures of the rounds are drawn together, for the page and for `shepherd.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from shepherd.ui.report import number_formats
from shepherd.ui.report.chart import Form, Point


class Figure(NamedTuple):
    """A small chart of figures in the rows: its name in the template, and for each line a label and a key."""

    name: str
    title: str
    series: tuple[tuple[str, str], ...]
    form: Form = number_formats.rate


FIGURES = (
    Figure("gap", "Aggregation gap by round", (("gap", "gap"),)),
    Figure("energy_kept", "Energy kept by round", (("energy kept", "energy_kept"),)),
    Figure("spread", "Spread of the clients' updates by round", (("spread", "spread"),)),
    Figure(
        "cosine",
        "Cosine of the clients' updates with the result by round",
        (("mean", "cosine"), ("lowest client", "lowest_cosine")),
    ),
    Figure(
        "clients",
        "Held-out loss by client and round",
        (("worst client", "worst_client"), ("spread over clients", "client_spread")),
    ),
    Figure(
        "personal",
        "Held-out loss of the clients' own models by round",
        (
            ("mean of the clients", "personal_loss"),
            ("worst client", "worst_personal"),
            ("spread over clients", "personal_spread"),
        ),
    ),
    Figure("learning_rate", "Learning rate by round", (("learning rate", "learning_rate"),)),
    Figure(
        "epsilon",
        "Epsilon spent by round",
        (("of each client", "epsilon"), ("of each example", "example_epsilon")),
        number_formats.epsilon,
    ),
    Figure("seconds", "Seconds by round", (("seconds", "seconds"),), number_formats.duration),
)


def points(rows: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """The values of a figure by round, without the rounds that lack it."""
    return [(row["round"], row[key]) for row in rows if row.get(key) is not None]
