"""What a model prefers: the implicit reward margin of held-out pairs of a better and a worse answer.

The margin of a pair is the objective's own: for DPO, beta times how much more the model prefers the better
answer than the reference does, in log-probability (Rafailov et al., arXiv 2305.18290, section 5). A pair
counts as preferred rightly if its margin is above 0; one whose margin is 0, as with the reference itself,
counts half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Adapter
from shepherd.data.tokens import Tokens
from shepherd.evaluate.sentences import Measure
from shepherd.model.base import Base
from shepherd.training import score
from shepherd.training.objective import Objective, Scored
from shepherd.training.tune import predictions

Floats = NDArray[np.float64]
ACCURACY = Measure(
    name="preference",
    label="preference accuracy",
    more="prefers the better answer more often than",
    fewer="prefers the better answer less often than",
    asked="pairs",
)
MARGIN = Measure(
    name="margin",
    label="mean reward margin",
    more="has a larger reward margin than",
    fewer="has a smaller reward margin than",
    share=False,
    asked="pairs",
    unit="nats",
    signed=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of answers, with the summed log-probability of each by the reference, (n, 2), in nats."""

    chosen: Tokens
    rejected: Tokens
    reference: Floats


def pairs(
    base: Base, reference: Adapter | None, chosen: Tokens, rejected: Tokens, *, micro_batch: int
) -> Pairs:
    """Score pairs by the reference; None is the base alone.

    Args:
        micro_batch: tokens of one forward pass.
    """
    by = sums(base, reference, chosen, rejected, micro_batch=micro_batch)
    return Pairs(chosen=chosen, rejected=rejected, reference=by)


def sums(
    base: Base, adapter: Adapter | None, chosen: Tokens, rejected: Tokens, *, micro_batch: int
) -> Floats:
    """Summed log-probability of both answers of each pair, (n, 2), in nats.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    both = Tokens.interleaved([chosen, rejected])  # so that a prompt is computed once where passes are shared
    found = -score.losses(base, [adapter or base.zero], both, micro_batch=micro_batch, what="held-out pairs")
    return found.reshape(-1, 2)


def margins(
    base: Base, objective: Objective, adapter: Adapter | None, scored: Pairs, *, micro_batch: int
) -> Floats:
    """The implicit reward margin of each pair, (n,), in nats."""
    own = sums(base, adapter, scored.chosen, scored.rejected, micro_batch=micro_batch)
    return margins_of(objective, own, scored.reference, scored.chosen, scored.rejected)


def margins_of(
    objective: Objective, policy: Floats, reference: Floats, chosen: Tokens, rejected: Tokens
) -> Floats:
    """Margins from the sums of a model and of the reference, (n, 2) each, in nats."""
    assert objective.margins is not None, "the objective compares two answers"
    targets = np.stack([predictions(chosen), predictions(rejected)], axis=1)
    return objective.margins(
        Scored(targets=targets.ravel(), policy=policy.ravel(), reference=reference.ravel())
    )


def preferred(margins: Floats) -> Floats:
    """1 where the better answer is preferred, 0 where the worse one is, a half where neither is.

    >>> preferred(np.array([0.2, 0.0, -3.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    found: Floats = (np.sign(margins) + 1) / 2
    return found


def summarise(margins: Floats, categories: Sequence[str]) -> dict[str, Any]:
    """Value of `preference` in rounds.jsonl: accuracy and mean margin, each category counting alike."""
    names = np.array(categories)
    by = {
        str(name): {
            "accuracy": float(preferred(margins[names == name]).mean()),
            "margin": float(margins[names == name].mean()),
        }
        for name in np.unique(names)
    }
    mean = {key: float(np.mean([each[key] for each in by.values()])) for key in ("accuracy", "margin")}
    return {**mean, "category": by}
