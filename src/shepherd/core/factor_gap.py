"""The factor gap: how far the mean of A times the mean of B is from the mean of BA (law 10).

With p_k the weights of the mean, A_k and B_k the clients' local factors, and the sums over LoRA modules,

    gap = ||mean(BA) - mean(B) mean(A)||_F / ||mean(BA)||_F

The numerator is a covariance, sum_k p_k (B_k - mean B)(A_k - mean A), so it can be taken from the
changes dA and dB alone, in one pass, and does not lose precision to a large broadcast:

    mean(BA) - mean(B) mean(A)  =  mean(dB dA) - mean(dB) mean(dA)

A parameter that stacks one matrix per expert has one product per expert, and each counts as a module: PEFT
orders the rows of its A (E r, in) expert by expert, and the columns of its B (out, r E) rank by rank.

Memory is fixed: mean(dB dA) as a matrix where all modules together fit a budget, else that matrix
times a Gaussian sketch Omega, for which E ||M Omega||_F^2 = columns ||M||_F^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter, is_a
from shepherd.core.experts import experts_of
from shepherd.core.messages import Broadcast, Context, Update
from shepherd.core.randomness import Draws

K = TypeVar("K")
Matrix = NDArray[np.float64]
MAX_MATRIX_BYTES = 64 * 2**20
"""Bytes that the matrices of all modules may take before they are sketched."""
SKETCH_COLUMNS = 64
"""Columns of the sketch; an estimated squared norm has a relative deviation of at most sqrt(2 / columns).

The deviations of many modules average out: with 16 columns the gap of 224 random ones came within 0.3%.
"""
MIN_SKETCH_COLUMNS = 8
LOG_COLUMN = "gap"
"""Name of its column in rounds.jsonl."""


class Pair(NamedTuple):
    """The two factors of one LoRA module, by their PEFT names."""

    a: str
    b: str


def pairs(names: Iterable[str]) -> tuple[Pair, ...]:
    """The modules that have both factors.

    >>> pairs(["q.lora_A.weight", "q.lora_B.weight", "norm.weight"])
    (Pair(a='q.lora_A.weight', b='q.lora_B.weight'),)
    """
    known = set(names)
    both = ((name, name.replace(".lora_A.", ".lora_B.")) for name in known if is_a(name))
    return tuple(sorted(Pair(a, b) for a, b in both if b in known))


class Gap:
    """The relative gap of one round: `add` each update, then ask for `value`.

    Args:
        adapter: the broadcast.
        draws: random numbers for the sketch; the same draws give the same bits.
        budget: bytes for the matrices of all modules; above it they are sketched.
        rank: rank of every matrix's factors, if some tensors stack experts; None if none does.

    An update may carry A alone or B alone; the other factor is then the broadcast's, and the numerator
    is exactly zero. One with fewer ranks than the adapter moves the first ones.
    Memory, in float64: twice the adapter, and at most the budget (or eight columns, where even these take
    more).
    """

    def __init__(
        self, adapter: Adapter, draws: Draws, budget: int = MAX_MATRIX_BYTES, rank: int | None = None
    ) -> None:
        self._adapter = adapter
        self._rank = rank
        self._weight = 0.0
        self._changes: dict[str, Matrix] = {}  # sum of w dA, of w dB
        self._products: dict[Pair, Matrix] = {}  # sum of w dB dA Omega, (E, out, columns) or (E, out, in)
        self._omega = _sketch(adapter, draws, budget, rank)

    def add(self, update: Update) -> None:
        """Include one update, with its weight."""
        self._weight += update.weight
        delta = update.delta
        both = pairs(delta)
        for pair in both:  # one at a time: all of them in float64 would be two more updates
            a, b = _in_float64(delta[pair.a], update.weight), _in_float64(delta[pair.b])
            _accumulate(self._products, pair, self._product(b, self._apply_sketch(a)))
            self._add_change(pair.a, a)
            self._add_change(pair.b, np.multiply(b, update.weight, out=b))
        for name in delta.keys() - {name for pair in both for name in pair}:
            self._add_change(name, _in_float64(delta[name], update.weight))

    def value(self) -> float:
        """The relative gap in [0, inf]: 0 if nothing was learned, or only one factor moved.

        It is inf if the mean of BA cancels to zero and the clients differ.
        """
        buffers: dict[
            tuple[int, ...], Matrix
        ] = {}  # kept over modules: fresh memory costs more than the sums
        squares = [self._squares(pair, buffers) for pair in pairs(self._adapter)]
        gap = math.sqrt(math.fsum(above for above, _ in squares))
        whole = math.sqrt(math.fsum(below for _, below in squares))
        if not gap:
            return 0.0
        return gap / whole if whole else math.inf

    def figures(self) -> dict[str, float]:
        """The gap, by its column in rounds.jsonl."""
        return {LOG_COLUMN: self.value()}

    def _squares(self, pair: Pair, buffers: dict[tuple[int, ...], Matrix]) -> tuple[float, float]:
        mean_a, mean_b = self._mean(pair.a), self._mean(pair.b)  # changes, (r, in) and (out, r)
        local_a, local_b = self._apply_sketch(self._adapter[pair.a] + mean_a), self._adapter[pair.b] + mean_b
        # (E, out, columns) or (E, out, in)
        shape = experts_of(local_a, self._rank), len(local_b), local_a.shape[1]
        if shape not in buffers:
            buffers[shape] = np.empty((3, *shape))
        whole, covariance, term = buffers[shape]
        self._product(local_b, local_a, whole)
        if pair not in self._products:
            return 0.0, float(np.vdot(whole, whole))
        np.divide(self._products[pair], self._weight, out=covariance)
        covariance -= self._product(mean_b, self._apply_sketch(mean_a), term)
        whole += covariance
        return float(np.vdot(covariance, covariance)), float(np.vdot(whole, whole))

    def _product(self, b: Matrix, a: Matrix, out: Matrix | None = None) -> Matrix:
        """B (out, r E) and A (E r, in or columns) -> each expert's BA, (E, out, in or columns)."""
        experts = experts_of(a, self._rank)
        by_expert = b.reshape(len(b), -1, experts).transpose(2, 0, 1)  # (E, out, r)
        return np.matmul(by_expert, a.reshape(experts, -1, a.shape[1]), out=out)

    def _add_change(self, name: str, term: Matrix) -> None:
        """Add w dA or w dB; the ranks that a client does not train did not move."""
        shape = self._adapter[name].shape
        if name in self._changes:
            self._changes[name][tuple(map(slice, term.shape))] += term
        elif term.shape == shape:
            self._changes[name] = term
        else:
            self._changes[name] = np.zeros(shape)
            self._changes[name][tuple(map(slice, term.shape))] = term

    def _mean(self, name: str) -> Matrix:
        if name not in self._changes:
            return np.zeros(self._adapter[name].shape)
        return self._changes[name] / self._weight

    def _apply_sketch(self, a: Matrix) -> Matrix:
        return a if self._omega is None else a @ self._omega[a.shape[1]]  # (r, columns)


def observe(broadcast: Broadcast, context: Context, draws: Draws) -> Gap:
    """Make the observer of a method that averages factors."""
    return Gap(broadcast.adapter, draws, rank=context.rank)


def _in_float64(tensor: NDArray[np.float32], weight: float = 1.0) -> Matrix:
    return np.multiply(tensor, weight, dtype=np.float64)


def _accumulate(sums: dict[K, Matrix], key: K, term: Matrix) -> None:
    if key in sums:
        sums[key] += term
    else:
        sums[key] = term


def _sketch(adapter: Adapter, draws: Draws, budget: int, rank: int | None) -> Mapping[int, Matrix] | None:
    """Omega by input width, (in, columns); None if the exact matrices fit into the budget.

    Modules of one width share their Omega: the estimate of the sum of squares stays unbiased, and a
    model has few widths.
    """
    shapes = [
        (experts_of(adapter[a], rank) * adapter[b].shape[0], adapter[a].shape[1]) for a, b in pairs(adapter)
    ]
    if 8 * sum(out * width for out, width in shapes) <= budget:
        return None
    fitting = budget // (8 * sum(out for out, _ in shapes))
    columns = max(MIN_SKETCH_COLUMNS, min(SKETCH_COLUMNS, fitting))
    return {
        width: draws.generator("sketch", width).standard_normal((width, columns))
        for width in {width for _, width in shapes}
    }
