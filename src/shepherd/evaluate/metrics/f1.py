"""Token F1: words shared with the expected answer, as in SQuAD (arXiv 1606.05250)."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.data.examples import Example
from shepherd.evaluate.metric import Metric
from shepherd.evaluate.sentences import Measure

MEASURE = Measure(
    name="f1",
    label="token F1",
    more="shares more words with the expected answers (token F1) than",
    fewer="shares fewer words with the expected answers (token F1) than",
)


class Config(Table):
    """No keys."""


def score(answer: str, example: Example) -> float:
    """Return the harmonic mean of the shared words' precision and recall."""
    from shepherd.evaluate import text  # brings torch

    return text.f1(answer, example.response)


def build(config: Config) -> Metric:
    """Build the metric."""
    return Metric(measure=MEASURE, score=score)
