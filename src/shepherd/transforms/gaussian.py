"""Client-level differential privacy: clip each client's update, and add Gaussian noise to the sum.

    released  =  (sum_k clip(delta_k) + N(0, (noise * norm)^2)) / m

with m the clients that a round asks on average: fixed by the run, so it tells nothing of who answered. A
client that fails or is refused counts as zero, and a round without any update releases noise. Each client
weighs the same. The norm is over
all tensors that leave a client together, and the server refuses a longer update. Noise is added to float64
sums before anything is rounded. A client's weight and metrics do not leave it. McMahan et al., arXiv
1710.06963; `shepherd.privacy` accounts for the rounds.

What is protected is a client with all of its examples, against anyone who gets the released adapters. Clients
trust the server, which sees their updates and adds the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import Table
from shepherd.core import Adapter, Context, Draws, Mechanism, Sampling, Spending, Transform, Update
from shepherd.errors import UpdateRefused
from shepherd.transforms.clip import NORM_TOLERANCE, clipped, require_within

NAME = "gaussian"
Positive = Annotated[float, Strict(), Field(gt=0.0, le=1e6)]
"""Larger norms and noise would leave float32 in the first round."""
Norm = Annotated[float, Strict(), Field(ge=1e-6, le=1e6)]
"""A smaller norm would leave nothing of a change in float32."""
OnServer = Callable[[Update, Any, Draws], tuple[Update, Any]]
Spent = Callable[[Sampling, int], Spending]
Noise = Callable[[str, tuple[int, ...]], NDArray[np.float64]]
"""`(name of a tensor, its shape) -> noise of standard deviation 1`."""


class Config(Table):
    norm: Norm = 1.0
    """Largest Euclidean norm of a client's change; longer ones are made shorter."""
    noise: Positive = 1.0
    """Noise multiplier: the standard deviation of the noise on the sum, as a multiple of `norm`."""


def build(config: Config) -> Transform:
    """Build both halves, and what the accountant needs."""

    def on_server(update: Update, state: Any, draws: Draws) -> tuple[Update, Any]:
        noise = independent(draws.generator("noise"))
        return released(update, config.noise * config.norm, state, noise), state

    return hiding(NAME, config.norm, on_server, spent_with(config.noise))


def hiding(name: str, norm: float, on_server: OnServer, spent: Spent) -> Transform:
    """A transform whose clients send single updates of at most this norm, and whose server adds the noise.

    Args:
        name: of the transform, for messages.
    """

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        return clipped(bare(update), norm)

    def verify(update: Update, state: Any) -> None:
        require_alone(update, name)
        require_within(update, norm, name)

    def on_arrival(update: Update, state: Any) -> Update:
        update = bare(update)
        verify(update, state)
        return update

    return Transform(
        init=sizes,
        on_client=on_client,
        on_arrival=on_arrival,
        on_server=on_server,
        mechanism=Mechanism(spent=spent, verify=verify),
    )


def sizes(context: Context) -> dict[str, NDArray[np.float64]]:
    """The fixed denominator, and how many clients there are at most in a sum."""
    return {
        "denominator": np.array(float(context.expected_cohort)),
        "clients": np.array(float(context.clients)),
    }


def spent_with(noise: float) -> Spent:
    """What rounds with this noise multiplier spend, however their cohorts are drawn."""
    return lambda sampling, rounds: Spending(noise=noise, sampling=sampling, steps=rounds)


def bare(update: Update) -> Update:
    """The update without its weight and its metrics, which no noise would hide."""
    return replace(update, weight=1.0, metrics={})


def require_alone(update: Update, name: str) -> None:
    """Raise UpdateRefused unless an update is of one client and weighs 1."""
    if len(update.clients) != 1 or update.weight != 1.0:
        raise UpdateRefused(
            f"it is of {len(update.clients)} clients with weight {update.weight:g}, and the transform {name}"
            " hides one client of weight 1; send one update per client"
        )


def independent(rng: np.random.Generator) -> Noise:
    """New noise for each tensor."""
    return lambda name, shape: rng.standard_normal(shape)


def released(update: Update, deviation: float, state: Any, noise: Noise) -> Update:
    """The sum of the clients' updates with noise, divided by the fixed denominator; it names no client.

    Args:
        update: the mean of the cohort's updates, or zeros without clients.
        deviation: standard deviation of the noise on the sum.
    """
    count, denominator = len(update.clients), float(state["denominator"])
    deviation *= NORM_TOLERANCE * (1 + float(state["clients"]) * 2**-23)  # the mean was rounded to float32

    def noisy(name: str, mean: NDArray[Any]) -> NDArray[np.float64]:
        total = count * mean.astype(np.float64)
        return np.asarray((total + deviation * noise(name, mean.shape)) / denominator)

    return Update(
        round=update.round,
        delta=Adapter({name: noisy(name, mean) for name, mean in update.delta.items()}),
        extra=Adapter({name: noisy(f"extra {name}", mean) for name, mean in update.extra.items()}),
        weight=denominator,
        clients=(),
    )
