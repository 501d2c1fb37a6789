"""The weighted sum of the clients' products B A, cut to the adapter's rank (FlexLoRA).

    W  =  BA + step (sum_k p_k B_k A_k - BA),    B' A' = the best approximation of W of the adapter's rank

Bai et al., arXiv 2402.11505. The mean of A and the mean of B are not the factors of the mean of BA; this is
exact but for the cut, and clients may have different ranks. The factors come from QR of the stacks and a
small SVD, at a cost of O((out + in) R^2) for R ranks in the round; the published code decomposes the matrix
(out, in). All updates of a round are held. A momentum of the server does not fit, since ranks change their
meaning from round to round.

A client of a smaller rank trains the first ranks and has the others as they were sent, so that its product
is that of a whole model. With `truncated`, as in the paper, it is sent its own ranks alone, in the order of
their singular values. High ranks, which few clients have, then fade from round to round, and `rank_weights`
corrects this: rank j of client k counts p_k / (sum of p_i over the clients with r_i >= j), which is raFLoRA's
rule (arXiv 2602.13486) as its abstract states it. With equal ranks neither changes anything.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Strict, model_validator

from shepherd.config import PositiveFloat, Table
from shepherd.core import Aggregation, product
from shepherd.core.local_factors import Module, of_products
from shepherd.core.product import Factors, Near, Spectrum

Split = Literal["aligned", "ordered", "balanced"]


class Config(Table):
    step: PositiveFloat = 1.0
    """Step size from the broadcast's product to the clients' mean product; 1 is FlexLoRA."""
    split: Split = "aligned"
    """How the product is divided: "aligned" keeps A near the clients' mean A, "ordered" puts the ranks in the
    order of their singular values with A at its scale, and "balanced" gives A and B equal norms."""
    truncated: Annotated[bool, Strict()] = False
    """Whether a client of a smaller rank is sent its own ranks alone, and not the others with them frozen
    (FlexLoRA)."""
    rank_weights: Annotated[bool, Strict()] = False
    """With truncated, whether each rank is weighted over the clients that have it (raFLoRA)."""

    @model_validator(mode="after")
    def _require_truncated(self) -> Self:
        if self.rank_weights and not self.truncated:
            raise ValueError("rank_weights has no effect without truncated = true; set it, or remove this")
        return self


def build(config: Config) -> Aggregation:
    """Build the mean of the products, cut to the rank."""

    def after(module: Module) -> Factors:
        found = product.spectrum(_target(module, config), module.rank)
        return factors(found, module.near(config.step), config.split)

    return of_products(after, truncated=config.truncated)


def factors(found: Spectrum, near: Near, split: Split) -> Factors:
    """Divide a product into factors."""
    match split:
        case "aligned":
            return product.aligned(found, near)
        case "ordered":
            return product.ordered(found, near)
        case "balanced":
            return product.balanced(found, near)


def _target(module: Module, config: Config) -> Factors:
    """The product that the server moves to, as a stack."""
    parts, weights = list(module.local), list[product.Weight](module.weights)
    if config.rank_weights:
        parts = [product.in_order(part) for part in parts]
        ranks = [len(part.a) for part in parts]
        weights = list(product.rank_weights(ranks, module.weights))
    if config.step != 1.0:
        parts.append(module.broadcast)
        weights = [*(config.step * weight for weight in weights), 1.0 - config.step]
    return product.stacked(parts, weights)
