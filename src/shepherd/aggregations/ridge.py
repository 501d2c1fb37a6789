"""The mean of A, and the B that fits the exact mean of the products best with it (LoRA-FAIR, ridge form).

    C  =  sum_k p_k (B_k - mean B)(A_k - mean A)  =  mean(BA) - mean(B) mean(A)
    D  =  argmin_D  ||C - D mean(A)||^2 + lambda ||D||^2  =  C mean(A)^T (mean(A) mean(A)^T + lambda I)^-1
    A  <-  mean(A),    B  <-  mean(B) + D

C is what averaging A and B apart leaves out; D puts back the part of it that the averaged A can say. C is
never a matrix of (out, in): each client's term is its B times an (r, r) matrix. Rank j stays rank j, so a
server step of any size is right. One client, or clients that agree, give the plain mean.

Bian et al., arXiv 2411.14961, minimise one minus a cosine similarity plus lambda ||D|| by gradient descent;
the squared distance has the same aim and a closed form. lambda is relative here, to the mean square of a
row of mean(A), so that it means the same for A and B scaled against each other.

Limits: the cohort's updates are held until the round's end, since the mean of A must be known; the result
depends on the basis of each client's factors, and what of C lies outside the rows of mean(A) is lost
(`energy_kept` in the log). A round in which only one factor travels is a plain mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shepherd.aggregations.mean import mean
from shepherd.config import Table
from shepherd.core import Adapter, Aggregation, Context, ServerState, Update, corner
from shepherd.core.experts import experts_of, joined_b, split_a, split_b
from shepherd.core.factor_gap import pairs

Matrices = NDArray[np.float64]


class Config(Table):
    ridge: Annotated[float, Field(ge=1e-9, allow_inf_nan=False)] = 0.01
    """Weight of the correction's size, relative to the mean square of a row of A; larger corrects less. At
    least 1e-9, below which the equations have no solution in float64 where rows of A are alike."""


def build(config: Config) -> Aggregation:
    """Build the aggregation."""

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        held = list(updates)
        merged = mean(state, iter(held), context)
        tensors: dict[str, NDArray[Any]] = dict(merged.delta)
        for pair in pairs(merged.delta):
            a, b = merged.delta[pair.a], merged.delta[pair.b]
            experts = experts_of(a, context.rank)
            mean_a, mean_b = split_a(a, experts), split_b(b, experts)  # changes: (E, r, in), (E, out, r)
            new_a = split_a(corner(state.adapter[pair.a], a.shape), experts) + mean_a
            overlap = np.zeros_like(mean_b)  # C mean(A)^T, (E, out, r)
            for update in held:
                off_a = split_a(update.delta[pair.a], experts) - mean_a
                off_b = split_b(update.delta[pair.b], experts) - mean_b
                overlap += update.weight / merged.weight * off_b @ (off_a @ new_a.swapaxes(1, 2))
            tensors[pair.b] = joined_b(mean_b + correction(overlap, new_a, config.ridge))
        return replace(merged, delta=Adapter(tensors))

    return Aggregation(combine=combine, streams=False, is_mean=False)


def correction(overlap: Matrices, a: Matrices, ridge: float) -> Matrices:
    """D of each expert, (E, out, r), from C A^T and A (E, r, in); zero where A is zero.

    >>> correction(np.array([[[3.0]]]), np.array([[[2.0]]]), 0.5).tolist()  # 3 / (4 + 0.5 * 4)
    [[[0.5]]]
    """
    gram = a @ a.swapaxes(1, 2)  # (E, r, r)
    rank = gram.shape[-1]
    scale = np.trace(gram, axis1=1, axis2=2)[:, None, None] / rank
    system = gram + np.where(scale > 0, ridge * scale, 1.0) * np.eye(rank)
    return np.linalg.solve(system, overlap.swapaxes(1, 2)).swapaxes(1, 2).astype(np.float64)
