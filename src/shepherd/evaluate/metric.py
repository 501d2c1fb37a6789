"""What is measured of an answer: the kind of plug-in in `evaluate/metrics`."""

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
"""The key of the answer itself, beside those of its metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number from 0 to 1 for one answer.

    `score(answer, example)` compares an answer with the held-out example that asked for it; it is pure, and
    gives None where the example does not say what is right.
    """

    measure: Measure
    """Its name, how to say it, and which way is better."""
    score: Callable[[str, Example], float | None]


METRIC = plugins.Kind(name="metric", folder=folder, type=Metric, chosen_by="[evaluation] metrics")


def metrics(tables: Sequence[PartTable], allowed: Collection[str] = ()) -> tuple[Metric, ...]:
    """The metrics that `evaluation.metrics` lists.

    Args:
        allowed: modules outside the package that may be imported.

    Raises:
        PluginError: a module outside that is not allowed, and was not imported; or one that cannot be.
        SettingsError: no such metric, a key it does not have, or two of one name.
    """
    found: tuple[Metric, ...] = tuple(plugins.built(METRIC, table, allowed) for table in tables)
    names = [LOSS.name, TEXT, *(metric.measure.name for metric in found)]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise SettingsError(
            f"evaluation.metrics has two called {twice[0]!r}, or it is a name that is taken; leave one out"
        )
    return found


def scores(found: Sequence[Metric], answer: str, example: Example) -> dict[str, float | None]:
    """Every metric of one answer by its name."""
    return {metric.measure.name: metric.score(answer, example) for metric in found}
