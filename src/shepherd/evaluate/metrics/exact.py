"""Whether the answer is the expected one, as SQuAD counts it (arXiv 1606.05250)."""

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
    """There is nothing to set."""


def score(answer: str, example: Example) -> float:
    """1 where they are equal but for case, punctuation and articles, else 0."""
    from shepherd.evaluate import text  # brings torch

    return text.exact(answer, example.response)


def build(config: Config) -> Metric:
    """The comparison as a value."""
    return Metric(measure=MEASURE, score=score)
