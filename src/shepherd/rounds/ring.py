"""Sums of whole numbers in a ring: whether those of a run fit, and what they are once added up.

In a ring of b bits whole numbers are added modulo 2^b, so that masks cancel and an order of adding does not
matter. A sum of c clients is right if c times the largest code is at most 2^(b - 1) - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Method, Selection
from shepherd.errors import SettingsError
from shepherd.io.progress import many
from shepherd.rounds.weights import WEIGHT_TOLERANCE, Shares
from shepherd.settings import RunSettings

FEWEST = 3
"""Fewest clients that sums can hide: of two, each knows the other's update from the sum."""
MOST_ROOM = 64
"""How many times the heaviest client's weight the largest one of a transform may be."""


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


def require_balanced(settings: RunSettings, method: Method, sizes: Mapping[str, int], asked: int) -> None:
    """Raise SettingsError unless every sum that may be opened hides each client in it among the others.

    Args:
        sizes: client -> its number of examples, of all clients of the run.
        asked: clients of a round.
    """
    if fault := rounding_fault(settings, method, sizes):
        raise SettingsError(fault)
    for fault in too_heavy(settings, method, sizes, asked).values():
        raise SettingsError(fault)


def too_heavy(settings: RunSettings, method: Method, sizes: Mapping[str, int], asked: int) -> dict[str, str]:
    """The clients whose update a sum with the lightest others would show, heaviest first, and why.

    The sum of one heavy client and light ones is nearly its own update, and a weight in a sum cannot be
    capped afterwards. So no client may count for more than `federation.max_share` beside the lightest ones;
    without those named here, none does.

    Args:
        sizes: client -> its number of examples, of those that may be in the sum; of fewer than a sum needs,
            none is named.
        asked: clients of a round.
    """
    if settings.secure is None or settings.federation.weights == "equal":
        return {}
    found: dict[str, str] = {}
    largest, fewest = method.transform.largest_weight, fewest_in_sum(asked)
    weights = sorted((min(max(1.0, size), largest), name) for name, size in sizes.items())
    while len(weights) >= fewest:
        heaviest, name = weights.pop()
        beside = [weight for weight, _ in weights[: fewest - 1]]
        shares = Shares(settings.federation.max_share)
        for weight in (*beside, heaviest):
            shares.add(weight)
        cap = shares.last_cap()
        if heaviest <= cap * (1 + WEIGHT_TOLERANCE):
            break
        found[name] = (
            f"{name} would be {heaviest / (sum(beside) + heaviest):.0%} of a sum with the lightest clients,"
            f" which [secure] may open with {fewest} of {asked} and which would show its update, and"
            f" federation.max_share = {settings.federation.max_share:g}; set largest_weight = {cap:g} or less"
            ' under the last of [[transforms]], or federation.weights = "equal"'
        )
    return found


def rounding_fault(settings: RunSettings, method: Method, sizes: Mapping[str, int]) -> str:
    """Why changes weighted by the largest weight that is allowed would be rounded away; "" if they are not.

    Args:
        sizes: client -> its number of examples.
    """
    if settings.secure is None or settings.federation.weights == "equal":
        return ""
    largest, heaviest = method.transform.largest_weight, max(sizes.values(), default=0)
    if not 0 < MOST_ROOM * heaviest < largest < math.inf:
        return ""
    return (
        f"largest_weight = {largest:g} of the last of [[transforms]] is far above the heaviest client's"
        f" weight, so that rounding would be longer than the changes; set it near {heaviest:g}"
    )
