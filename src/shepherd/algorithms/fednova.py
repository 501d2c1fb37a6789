"""FedNova: a client that makes more steps does not pull the mean towards itself.

With delta_k the change of client k in tau_k local steps and p_k its weight in the mean,

    delta  =  tau_eff sum_k p_k delta_k / tau_k,    tau_eff = sum_k p_k tau_k

Wang et al., arXiv 2007.07481. FedAvg's mean of the delta_k minimises a mean of the losses with weights
p_k tau_k instead of p_k; here the weights are p_k. If all tau_k are equal it is FedAvg.

tau_k travels beside the change; a step at a share of the round's learning rate counts as that share, as
||a_k||_1 of the paper without momentum. The server checks it against the steps of the visit that was asked.

Limits: delta_k / tau_k is a mean gradient under plain SGD alone, so AdamW and momentum are refused, and a
transform that alters updates is, too, since it would alter tau_k. `tuning.max_steps` makes all visits equally
long, and then this is FedAvg: it is of use with `tuning.epochs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from shepherd.algorithms import fedavg
from shepherd.config import Table
from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    ClientInfo,
    Context,
    Draws,
    Expected,
    LocalResult,
    Observer,
    Payload,
    Update,
)
from shepherd.core.factor_gap import observe
from shepherd.errors import UpdateRefused

STEPS = "effective_steps"
ROUNDING = 1 + 2**-20
"""Factor above the steps that were asked that is accepted: tau_k travels as float32."""


class Config(Table):
    """FedNova has no keys."""


def remember(memory: Payload, broadcast: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
    """Send tau_k."""
    return memory, Adapter({STEPS: [result.effective_steps]})


def expected(broadcast: Broadcast, client: ClientInfo) -> Expected:
    """FedAvg's change, and tau_k."""
    return Expected(delta=fedavg.ALGORITHM.expects(broadcast, client).delta, extra={STEPS: (1,)})


def accept(update: Update, counts: Mapping[str, float]) -> Update:
    """The change of one step: delta_k / tau_k.

    Raises:
        UpdateRefused: tau_k is not in (0, steps of the visit], or it is of several clients.
    """
    steps, most = _steps(update), counts.get("steps", math.inf)
    if len(update.clients) > 1:
        raise UpdateRefused("it merges several clients, and FedNova needs the steps of each; send one each")
    if not 0 < steps <= most * ROUNDING:
        raise UpdateRefused(
            f"its {STEPS} is {steps:.6g}, and a visit of this run has more than 0 and at most {most:g}; count"
            " the optimiser steps"
        )
    return replace(update, delta=update.delta.times(1 / steps))


def settle(update: Update) -> Update:
    """tau_eff times the mean of the changes of one step."""
    return replace(update, delta=update.delta.times(_steps(update)))


def _steps(update: Update) -> float:
    return float(update.extra[STEPS][0])


@dataclass(frozen=True, slots=True)
class _OfLocalAdapters:
    """Observes the clients' own adapters, not the changes of one step."""

    observer: Observer

    def add(self, update: Update) -> None:
        self.observer.add(settle(update))

    def figures(self) -> Mapping[str, float]:
        return self.observer.figures()


def _observe(broadcast: Broadcast, context: Context, draws: Draws) -> Observer:
    return _OfLocalAdapters(observe(broadcast, context, draws))


def build(config: Config) -> Algorithm:
    """Build FedAvg with normalised averaging."""
    return replace(
        fedavg.ALGORITHM,
        remember=remember,
        expected=expected,
        accept=accept,
        settle=settle,
        observe=_observe,
        needs_sgd=True,
        needs_mean=True,
        needs_exact=True,
    )
