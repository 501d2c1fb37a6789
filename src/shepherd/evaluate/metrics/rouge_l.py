"""ROUGE-L: words in the order of the expected answer (Lin, 2004)."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.data.examples import Example
from shepherd.evaluate.metric import Metric
from shepherd.evaluate.sentences import Measure

MEASURE = Measure(
    name="rouge_l",
    label="ROUGE-L",
    more="follows the expected answers more closely (ROUGE-L) than",
    fewer="follows the expected answers less closely (ROUGE-L) than",
)


class Config(Table):
    """No keys."""


def score(answer: str, example: Example) -> float:
    """Return the F-measure of the longest common subsequence of words."""
    from shepherd.evaluate import text  # brings torch

    return text.rouge_l(answer, example.response)


def build(config: Config) -> Metric:
    """Build the metric."""
    return Metric(measure=MEASURE, score=score)
