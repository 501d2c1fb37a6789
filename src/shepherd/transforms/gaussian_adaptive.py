"""Client-level differential privacy whose clip follows a quantile of the updates' norms.

    norm  <-  norm * exp(-rate * (b - quantile)),    b = (sum_k b_k + N(0, s^2)) / m + 1/2

with b_k = 1/2 if client k's update is at most as long as `norm`, else -1/2, and m the clients that a round
asks on average. So the clip tracks the `quantile` of the norms without anybody's norm being released. Both
releases of a round share the noise multiplier z = `noise`, which is what the accountant counts: the sum of
the updates, as in `gaussian`, gets noise of

    z_delta  =  (z^-2 - (2 s)^-2)^(-1/2)

times the round's norm, a little more than z. Andrew et al., arXiv 1905.03871. b_k travels as one number of
the update's `extra`, and the server refuses any but the two; the norm of the next round is public.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import Table
from shepherd.core import Adapter, Context, Draws, Mechanism, Payload, Transform, Update
from shepherd.errors import SettingsError, UpdateRefused
from shepherd.transforms.clip import clipped, length_of, require_within
from shepherd.transforms.gaussian import (
    Positive,
    bare,
    independent,
    released,
    require_alone,
    sizes,
    spent_with,
)

NAME = "gaussian_adaptive"
WITHIN = "gaussian_adaptive.within"
"""The tensor of `extra` that says whether an update was within the norm: 1/2 or -1/2."""
MIN_NORM, MAX_NORM = 1e-6, 1e6
COUNT_SHARE = 0.05
"""Noise on the count, as a share of the cohort, where nothing else is asked; the paper's n / 20."""


class Config(Table):
    norm: Annotated[Positive, Field(ge=MIN_NORM, le=MAX_NORM)] = 1.0
    """Largest Euclidean norm of a client's change in the first round; it stays within 1e-6 and 1e6."""
    noise: Positive = 1.0
    """Noise multiplier of both releases of a round together, which is what the accountant counts."""
    quantile: Annotated[float, Strict(), Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the updates that are to stay as they are."""
    rate: Positive = 0.2
    """How fast the norm follows; 0.2 changes it by at most a tenth a round, but for the noise."""
    count_noise: Positive | None = None
    """Standard deviation of the noise on the count of short updates; above noise / 2. The default is a
    twentieth of the cohort, but at least `noise`."""


def build(config: Config) -> Transform:
    """Build both halves, and what the accountant needs.

    Raises:
        SettingsError: the count would get so little noise that it alone spends more than `noise` allows.
    """
    if config.count_noise is not None and not 2 * config.count_noise > config.noise:
        raise SettingsError(
            f"count_noise = {config.count_noise:g} hides the count of short updates less than noise ="
            f" {config.noise:g} promises for all of a round; set count_noise above {config.noise / 2:g}"
        )

    def init(context: Context) -> dict[str, NDArray[np.float64]]:
        usual = max(COUNT_SHARE * context.expected_cohort, config.noise)
        count_noise = usual if config.count_noise is None else config.count_noise
        return {
            **sizes(context),
            "norm": np.array(config.norm),
            "count_noise": np.array(float(count_noise)),
        }

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        norm = _norm_of(public)
        within = 0.5 if length_of(update) <= norm else -0.5
        short = clipped(bare(update), norm)
        return replace(short, extra=Payload({**short.extra, WITHIN: np.array([within], np.float32)}))

    def verify(update: Update, state: Any) -> None:
        require_alone(update, NAME)
        rest, within = _apart(update)
        if within.shape != (1,) or within.dtype != np.float32 or abs(float(within[0])) != 0.5:
            raise UpdateRefused(
                f"it says of its length neither 0.5 nor -0.5 in {WITHIN}; apply the transform {NAME} at the"
                " client"
            )
        require_within(rest, float(state["norm"]), NAME)

    def on_arrival(update: Update, state: Any) -> Update:
        update = bare(update)
        verify(update, state)
        return update

    def on_server(update: Update, state: Any, draws: Draws) -> tuple[Update, Any]:
        rest, within = _apart(update)
        norm, count_noise = float(state["norm"]), float(state["count_noise"])
        own = noise_of_sum(config.noise, count_noise)
        after = released(rest, own * norm, state, independent(draws.generator("noise")))
        # a sum of halves, exact again after its mean was rounded to float32
        count = round(2 * len(update.clients) * float(within[0])) / 2
        count += count_noise * float(draws.generator("count").standard_normal())
        share = count / float(state["denominator"]) + 0.5
        return after, {**state, "norm": np.array(followed(norm, share, config))}

    return Transform(
        init=init,
        public=lambda state: {"norm": state["norm"]},
        on_client=on_client,
        on_arrival=on_arrival,
        on_server=on_server,
        mechanism=Mechanism(spent=spent_with(config.noise), verify=verify),
        adds={WITHIN: (1,)},
    )


def noise_of_sum(noise: float, count_noise: float) -> float:
    """The noise multiplier of the sum, so that it and the noisy count together have `noise`.

    >>> round(noise_of_sum(1.0, 5.0), 4)
    1.005
    """
    return float((noise**-2 - (2 * count_noise) ** -2) ** -0.5)


def followed(norm: float, share: float, config: Config) -> float:
    """The next round's norm, from the noisy share of the updates that were within this one."""
    power = math.log(norm) - config.rate * (share - config.quantile)
    return math.exp(min(max(power, math.log(MIN_NORM)), math.log(MAX_NORM)))


def _norm_of(public: Any) -> float:
    """The norm that the server broadcast, if it is one."""
    norm = float(public["norm"])
    if not MIN_NORM / 2 < norm < 2 * MAX_NORM:  # false for NaN, too
        raise UpdateRefused(f"the server asks for the norm {norm:g}, which is none; correct the server")
    return norm


def _apart(update: Update) -> tuple[Update, NDArray[Any]]:
    """The update without what it says of its length, and that."""
    if WITHIN not in update.extra:
        raise UpdateRefused(
            f"it does not say in {WITHIN} whether it was short; apply the transform {NAME} at the client"
        )
    rest = {name: tensor for name, tensor in update.extra.items() if name != WITHIN}
    kind = Adapter if isinstance(update.extra, Adapter) else Payload
    return replace(update, extra=kind(rest)), update.extra[WITHIN]
