"""Which numbers about its examples a site releases, and with what precision, as pure functions.

Anyone who chooses the adapter can make a token's loss identify the token. So each token counts `CAP_NATS` at
most, a mean is rounded to `LOSS_DIGITS` digits, and neither a released number nor the difference of two is
about fewer than `policy.min_examples` examples. See docs/decisions/0020-what-a-number-tells.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Adapter
from shepherd.core.adapter import is_b
from shepherd.errors import AdapterError
from shepherd.settings import DataTable
from shepherd.silos.site.site_settings import PolicyTable, ScoringTable

CAP_NATS = 20.0
"""Cap on the loss of one token: above that of an ordinary model on all but a few tokens."""
LOSS_DIGITS = 2
"""Decimal digits of a released mean loss; its steps are wider where one token changes it more."""
MAX_DISTANCE_RATIO = 10.0
"""Largest distance of a scored adapter from the one that the site trained, in lengths of its own update.

A mean is no longer than the longest update in it, and sites with longer visits move further."""
MAX_ROUNDS_SINCE_TRAINED = 10
"""Most rounds since the site last trained: it is also scored in rounds that it sits out. A round moves an
adapter by the longest update in its mean at most, so NEAR allows for ten of equal length."""
MAX_COUNTED_LENGTH = 10.0
"""Cap on the update's length in that product, since the coordinator chooses the length of a step."""
OTHER = "other"
"""Name of the pooled categories that are too small to be scored alone."""
_OF_TOKENS = ("loss", "tokens", "trained_tokens")


@dataclass(frozen=True, slots=True)
class Score:
    """Score of a category: capped and rounded mean loss in nats a token, its tokens and its examples."""

    mean: float
    tokens: int
    examples: int


def scores(
    sums: NDArray[np.float64], tokens: NDArray[np.int64], names: Sequence[str], least: int
) -> dict[str, Score]:
    """The scores that are released: one for each category of `least` examples or more.

    Smaller categories are pooled as `OTHER`; if they are too few even together, they are left out.

    Args:
        sums: loss of each example in nats, summed over its capped tokens, shape (n,).
        tokens: number of scored tokens of each example, shape (n,).
        names: category of each example.
        least: fewest examples behind a number.
    """
    pooled = _pooled(names, least)
    found = {}
    for name in sorted(set(pooled) - {None}, key=str):
        of = np.array([each == name for each in pooled])
        if of.sum() >= least and tokens[of].sum():
            mean = rounded(float(sums[of].sum() / tokens[of].sum()), int(tokens[of].sum()))
            found[str(name)] = Score(mean, int(tokens[of].sum()), int(of.sum()))
    return found


def still_releasable(scores: Mapping[str, Score], least: int) -> dict[str, Score]:
    """The categories of an earlier score that have `least` examples or more."""
    return {name: score for name, score in scores.items() if score.examples >= least}


def behind(names: Sequence[str], least: int) -> dict[str, int]:
    """Name of each number of a score -> number of examples behind it."""
    return dict(Counter(name for name in _pooled(names, least) if name is not None))


def _pooled(names: Sequence[str], least: int) -> list[str | None]:
    """The name under which each example is scored; None if it is not scored."""
    counts = Counter(names)
    pooled = [name if counts[name] >= least else OTHER for name in names]
    return [name if name != OTHER or pooled.count(OTHER) >= least else None for name in pooled]


def rounded(mean: float, tokens: float) -> float:
    """Round a mean loss over `tokens` tokens for release, in steps that no single token exceeds.

    >>> rounded(2.34567, 5000), rounded(2.34567, 500)
    (2.35, 2.36)
    """
    step = math.ceil(10**LOSS_DIGITS * CAP_NATS / max(1.0, tokens)) / 10**LOSS_DIGITS
    return float(round(round(mean / step) * step, LOSS_DIGITS))


def is_rendered_as_scored(data: DataTable, scoring: ScoringTable) -> bool:
    """Whether a run renders examples exactly as the site's [scoring] does."""
    asked = (data.template, data.template_options, data.system, data.date, data.max_tokens)
    return asked == (scoring.template, {}, None, scoring.date, scoring.max_tokens)


def cuts_fairly(examples: int, position: int, least: int) -> bool:
    """Whether a visit may begin or end here: each part of the epoch has `least` examples or none.

    Otherwise the number of a whole epoch minus those of visits would be about the few examples left.

    >>> [cuts_fairly(100, position, 16) for position in (100, 15, 16, 84, 85)]
    [True, False, True, True, False]
    """
    offset = position % examples
    return offset == 0 or least <= offset <= examples - least


def is_blank(adapter: Adapter) -> bool:
    """Whether an adapter changes nothing: each B is zero."""
    seconds = [tensor for name, tensor in adapter.items() if is_b(name)]
    return bool(seconds) and not any(tensor.any() for tensor in seconds)


def is_near(adapter: Adapter, round: int, trained: Adapter, trained_round: int, moved: float) -> bool:
    """Whether an adapter can have come from the one that the site trained a few rounds ago.

    Args:
        adapter: the adapter to be scored, at round `round`.
        trained: the adapter that the site trained from, at round `trained_round`.
        moved: length of the site's own update then.
    """
    try:
        distance = adapter.plus(trained, -1.0).norm()
    except AdapterError:  # another layout
        return False
    return 0 < round - trained_round <= MAX_ROUNDS_SINCE_TRAINED and distance <= MAX_DISTANCE_RATIO * min(
        moved, MAX_COUNTED_LENGTH
    )


def of_a_visit(metrics: Mapping[str, float], *, comparable: bool, known: bool) -> dict[str, float]:
    """The metrics of a visit that may be released, with the loss rounded; the policy then selects from them.

    Args:
        comparable: the visit is rendered as [scoring] does, and `cuts_fairly` at both ends.
        known: the adapter changes nothing yet, or is near one that the site trained.
    """
    released = {name: value for name, value in metrics.items() if comparable or name not in _OF_TOKENS}
    if not known:
        released.pop("loss", None)
    if "loss" in released:
        released["loss"] = rounded(released["loss"], metrics["trained_tokens"])
    return released


def released_metrics(policy: PolicyTable, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that the policy lists; none where noise has to protect what leaves, since it hides none."""
    if policy.require_privacy:
        return {}
    return {name: value for name, value in metrics.items() if name in policy.metrics}
