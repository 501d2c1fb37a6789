"""Whether a request may be answered: pure, and each rule refuses by its own name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from shepherd.site.settings import PolicyTable

if TYPE_CHECKING:
    from shepherd.federation.wire import Request


@dataclass(frozen=True, slots=True)
class Refusal:
    """The rule that refuses, and one sentence with what it allows and what was asked."""

    rule: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def refusal(
    policy: PolicyTable,
    request: Request,
    *,
    site: str,
    bases: Collection[str],
    granted_this_month: int,
    now: datetime,
    examples: int,
    position: int = 0,
) -> Refusal | None:
    """The first rule that refuses the request, or None.

    What a run asks for is checked for every kind of request, so that a site refuses when it is asked to
    join. The cohort, the hours and the month's budget are checked when there is something to compute.

    Args:
        site: the site's name, for the sentence.
        bases: digests of the bases that may be loaded.
        granted_this_month: other requests of this kind granted; see `audit.granted`.
        now: in the site's local time.
        examples: that the site would train on, 1 or more.
        position: where the site is in its examples for this run, as `data.cursor` counts.

    Raises:
        SettingsError: the request's settings are no run file's.
    """
    raise NotImplementedError


def leaving(policy: PolicyTable, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that may leave."""
    return {name: value for name, value in metrics.items() if name in policy.metrics}
