"""Changes of products BA as vectors of a fixed width, without a matrix of (out, in).

A client moves module j from B A to (B + dB)(A + dA), so its change of the weights is

    dW  =  dB (A + dA) + B dA

The vector of a change is linear in it, and keeps norms and inner products over all modules together:
exactly if all matrices together have no more entries than the width, else in expectation, by TensorSketch
(Pham and Pagh, KDD 2013). It counts the rows of B and the columns of A into random buckets with random
signs; the sketch of an outer product is the circular convolution of the two, so in Fourier space it is a
product. One vector costs O((out + in) rank + width log width) a module.

An estimated inner product of x and y deviates by about ||x|| ||y|| sqrt(2 / width) where many modules or
ranks contribute, and by at most twice that for a single matrix of rank 1. The same sketch serves a whole
round: its differences and means are the sketches of the differences and means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter
from shepherd.core.experts import experts_of, split_a, split_b
from shepherd.core.factor_gap import Pair, pairs
from shepherd.core.randomness import Draws

Vector = NDArray[np.float64]
WIDTH = 1024
"""Numbers in a vector: a cosine of two changes deviates by about 0.03."""
MAX_KEPT_BYTES = 256 * 2**20
"""Most bytes of the broadcast's own factors, lifted, that are kept for a round; the others are lifted again
for each update. Of a base with thousands of experts they take more than its adapter."""


class _Side(NamedTuple):
    """The bucket and the sign of each row of B, or column of A, of every expert: (E, n) each."""

    buckets: NDArray[np.unsignedinteger]
    signs: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class _Module:
    pair: Pair
    experts: int
    a: _Side | None
    b: _Side | None


class ProductSketch:
    """Vectors of the changes from one adapter; the same draws give the same vectors.

    Args:
        adapter: the broadcast.
        draws: random numbers for the buckets and signs.
        rank: rank of every matrix's factors, if some tensors stack experts; None if none does.
        width: numbers in a vector.

    Memory: at most `MAX_KEPT_BYTES`, three bytes for each row and column of a module, and what a change has
    in float64, one module at a time.
    """

    def __init__(self, adapter: Adapter, draws: Draws, rank: int | None = None, width: int = WIDTH) -> None:
        self.width = width
        found = [(pair, experts_of(adapter[pair.a], rank)) for pair in pairs(adapter)]
        entries = [e * len(adapter[pair.b]) * adapter[pair.a].shape[1] for pair, e in found]
        self.exact = sum(entries) <= width
        self._modules = [self._module(adapter, draws, pair, experts) for pair, experts in found]
        self._adapter = adapter
        self._kept: list[tuple[NDArray[Any], NDArray[Any]]] = []
        room = MAX_KEPT_BYTES
        for module in self._modules:
            own = self._own(module)
            room -= own[0].nbytes + own[1].nbytes
            if room < 0:
                break
            self._kept.append(own)

    def whole(self) -> Vector:
        """The vector of the adapter's own products."""
        pairs = (self._sides(k) for k in range(len(self._modules)))
        return self._vector([self._product(b, a) for a, b in pairs])

    def change(self, delta: Mapping[str, NDArray[Any]]) -> Vector:
        """The vector of a change; a factor that is not in `delta`, or a rank of it, did not move."""
        return self._vector([self._changed(k, module, delta) for k, module in enumerate(self._modules)])

    def _module(self, adapter: Adapter, draws: Draws, pair: Pair, experts: int) -> _Module:
        if self.exact:
            return _Module(pair, experts, None, None)
        sides = (
            _side(draws.generator("products", name), (experts, length), self.width)
            for name, length in ((pair.a, adapter[pair.a].shape[1]), (pair.b, len(adapter[pair.b])))
        )
        return _Module(pair, experts, *sides)

    def _sides(self, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """A and B of a module of the broadcast, lifted."""
        return self._kept[k] if k < len(self._kept) else self._own(self._modules[k])

    def _own(self, module: _Module) -> tuple[NDArray[Any], NDArray[Any]]:
        a = split_a(self._adapter[module.pair.a], module.experts).swapaxes(1, 2)
        b = split_b(self._adapter[module.pair.b], module.experts)
        return self._lifted(a, module.a), self._lifted(b, module.b)

    def _changed(self, k: int, module: _Module, delta: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        a, b = self._sides(k)
        terms = []
        if module.pair.a in delta:
            d_a = self._lifted(split_a(delta[module.pair.a], module.experts).swapaxes(1, 2), module.a)
            ranks = d_a.shape[-1]
            terms.append(self._product(b[..., :ranks], d_a))
            a = np.concatenate([a[..., :ranks] + d_a, a[..., ranks:]], axis=-1)
        if module.pair.b in delta:
            d_b = self._lifted(split_b(delta[module.pair.b], module.experts), module.b)
            terms.append(self._product(d_b, a[..., : d_b.shape[-1]]))
        changed: NDArray[Any] = sum(terms, start=self._product(b[..., :0], a[..., :0]))
        return changed

    def _lifted(self, factor: Vector, side: _Side | None) -> NDArray[Any]:
        """A factor (E, n, r), or the Fourier transform of its sketch, (E, width // 2 + 1, r)."""
        return factor if side is None else np.fft.rfft(_counted(factor, side, self.width), axis=1)

    def _product(self, b: NDArray[Any], a: NDArray[Any]) -> NDArray[Any]:
        product: NDArray[Any] = np.einsum("eor,eir->eoi" if self.exact else "efr,efr->f", b, a)
        return product

    def _vector(self, terms: Sequence[NDArray[Any]]) -> Vector:
        if not terms:
            return np.zeros(0)
        if self.exact:
            return np.concatenate([term.ravel() for term in terms])
        return np.fft.irfft(sum(terms), n=self.width)


def _side(random: np.random.Generator, shape: tuple[int, int], width: int) -> _Side:
    """Buckets and signs; of each `width` positions in a row, no two have one bucket."""
    experts, length = shape
    blocks = -(-length // width)
    order = np.arange(width).astype(np.min_scalar_type(width))  # there are as many as rows and columns
    buckets = random.permuted(np.tile(order, (experts * blocks, 1)), axis=1)
    signs = random.choice(np.array([-1, 1], np.int8), shape)
    return _Side(buckets.reshape(experts, -1)[:, :length].copy(), signs)


def _counted(factor: Vector, side: _Side, width: int) -> Vector:
    """The count sketch of each rank of a factor (E, n, r): (E, width, r)."""
    experts, length, ranks = factor.shape
    counted = np.zeros((experts, width, ranks))
    rows = np.arange(experts)[:, None]
    for first in range(0, length, width):
        block = slice(first, first + width)  # its buckets differ, so no term of the sum is lost
        counted[rows, side.buckets[:, block]] += factor[:, block] * side.signs[:, block, None]
    return counted
