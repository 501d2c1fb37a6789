"""Send whole numbers: clip each change, and round it at random to multiples of a step.

    code  =  floor(x w / (s c) + u),    s = norm / (2^(bits - 1) - 1),    u uniform in [0, 1)

for each number x of the change of a client of weight w, where c is `largest_weight`; w / c is 1 where all
clients weigh the same. E[code] = x w / (s c), so rounding is unbiased, and moves each number by less than a
step. Sums of whole numbers are exact and wrap around without an error, which is what secure aggregation
needs (`[secure]`): the server decodes the update of one client, or the sum of several, by

    change  =  s sum_k code_k / sum_k (w_k / c)

With weights, one more code carries w / c in the same steps, and the change is multiplied by what that code
says, so that the weights in the numerator and in the denominator are the same numbers.

What arrives is longer than `norm` at most by the rounding, which is undone: the mean of the clients' changes
is within `norm`, so the nearest change within it is at least as near to that mean. Stochastic rounding of
clipped changes as in Bonawitz et al., arXiv 1912.00131.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import Table
from shepherd.core import Adapter, Context, Draws, Payload, Transform, Update, not_finite
from shepherd.errors import SettingsError, UpdateRefused
from shepherd.transforms.clip import NORM_TOLERANCE, clipped, length_of

NAME = "fixed_point"
WEIGHT = "fixed_point.weight"
"""The tensor of `extra` with the client's weight, in multiples of `largest_weight` once it is decoded."""
Codes = Mapping[str, NDArray[np.int64]]
Norm = Annotated[float, Strict(), Field(ge=1e-6, le=1e6)]
"""Lengths whose float32 numbers keep their precision: a change that is clipped to less is no longer in it."""


class Config(Table):
    norm: Norm = 1.0
    """Largest Euclidean norm of a client's change; longer ones are made shorter."""
    bits: Annotated[int, Strict(), Field(ge=2, le=32)] = 22
    """Bits of one number, its sign included: a step is norm / (2^(bits - 1) - 1)."""
    largest_weight: Annotated[float, Strict(), Field(gt=0.0, le=1e12)] | None = None
    """Largest weight of a client, needed unless federation.weights is "equal"; a heavier one counts as much
    as this. A client of a tenth of it has a tenth of the steps, so set it near the largest real weight."""


def build(config: Config) -> Transform:
    """Build both halves: encode at the client, decode on arrival."""
    most = levels(config.bits)
    step = config.norm / most

    def init(context: Context) -> dict[str, Any]:
        # rounding moves each number by half a step or less, on average
        require_bits(NAME, config.bits, context, lambda most, size: most >= math.sqrt(size))
        return {}

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        require_real(update)
        for name in (*not_finite(update.delta), *not_finite(update.extra)):
            raise UpdateRefused(f"tensor {name} is not finite; lower the learning rate or clip the gradient")
        short = clipped(update, config.norm)
        rng = draws.generator("rounding")
        if config.largest_weight is None:
            return replace(rounded(short, step, most, rng), weight=1.0)
        weight = weight_code(update.weight, config.largest_weight, most)
        coded = rounded(short, step * most / weight, most, rng)
        return replace(coded, extra=Payload({**coded.extra, WEIGHT: np.array([weight])}))

    def on_arrival(update: Update, state: Any) -> Update:
        count = len(update.clients)
        require_codes(update, count * most)
        if config.largest_weight is None:
            return within(decoded(update, step / count), config.norm, step)
        weight, coded = _weight_apart(update, config.largest_weight, most)
        total = weight / most
        mean = within(decoded(coded, step / total), config.norm, step * count / total)
        extra = Adapter({**mean.extra, WEIGHT: np.array([total / count])})
        return replace(mean, extra=extra, weight=total * config.largest_weight)

    def on_server(update: Update, state: Any, draws: Draws) -> tuple[Update, Any]:
        rest = {name: tensor for name, tensor in update.extra.items() if name != WEIGHT}
        return (replace(update, extra=Adapter(rest)) if WEIGHT in update.extra else update), state

    return Transform(
        init=init,
        on_client=on_client,
        on_arrival=on_arrival,
        on_server=on_server,
        adds={} if config.largest_weight is None else {WEIGHT: (1,)},
        largest_code=most,
        largest_weight=config.largest_weight or math.inf,
        norm=config.norm,
        needs_equal_weights=config.largest_weight is None,
    )


def require_bits(name: str, bits: int, context: Context, enough: Callable[[int, int], bool]) -> None:
    """Raise SettingsError if rounding would be longer than half of the norm.

    Args:
        enough: `(levels, number of values of a change) -> whether it is not`.
    """
    size = sum(math.prod(shape) for shape in context.layout.values())
    if not enough(levels(bits), size):
        needed = next(more for more in itertools.count(bits) if enough(levels(more), size))
        raise SettingsError(
            f"bits = {bits} under the transform {name} are so few that the rounding of {size:,} numbers would"
            f" be longer than half of the norm; set bits = {needed} or more"
        )


def levels(bits: int) -> int:
    """How many steps are in `norm`: the largest whole number of this many bits.

    >>> levels(8)
    127
    """
    return (1 << (bits - 1)) - 1


def weight_code(weight: float, largest: float, most: int) -> int:
    """The weight that a client counts with, in multiples of largest / most, from 1 to `most`.

    >>> weight_code(50.0, 100.0, 127), weight_code(1e9, 100.0, 127), weight_code(1e-9, 100.0, 127)
    (64, 127, 1)
    """
    return max(1, round(min(weight / largest, 1.0) * most))


def require_real(update: Update) -> None:
    """Raise UpdateRefused, naming the tensor, unless all tensors hold floating-point numbers."""
    for name, tensor in (*update.delta.items(), *update.extra.items()):
        if tensor.dtype.kind != "f":
            raise UpdateRefused(
                f"tensor {name} has dtype {tensor.dtype}, which cannot be rounded; remove the transform that"
                " encoded it from the run file"
            )


def rounded(update: Update, step: float, most: int, rng: np.random.Generator) -> Update:
    """The update as codes within +-`most`: numbers in steps, rounded up or down at random without a bias."""

    def codes(tensors: Mapping[str, NDArray[Any]]) -> Payload:
        return Payload({name: _codes(tensor, step, most, rng) for name, tensor in tensors.items()})

    return replace(update, delta=codes(update.delta), extra=codes(update.extra))


def _codes(tensor: NDArray[Any], step: float, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    steps = np.clip(tensor.astype(np.float64) / step, -most, most)
    below = np.floor(steps)
    up = rng.random(steps.shape) < steps - below
    return np.asarray(below + up).astype(np.int64)


def require_codes(update: Update, largest: int) -> None:
    """Raise UpdateRefused, naming the tensor, unless all tensors are int64 and within +-`largest`."""
    for tensors in (update.delta, update.extra):
        for name, codes in tensors.items():
            if codes.dtype != np.int64:
                raise UpdateRefused(
                    f"tensor {name} has dtype {codes.dtype}, not int64; apply the run file's transforms at"
                    " the client"
                )
            if codes.size and not -largest <= int(codes.min()) <= int(codes.max()) <= largest:
                raise UpdateRefused(
                    f"tensor {name} has a whole number beyond +-{largest}, which the transforms of the run"
                    " file never send; apply them at the client"
                )


def decoded(update: Update, step: float) -> Update:
    """The update in real numbers: float32 multiples of `step`."""
    delta, extra = (
        Adapter({name: step * codes for name, codes in part.items()}) for part in (update.delta, update.extra)
    )
    return replace(update, delta=delta, extra=extra, weight=float(len(update.clients)))


def within(update: Update, norm: float, moved: float) -> Update:
    """The nearest update of at most this norm, where rounding made it longer.

    Args:
        moved: what rounding changes each number by, at most.

    Raises:
        UpdateRefused: it is longer than rounding can have made it.
    """
    length, size = length_of(update), sum(t.size for t in (*update.delta.values(), *update.extra.values()))
    most = NORM_TOLERANCE * norm + moved * math.sqrt(size)
    if not length <= most:
        raise UpdateRefused(
            f"its change has norm {length:.6g}, above the {norm:g} that the transform {NAME} allows, rounding"
            " included; clip it at the client as the run file says"
        )
    return clipped(update, norm)


def _weight_apart(update: Update, largest: float, most: int) -> tuple[int, Update]:
    """The code of the weight, summed over the update's clients, and the update without it."""
    count, code = len(update.clients), update.extra.get(WEIGHT)
    if code is None or code.shape != (1,) or not count <= int(code[0]):
        raise UpdateRefused(
            f"it does not say in {WEIGHT} how much it weighs; apply the transform {NAME} at the client"
        )
    if count == 1 and int(code[0]) != weight_code(update.weight, largest, most):
        raise UpdateRefused(
            f"its weight {update.weight:g} is not the one that {WEIGHT} says; apply the transform {NAME} at"
            " the client"
        )
    rest = Payload({name: codes for name, codes in update.extra.items() if name != WEIGHT})
    return int(code[0]), replace(update, extra=rest)
