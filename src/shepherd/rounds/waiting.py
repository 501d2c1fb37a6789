"""Whether what [stragglers] waits for is enough for a round."""

from __future__ import annotations

import math

from shepherd.core import Method, Selection
from shepherd.errors import SettingsError
from shepherd.io.progress import many
from shepherd.rounds.acceptance import needed
from shepherd.rounds.ring import fewest_in_sum
from shepherd.settings import RunSettings

ROBUST_SHARE = 0.9
"""Share of a cohort that a robust rule waits for: bad clients may be the fastest, and what a rule stands is a
share of the updates that it gets. With m of n updates, a rule for less than half stands m / 2 bad clients."""


def require_enough(settings: RunSettings, method: Method, selection: Selection, clients: int) -> None:
    """Raise SettingsError, before anything runs, unless a round that ends early is a round.

    Args:
        clients: of the whole run.
    """
    if method.stragglers is None:
        return
    waits, cohort = method.stragglers.min_updates, selection.size(clients)
    if waits > cohort:
        raise SettingsError(
            f"stragglers.min_updates = {waits}, and a round asks {many(cohort, 'client')}; set it to"
            f" {cohort} or less, or raise selection.share"
        )
    least, why = max(
        (needed(settings.federation.quorum, cohort), f"federation.quorum = {settings.federation.quorum:g}"),
        (method.aggregation.smallest_cohort, f'aggregation.name = "{settings.aggregation.name}"'),
        (fewest_in_sum(cohort) if settings.secure is not None else 0, "[secure]"),
        (
            math.ceil(ROBUST_SHARE * cohort - 1e-9) if method.aggregation.robust else 0,
            f'aggregation.name = "{settings.aggregation.name}" is there because some clients may be bad, and'
            " these may be the fastest, so it",
        ),
        key=lambda each: each[0],
    )
    if waits < least:
        raise SettingsError(
            f"stragglers.min_updates = {waits} ends a round too early: {why} needs {least} of"
            f" {many(cohort, 'client')}; set stragglers.min_updates = {least} or more"
        )
