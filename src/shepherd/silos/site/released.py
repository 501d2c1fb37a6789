"""Which numbers about its examples a site lets out, and how exactly: pure functions over values.

A loss says which token it is of, where whoever asks chose the adapter. So each token counts `CAP_NATS` at
most, a mean is rounded to `DIGITS`, and neither a number that leaves nor the difference of two is of fewer
than `policy.min_examples` examples. The reasons stand in docs/decisions/0020-what-a-number-tells.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Adapter
from shepherd.errors import AdapterError
from shepherd.settings import DataTable
from shepherd.silos.site.site_settings import PolicyTable, ScoringTable

CAP_NATS = 20.0
"""Most that one token adds to a loss: above what an honest model loses on any but a few."""
DIGITS = 2
"""Digits after the point of a mean loss that leaves; its steps are wider where a token moves it more."""
NEAR = 10.0
"""How many times its own update's length an adapter may be away from the one that a site trained: a mean
is no longer than the longest update in it, and sites whose visits are longer move further."""
LATER = 10
"""Most rounds since the site trained: one that sits some out is scored in them, too. A round moves an
adapter by the longest update in its mean at most, so NEAR has room for ten of equal length."""
MOST_MOVED = 10.0
"""Most that an update's length counts there: whoever asks chooses how long a visit's steps are."""
OTHER = "other"
"""What categories are called that are scored together, since each is too small."""
_OF_TOKENS = ("loss", "tokens", "trained_tokens")


@dataclass(frozen=True, slots=True)
class Score:
    """A category's: mean loss in nats a token, capped and rounded; the tokens and the examples behind it."""

    mean: float
    tokens: int
    examples: int


def scores(
    sums: NDArray[np.float64], tokens: NDArray[np.int64], names: Sequence[str], least: int
) -> dict[str, Score]:
    """What leaves of held-out losses: by category, each of `least` examples or more.

    Smaller categories are pooled as `OTHER`; where they are too few even together, they stay away.

    Args:
        sums: each example's loss, summed over its tokens with the cap, (n,).
        tokens: that each example is scored on, (n,).
        names: each example's category.
    """
    pooled = _pooled(names, least)
    found = {}
    for name in sorted(set(pooled) - {None}, key=str):
        of = np.array([each == name for each in pooled])
        if of.sum() >= least and tokens[of].sum():
            mean = rounded(float(sums[of].sum() / tokens[of].sum()), int(tokens[of].sum()))
            found[str(name)] = Score(mean, int(tokens[of].sum()), int(of.sum()))
    return found


def still_told(scores: Mapping[str, Score], least: int) -> dict[str, Score]:
    """Of a score that was told before, the categories of `least` examples or more."""
    return {name: score for name, score in scores.items() if score.examples >= least}


def behind(names: Sequence[str], least: int) -> dict[str, int]:
    """How many examples stand behind each number of a score, by the name that it would have."""
    return dict(Counter(name for name in _pooled(names, least) if name is not None))


def _pooled(names: Sequence[str], least: int) -> list[str | None]:
    """The name that each example is scored under; None where it is under none."""
    counts = Counter(names)
    pooled = [name if counts[name] >= least else OTHER for name in names]
    return [name if name != OTHER or pooled.count(OTHER) >= least else None for name in pooled]


def rounded(mean: float, tokens: float) -> float:
    """A mean loss over so many tokens as it leaves: in steps that no single token is longer than.

    >>> rounded(2.34567, 5000), rounded(2.34567, 500)
    (2.35, 2.36)
    """
    step = math.ceil(10**DIGITS * CAP_NATS / max(1.0, tokens)) / 10**DIGITS
    return float(round(round(mean / step) * step, DIGITS))


def is_rendered_as_scored(data: DataTable, scoring: ScoringTable) -> bool:
    """Whether a run writes examples as the site's owner has them scored, to the token."""
    asked = (data.template, data.template_options, data.system, data.date, data.max_tokens)
    return asked == (scoring.template, {}, None, scoring.date, scoring.max_tokens)


def cuts_fairly(examples: int, position: int, least: int) -> bool:
    """Whether a visit may begin or end here: each part of the epoch that it cuts has `least` or none.

    Else the number of the whole epoch, less those of the visits, would be of the few that are left.

    >>> [cuts_fairly(100, position, 16) for position in (100, 15, 16, 84, 85)]
    [True, False, True, True, False]
    """
    offset = position % examples
    return offset == 0 or least <= offset <= examples - least


def is_blank(adapter: Adapter) -> bool:
    """Whether an adapter changes nothing: each B is zero."""
    seconds = [tensor for name, tensor in adapter.items() if ".lora_B." in name]
    return bool(seconds) and not any(tensor.any() for tensor in seconds)


def is_near(adapter: Adapter, round: int, trained: Adapter, trained_round: int, moved: float) -> bool:
    """Whether an adapter can have come of the one that the site trained, a few rounds ago at most.

    Args:
        moved: the length of the site's own update then.
    """
    try:
        distance = adapter.plus(trained, -1.0).norm()
    except AdapterError:  # another layout
        return False
    return 0 < round - trained_round <= LATER and distance <= NEAR * min(moved, MOST_MOVED)


def of_a_visit(metrics: Mapping[str, float], *, comparable: bool, known: bool) -> dict[str, float]:
    """The numbers of a visit that may be told, its loss rounded; what the policy lists is chosen after.

    Args:
        comparable: the visit is rendered as scored, and begins and ends where `cuts_fairly` says.
        known: the adapter changes nothing yet, or is near one that the site trained.
    """
    told = {name: value for name, value in metrics.items() if comparable or name not in _OF_TOKENS}
    if not known:
        told.pop("loss", None)
    if "loss" in told:
        told["loss"] = rounded(told["loss"], metrics["trained_tokens"])
    return told


def released_metrics(policy: PolicyTable, metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of the numbers that the owner lists."""
    return {name: value for name, value in metrics.items() if name in policy.metrics}
