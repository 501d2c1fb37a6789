"""Sums of whole numbers in a ring: whether those of a run fit, and what they are once added up.

In a ring of b bits whole numbers are added modulo 2^b, so that masks cancel and an order of adding does not
matter. A sum of c clients is right if c times the largest code is at most 2^(b - 1) - 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Method, Selection
from shepherd.errors import SettingsError
from shepherd.io.progress import many
from shepherd.settings import RunSettings

FEWEST = 3
"""Fewest clients that sums can hide: of two, each knows the other's update from the sum."""


def fewest_in_sum(asked: int) -> int:
    """Fewest of the clients asked whose sum is opened: more than two thirds, so that no two sums of one round
    can be over different clients, unless a third of them cheat.

    >>> [fewest_in_sum(asked) for asked in (3, 4, 10, 100)]
    [3, 3, 7, 67]
    """
    return 2 * asked // 3 + 1


def centred(sums: NDArray[np.uint64], ring_bits: int) -> NDArray[np.int64]:
    """The whole numbers of a ring that are nearest to zero.

    >>> centred(np.array([2**32 - 1, 5], np.uint64), 32).tolist()
    [-1, 5]
    """
    if ring_bits == 64:
        return sums.view(np.int64)
    return sums.astype(np.uint32).view(np.int32).astype(np.int64)


def require_sums(settings: RunSettings, method: Method, selection: Selection, clients: int) -> None:
    """Raise SettingsError, before anything runs, unless the sums of each round have enough clients and fit.

    Args:
        clients: of the whole run.
    """
    cohort, mechanism = selection.size(clients), method.transform.mechanism
    honest = 0 if mechanism is None else mechanism.honest
    asked = f"a round asks {many(cohort, 'client')}"
    if cohort < honest:
        raise SettingsError(
            f"honest = {honest} shares of noise hide a client, and {asked}; lower honest under"
            " [[transforms]], which gives each client a larger share, or raise selection.share"
        )
    if settings.secure is None:
        return
    if cohort < FEWEST:
        raise SettingsError(
            f"[secure] needs {FEWEST} clients in a round, since of two each knows the other's update by the"
            f" sum, and {asked}; raise selection.share, add clients, or remove [secure]"
        )
    if fewest_in_sum(cohort) < honest:
        raise SettingsError(
            f"honest = {honest} shares of noise hide a client, and {asked}, whose sum [secure] opens when"
            f" {fewest_in_sum(cohort)} are in it; set honest = {fewest_in_sum(cohort)} or less under"
            " [[transforms]]"
        )
    largest, bits = cohort * method.transform.largest_code, settings.secure.ring_bits
    if largest > 2 ** (bits - 1) - 1:
        instead = "set secure.ring_bits = 64, or " if largest < 2**63 else ""
        raise SettingsError(
            f"secure.ring_bits = {bits} is too small: {cohort} clients may add up to {largest:,}, and it"
            f" holds up to {2 ** (bits - 1) - 1:,}; {instead}lower bits of the last of [[transforms]]"
        )
