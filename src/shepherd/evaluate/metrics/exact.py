"""Exact match with the expected answer, as in SQuAD (arXiv 1606.05250)."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.data.examples import Example
from shepherd.evaluate.metric import Metric
from shepherd.evaluate.sentences import Measure

MEASURE = Measure(
    name="exact",
    label="exact matches",
    more="gives the expected answer word for word more often than",
    fewer="gives the expected answer word for word less often than",
)


class Config(Table):
    """No keys."""


def score(answer: str, example: Example) -> float:
    """Return 1 if answer and response are equal except for case, punctuation and articles, else 0."""
    from shepherd.evaluate import text  # brings torch

    return text.exact(answer, example.response)


def build(config: Config) -> Metric:
    """Build the metric."""
    return Metric(measure=MEASURE, score=score)
