"""Client-level differential privacy without trust in the server: each client adds its share of the noise.

    code  =  rounded(clip(x) / s) + P - P',    P, P' Poisson of mean (noise levels)^2 / (2 honest)

for each number x of the change, with s = norm / levels and levels = 2^(bits - 1) - 1, as in `fixed_point`.
The difference of two Poisson draws is Skellam noise. Sums of it are Skellam, so the sum over any `honest`
clients has noise of standard deviation noise * norm, and over more of them more. Under `[secure]` the server
sees the sum alone, and never a change with the noise of one client. Agarwal, Kairouz and Liu, arXiv
2110.04995; the accountant has the bound of its Corollary 3.6 on the Rényi divergence.

What is protected is a client with all of its examples. Neighbouring data differ in one client, whose change
is zero instead: it takes part and adds its share all the same. So who takes part, and in which rounds, is
public, nothing is gained by the draw of the cohorts, and the sum is divided by the number of clients in it.

Rounding moves the change, too. So it is clipped to a little less than `norm`, by what rounding its many
numbers can add (but for a chance of 1e-9), and rounded again in the rare case that it is longer all the same:
the codes before the noise are never longer than `levels`, whatever the draw. Each whole number is at most its
own square, so their L1 norm is at most levels^2. Kairouz, Liu and Steinke, arXiv 2102.06387, conditional
rounding. Noise beyond `tail` is cut, which has a chance below 1e-34 for each number.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import PositiveInt, Table
from shepherd.core import Context, Draws, Mechanism, Payload, Sampling, Spending, Transform, Turns, Update
from shepherd.core.payload import not_finite
from shepherd.errors import SettingsError, UpdateRefused
from shepherd.transforms.clip import NORM_TOLERANCE, clipped, length_of
from shepherd.transforms.fixed_point import (
    Norm,
    decoded,
    levels,
    require_bits,
    require_codes,
    require_real,
    rounded,
)
from shepherd.transforms.gaussian import Positive, bare

NAME = "skellam"
REDRAW = math.sqrt(2 * math.log(1e9))
"""sqrt(2 ln(1 / beta)), with beta = 1e-9 the chance that a rounding is longer than what is expected of it."""
TAIL_NATS = 80.0
"""Noise beyond `tail` has a chance of at most 2 exp(-80) < 4e-35 for each number."""
DIRECT = 2.0**24
"""Largest mean of Poisson draws that numpy makes itself. Its rejection method evaluates k ln(mean) - mean -
ln(k!) in float64, whose error is about mean ln(mean) 2^-53: 3e-8 here, and 2e-3 at a mean of 1e12."""
BELOW = 10
"""Deviations below the mean of the number of the arrival that is drawn; a late one has a chance of 1e-23."""
LARGEST_MEAN = 2.0**50
"""Means of Poisson draws up to which float64 holds each whole number."""


class Config(Table):
    norm: Norm = 1.0
    """Largest Euclidean norm of a client's change; longer ones are made shorter."""
    noise: Positive = 1.0
    """Noise multiplier of the sum over `honest` clients: the standard deviation of its noise, as a multiple
    of `norm`."""
    honest: PositiveInt = 3
    """Fewest honest clients in a sum: each adds 1 / honest of the variance. A round with fewer updates gives
    nothing. Sites that may collude with the server do not count, so leave room for them and for clients that
    drop out."""
    bits: Annotated[int, Strict(), Field(ge=4, le=24)] = 16
    """Bits of one number of a change, its sign included and its noise not."""


def build(config: Config) -> Transform:
    """Build both halves, and what the accountant needs.

    Raises:
        SettingsError: the noise has more steps than can be drawn exactly.
    """
    most = levels(config.bits)
    step = config.norm / most
    variance = (config.noise * most) ** 2 / config.honest
    if not variance / 2 <= LARGEST_MEAN:
        raise SettingsError(
            f"noise = {config.noise:g} at bits = {config.bits} has too many steps to be drawn exactly; lower"
            f" bits under the transform {NAME}"
        )
    beyond = tail(variance)

    def init(context: Context) -> dict[str, Any]:
        require_bits(NAME, config.bits, context, lambda most, size: room(most, size) >= most / 2)
        return {}

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        require_real(update)
        update = finite_or_zero(bare(update))
        size = sum(tensor.size for tensor in (*update.delta.values(), *update.extra.values()))
        if not room(most, size) > 0:
            raise UpdateRefused(
                f"bits = {config.bits} are too few for the {size:,} numbers of its change; raise bits under"
                f" the transform {NAME}"
            )
        short, rounding = clipped(update, step * room(most, size)), draws.generator("rounding")
        coded = rounded(short, step, most, rounding)
        while squared_length(coded) > most**2:
            coded = rounded(short, step, most, rounding)
        return noisy(coded, variance, beyond, draws.generator("noise"))

    def on_arrival(update: Update, state: Any) -> Update:
        count = len(update.clients)
        require_codes(update, count * (most + beyond))
        mean = decoded(update, step / count)
        size = sum(tensor.size for tensor in (*mean.delta.values(), *mean.extra.values()))
        length, longest = length_of(mean), config.norm + step / count * noise_length(count * variance, size)
        if not length <= longest * NORM_TOLERANCE:
            raise UpdateRefused(
                f"it has norm {length:.6g}, above the {longest:.6g} that the transform {NAME} allows, noise"
                " included; apply the transforms of the run file at the client"
            )
        return replace(mean, metrics={})

    def spent(sampling: Sampling, rounds: int) -> Spending:
        # the server is not trusted with the draw of the cohorts, so any client may be in every round
        return Spending(noise=config.noise, sampling=Turns(every=1), steps=rounds, levels=most)

    return Transform(
        init=init,
        on_client=on_client,
        on_arrival=on_arrival,
        mechanism=Mechanism(spent=spent, honest=config.honest),
        largest_code=most + beyond,
        needs_equal_weights=True,
    )


def finite_or_zero(update: Update) -> Update:
    """The update, or zeros if a number of it is not finite: to stay away for that would tell of the data."""
    if not any((*not_finite(update.delta), *not_finite(update.extra))):
        return update
    delta, extra = (
        Payload({name: np.zeros_like(tensor) for name, tensor in part.items()})
        for part in (update.delta, update.extra)
    )
    return replace(update, delta=delta, extra=extra)


def room(most: int, size: int) -> float:
    """Length, in steps, to which `size` numbers are clipped so that they are `most` long when rounded.

    Either because no number moves by a step, or because the squared length after rounding is, but for a
    chance of beta, at most l^2 + size / 4 + sqrt(2 ln(1 / beta)) (l + sqrt(size) / 2); arXiv 2102.06387.

    >>> round(room(127, 100), 1), round(room(2**21 - 1, 18_000_000))
    (123.6, 2097147)
    """
    root = math.sqrt(size)
    square = most**2 - size / 4 - REDRAW * root / 2 + REDRAW**2 / 4
    likely = math.sqrt(square) - REDRAW / 2 if square > 0 else 0.0
    return max(most - root, likely)


def squared_length(update: Update) -> int:
    """The squared Euclidean norm of codes, exactly."""
    parts = (tensor.ravel() for tensor in (*update.delta.values(), *update.extra.values()))
    return sum(int(np.einsum("i,i", codes, codes)) for codes in parts)


def tail(variance: float) -> int:
    """A bound on Skellam noise, which a draw exceeds with a chance of at most 2 exp(-TAIL_NATS).

    Its cumulants of even order are all `variance`, so P[X >= x] <= exp(-x^2 / (2 (variance + x / 3)))
    (Bernstein).
    """
    return math.ceil(TAIL_NATS / 3 + math.sqrt((TAIL_NATS / 3) ** 2 + 2 * TAIL_NATS * variance))


def noise_length(variance: float, size: int) -> float:
    """A bound on the length of `size` draws of Skellam noise: ten deviations, and one number at its bound.

    A draw has the excess kurtosis 1 / variance, so the squared length has the mean `size` * variance and the
    standard deviation variance * sqrt(size (2 + 1 / variance)). A sum that is longer was not made by clients
    that keep to the run file; to look at the noisy sum costs no privacy.

    >>> round(noise_length(1e6, 1_000_000) / 1e6, 3)
    1.007
    """
    deviation = variance * math.sqrt(size * (2 + 1 / variance))
    return math.sqrt(size * variance + 10 * deviation + tail(variance) ** 2)


def noisy(update: Update, variance: float, beyond: int, rng: np.random.Generator) -> Update:
    """The codes with Skellam noise of this variance on each, cut at +-`beyond`."""

    def part(tensors: Payload) -> Payload:
        noise = {name: skellam(rng, variance, codes.shape) for name, codes in tensors.items()}
        return Payload({n: codes + np.clip(noise[n], -beyond, beyond) for n, codes in tensors.items()})

    return replace(update, delta=part(update.delta), extra=part(update.extra))


def skellam(rng: np.random.Generator, variance: float, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Draws of the difference of two Poisson numbers of mean variance / 2 each."""
    return np.asarray(poisson(rng, variance / 2, shape) - poisson(rng, variance / 2, shape))


def poisson(rng: np.random.Generator, mean: float, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Poisson draws, whose distribution is right at large means as well, up to `LARGEST_MEAN`.

    Arrival number m of a process of rate 1 comes at a time T of the gamma distribution of shape m. With m
    some deviations below the mean, what arrives between T and `mean` is Poisson of mean `mean` - T, which is
    small. If T is later, the m - 1 arrivals before it are uniform in (0, T). Ahrens and Dieter, Computing 12
    (1974).
    """
    if mean <= DIRECT:
        return np.asarray(rng.poisson(mean, shape), np.int64)
    first = math.floor(mean - BELOW * math.sqrt(mean))
    time = rng.standard_gamma(first, shape)
    drawn = np.array(first + rng.poisson(np.maximum(mean - time, 0.0)), np.int64)
    late = time > mean
    drawn[late] = rng.binomial(first - 1, mean / np.asarray(time)[late])
    return drawn
