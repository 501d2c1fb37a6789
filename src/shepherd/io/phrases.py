"""Parts of sentences that messages and tables share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names to a phrase, with at most `most` of them.

    >>> listed(["base"]), listed(["base", "a", "b"]), listed(list("abcdefgh"), most=3)
    ('base', 'base, a and b', 'a, b, c and 5 others')
    """
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def rounded_up(number: float, digits: int) -> float:
    """A number of at least 0 in so many significant digits, and never below what it is.

    >>> rounded_up(4.85404, 4), rounded_up(1e-05, 3), rounded_up(0.0, 3)
    (4.855, 1e-05, 0.0)
    """
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(float(number))))


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon in four digits, rounded up; it may be infinite, which JSON keeps as null.

    >>> epsilon_text(1.23411), epsilon_text(None), epsilon_text(math.inf)
    ('1.235', 'unbounded', 'unbounded')
    """
    if epsilon is None or not math.isfinite(epsilon):
        return "unbounded"
    return f"{rounded_up(epsilon, 4):.4g}"


def proven_text(epsilon: float) -> str:
    """A lower bound of an epsilon in two decimals, rounded down: no more is said than is proven.

    >>> proven_text(1.239), proven_text(0.0)
    ('1.23', '0.00')
    """
    return str(Decimal(repr(float(epsilon))).quantize(Decimal("0.01"), ROUND_FLOOR))


def delta_text(delta: float) -> str:
    """A delta in three digits, rounded up.

    >>> delta_text(0.009061), delta_text(1e-05)
    ('0.00907', '1e-05')
    """
    return f"{rounded_up(delta, 3):.3g}"


def data_size(value: float) -> str:
    """Bytes in units of powers of 1000.

    >>> [data_size(n) for n in (0, 999, 1000, 71_600_000, 5e15)]
    ['0 B', '999 B', '1 kB', '71.6 MB', '5000 TB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB" if value < 1000 else f"{value:.0f} TB"
