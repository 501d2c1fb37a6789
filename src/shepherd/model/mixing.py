"""Combine several adapters of one base into one.

With weights w_k, scales s_k (alpha / r_k) and s that of the result:

    product   s B A = sum_k w_k s_k B_k A_k, exact at the sum of the ranks, else the best approximation
    linear    A = sum_k sqrt(|w_k| s_k / s) sign(w_k) A_k,    B = sum_k sqrt(|w_k| s_k / s) B_k
    ties      the same numbers, but of each factor only the largest in size and those of the sign that wins

PEFT's `add_weighted_adapter` calls the first `cat`, or `svd` at a rank. Its `linear` and `ties` mix the
factors: their product has the terms B_j A_k of different adapters as well, so it is no sum of the adapters.
TIES is of Yadav et al., arXiv 2306.01708; there it prunes changes of whole weights, and PEFT prunes factors.
Both come from PEFT's own functions here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.core import Adapter, product
from shepherd.core.adapter import is_a
from shepherd.core.experts import joined_a, joined_b, split_a, split_b
from shepherd.core.product import Factors
from shepherd.errors import AdapterError
from shepherd.model import lora
from shepherd.model.lora import Target

DENSITY = 0.5
"""Share of each factor's numbers that `ties` keeps by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the adapters that are combined."""

    name: str
    """For messages."""
    adapter: Adapter
    scale: float
    """What its products are multiplied by in its model."""
    weight: float
    """What the model's change is multiplied by here; may be negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How adapters are combined."""

    scale: float
    """What the result's products are multiplied by in its model."""
    rank: int | None = None
    """Rank of the result, of `product` alone; None keeps all ranks."""
    density: float | None = None
    """Share of each factor's numbers that is kept, of `ties` alone; None is `DENSITY`."""


def by_product(targets: Sequence[Target], parts: Sequence[Part], how: Mixture) -> Adapter:
    """The weighted sum of the products: exact, or the best approximation of a rank.

    Raises:
        AdapterError: a density is given.
    """
    if how.density is not None:
        raise AdapterError('density is for "ties" alone; leave it out')
    tensors: dict[str, NDArray[Any]] = {}
    for target in targets:
        a, b = zip(*(_of_target(target, part) for part in parts), strict=True)
        made = [
            _summed([Factors(*pair) for pair in zip(own_b, own_a, strict=True)], parts, how)
            for own_b, own_a in zip(zip(*b, strict=True), zip(*a, strict=True), strict=True)
        ]
        tensors[target.name_a] = joined_a(np.stack([each.a for each in made]))
        tensors[target.name_b] = joined_b(np.stack([each.b for each in made]))
    return Adapter(tensors)


def by_linear(targets: Sequence[Target], parts: Sequence[Part], how: Mixture) -> Adapter:
    """The weighted sums of A and of B.

    Raises:
        AdapterError: a density or a rank is given, or the ranks differ.
    """
    if how.density is not None:
        raise AdapterError('density is for "ties" alone; leave it out')
    from peft.utils.merge_utils import task_arithmetic  # PEFT takes seconds

    return _by_factor(targets, parts, how, task_arithmetic)


def by_ties(targets: Sequence[Target], parts: Sequence[Part], how: Mixture) -> Adapter:
    """The weighted sums of A and of B with small numbers, and those of the losing sign, left out.

    Raises:
        AdapterError: a rank is given, or the ranks differ.
    """
    from peft.utils.merge_utils import ties

    density = DENSITY if how.density is None else how.density
    return _by_factor(targets, parts, how, lambda tensors, weights: ties(tensors, weights, density))


Way = Callable[[Sequence[Target], Sequence[Part], Mixture], Adapter]
WAYS: Mapping[str, Way] = {"product": by_product, "linear": by_linear, "ties": by_ties}
"""The ways to combine adapters, by the names that a person writes."""


def _of_target(target: Target, part: Part) -> tuple[NDArray[Any], NDArray[Any]]:
    """The factors of each of a target's experts: (E, r, in) and (E, out, r)."""
    a, b = part.adapter[target.name_a], part.adapter[target.name_b]
    return split_a(a, target.experts), split_b(b, target.experts)


def _summed(factors: Sequence[Factors], parts: Sequence[Part], how: Mixture) -> Factors:
    weights, scales = [part.weight for part in parts], [part.scale for part in parts]
    whole = product.stacked(factors, weights, scales, how.scale)
    return whole if how.rank is None else product.compressed(whole, how.rank)


def _by_factor(
    targets: Sequence[Target],
    parts: Sequence[Part],
    how: Mixture,
    merge: Callable[[list[Tensor], Tensor], Tensor],
) -> Adapter:
    if how.rank is not None:
        raise AdapterError('rank is for "product" alone, which sums whole products; leave it out')
    first = lora.ranks(targets, parts[0].adapter)
    for part in parts:
        for name, rank in lora.ranks(targets, part.adapter).items():
            if rank != first[name]:
                raise AdapterError(
                    f"tensor {name} has rank {rank} in {part.name} and {first[name]} in {parts[0].name}, and"
                    ' factors are mixed rank by rank; use "product", which takes unequal ranks'
                )
    sizes = [math.sqrt(abs(part.weight) * part.scale / how.scale) for part in parts]
    signed = [math.copysign(size, part.weight) for size, part in zip(sizes, parts, strict=True)]
    return Adapter(
        {
            name: merge(
                [torch.from_numpy(part.adapter[name].copy()) for part in parts],
                torch.tensor(signed if is_a(name) else sizes),
            ).numpy()
            for name in parts[0].adapter
        }
    )
