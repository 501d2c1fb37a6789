"""Parts of sentences that messages and tables share."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names to a phrase, with at most `most` of them.

    >>> listed(["base"]), listed(["base", "a", "b"]), listed(list("abcdefgh"), most=3)
    ('base', 'base, a and b', 'a, b, c and 5 others')
    """
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
