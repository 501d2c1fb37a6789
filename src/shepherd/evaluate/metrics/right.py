"""Whether the checker that an example carries accepts the answer; the embedded world's examples carry one."""

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
    """There is nothing to set."""


def score(answer: str, example: Example) -> bool | None:
    """True where the check passes; None where the example has none."""
    return None if example.check is None else plugins.checker(example.check).right(answer)


def build(config: Config) -> Metric:
    """The check as a value."""
    return Metric(measure=MEASURE, score=score)
