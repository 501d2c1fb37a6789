"""The sum of clients' products B A from sums alone, for a server that sees only sums.

In two passes, each a sum over the clients k that secure aggregation can take:

    Y = sum_k p_k B_k (A_k Omega),    Q = an orthonormal basis of Y
    Z = sum_k p_k A_k^T (B_k^T Q),    sum_k p_k B_k A_k  ~  Q Z^T

with a matrix Omega (in, columns) that all draw from one seed. This is the randomised range finder of Halko,
Martinsson and Tropp (arXiv 0909.4061), as FedASK (arXiv 2507.09990) uses it. It is exact if the sum has a
rank of at most `columns`, and else close to the best approximation of that rank. A client sends
columns * (out + in) numbers a matrix, as for an adapter of this rank, in two messages.
"""

from __future__ import annotations

import numpy as np

from shepherd.core.product import Factors, Matrix
from shepherd.core.randomness import Draws


def omega(draws: Draws, width: int, columns: int) -> Matrix:
    """The Gaussian matrix (in, columns) of a width; the same for all modules of this width."""
    return draws.generator("sketch of products", width).standard_normal((width, columns))


def first_message(part: Factors, weight: float, omega: Matrix) -> Matrix:
    """A client's part of Y, (out, columns)."""
    return weight * (part.b @ (part.a @ omega))


def basis(first: Matrix) -> Matrix:
    """An orthonormal basis Q of the sum of the first messages, (out, min(out, columns))."""
    return np.linalg.qr(first)[0]


def second_message(part: Factors, weight: float, basis: Matrix) -> Matrix:
    """A client's part of Z, (in, columns)."""
    return weight * (part.a.T @ (part.b.T @ basis))


def factors(basis: Matrix, second: Matrix) -> Factors:
    """B = Q and A = Z^T, with Z the sum of the second messages; `product.spectrum` puts them in order."""
    return Factors(basis, second.T)
