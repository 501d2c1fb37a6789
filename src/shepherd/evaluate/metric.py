"""Metrics of answers: the kind of plug-in in `evaluate/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.data.examples import Example
from shepherd.errors import SettingsError
from shepherd.evaluate import metrics as folder
from shepherd.evaluate.sentences import LOSS, Measure

TEXT = "text"
"""Key of the answer itself, next to those of its metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric: a number from 0 to 1 for one answer.

    `score(answer, example)` compares an answer with the held-out example that it answers; it is pure, and
    returns None if the example does not say what is right.
    """

    measure: Measure
    """Name of the metric, its wording, and which direction is better."""
    score: Callable[[str, Example], float | None]


METRIC = plugins.Kind(name="metric", folder=folder, type=Metric, chosen_by="[evaluation] metrics")


def metrics(tables: Sequence[PartTable], allowed: Collection[str] = ()) -> tuple[Metric, ...]:
    """Build the metrics that `evaluation.metrics` lists.

    Args:
        allowed: modules outside the package that may be imported.

    Raises:
        PluginError: a module outside the package is not allowed, or cannot be imported.
        SettingsError: there is no such metric, it has no such key, or two have one name.
    """
    found: tuple[Metric, ...] = tuple(plugins.built(METRIC, table, allowed) for table in tables)
    names = [LOSS.name, TEXT, *(metric.measure.name for metric in found)]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise SettingsError(
            f"evaluation.metrics has {twice[0]!r} twice, or it is a reserved name; remove one"
        )
    return found


def scores(found: Sequence[Metric], answer: str, example: Example) -> dict[str, float | None]:
    """Score one answer by every metric; metric name -> number, or None."""
    return {metric.measure.name: metric.score(answer, example) for metric in found}
