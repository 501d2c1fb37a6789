"""Whether the example's own checker accepts the answer; examples of the embedded world have one."""

from __future__ import annotations

from shepherd import plugins
from shepherd.config import Table
from shepherd.data.examples import Example
from shepherd.evaluate.metric import Metric
from shepherd.evaluate.sentences import Measure

MEASURE = Measure(
    name="right",
    label="right answers",
    more="answers more questions right than",
    fewer="answers fewer questions right than",
)


class Config(Table):
    """No keys."""


def score(answer: str, example: Example) -> bool | None:
    """Return whether the check passes; None if the example has no check."""
    return None if example.check is None else plugins.checker(example.check).right(answer)


def build(config: Config) -> Metric:
    """Build the metric."""
    return Metric(measure=MEASURE, score=score)
