"""Parts of sentences that messages and tables share."""

from __future__ import annotations

import math
from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names to a phrase, with at most `most` of them.

    >>> listed(["base"]), listed(["base", "a", "b"]), listed(list("abcdefgh"), most=3)
    ('base', 'base, a and b', 'a, b, c and 5 others')
    """
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def epsilon_text(epsilon: float | None, digits: int = 3) -> str:
    """An epsilon in so many digits; it may be infinite, which JSON keeps as null.

    >>> epsilon_text(1.2345), epsilon_text(None), epsilon_text(math.inf)
    ('1.23', 'unbounded', 'unbounded')
    """
    return "unbounded" if epsilon is None or not math.isfinite(epsilon) else f"{epsilon:.{digits}g}"


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
