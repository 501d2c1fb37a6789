"""The rules of a drill: aggregations, each with its keys, and bounds that come before them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from shepherd import plugins, transforms
from shepherd.config import PartTable
from shepherd.errors import SettingsError
from shepherd.overrides import assigned
from shepherd.settings import AggregationTable, RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way to combine updates: what a run file says of it."""

    text: str
    """As it was asked for; unique in a drill."""
    aggregation: AggregationTable
    bounds: tuple[PartTable, ...] = ()
    """Transforms that come before those of the run file."""

    def over(self, settings: RunSettings) -> RunSettings:
        """The settings with this rule in place of the run file's aggregation."""
        return settings.model_copy(
            update={
                "aggregation": self.aggregation,
                "transforms": (*self.bounds, *settings.transforms),
            }
        )


def rule(text: str) -> Rule:
    """Parse "NAME key=value ...", several joined by "+": transforms, and the aggregation last.

    Raises:
        SettingsError: there is no such part, or a text has another form.

    >>> rule("norm_bound factor=2 + krum bad=3").aggregation.own
    {'bad': 3}
    """
    tables = [_table(part) for part in text.split("+")]
    bounds = [table for table in tables if table.name in plugins.names(transforms)]
    rest = [table for table in tables if table not in bounds]
    if len(rest) > 1:
        raise SettingsError(f"rule {text!r} names two aggregations; name one, and transforms before it")
    last = rest[0] if rest else PartTable(name="mean")
    return Rule(
        text=" ".join(text.split()),
        aggregation=AggregationTable(name=last.name, **last.own),
        bounds=tuple(bounds),
    )


def usual(settings: RunSettings, share: float, cohort: int, allowed: Collection[str] = ()) -> list[Rule]:
    """The run file's own aggregation, and every robust one that suits the run and a cohort of this size.

    Args:
        share: share of bad clients that a rule is set for.
        allowed: modules outside the package that may be imported.
    """
    bad = math.ceil(share * cohort - 1e-9)
    trim = min(share, 0.49) if share else 0.1
    own = replace(rule("mean"), text=named(settings.aggregation), aggregation=settings.aggregation)
    texts = [
        "norm_bound",
        "coordinate_median",
        f"trimmed_mean trim={trim:g}",
        f"krum bad={bad}",
        f"krum bad={bad} keep={max(1, cohort - bad - 2)}",
        "geometric_median",
        "norm_bound + geometric_median",
        *(["fltrust"] if settings.data.root else []),
    ]
    found = {each.text: each for each in map(rule, texts) if _fits(each, settings, cohort, allowed)}
    return [own, *(each for text, each in found.items() if text != own.text)]


def named(table: PartTable) -> str:
    """A part as one writes it after --rule: its name, and the keys that it is given.

    >>> named(PartTable(name="krum", bad=3, space="both"))
    'krum bad=3 space=both'
    """
    keys = {key: value if isinstance(value, str) else json.dumps(value) for key, value in table.own.items()}
    return " ".join([table.name, *(f"{key}={value}" for key, value in keys.items())])


def _fits(each: Rule, settings: RunSettings, cohort: int, allowed: Collection[str]) -> bool:
    """Whether a run file may have this rule, and its cohorts are large enough."""
    changed = each.over(settings)
    try:
        plugins.selection(changed, allowed)
        return plugins.method(changed, allowed).aggregation.smallest_cohort <= cohort
    except SettingsError:
        return False


def _table(text: str) -> PartTable:
    words = text.split()
    if not words or "=" in words[0]:
        raise SettingsError(f'rule {text.strip()!r} names no aggregation; write "krum bad=3"')
    return PartTable(name=words[0], **assigned(words[1:]))
