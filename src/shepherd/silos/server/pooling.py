"""Held-out losses of several sites as one row, in which no site has more than its part.

A site says sums by category, all of them in its own words. So each site comes down to one mean first; a mean
is 50 nats a token at most; and a site counts by its tokens, up to the share that a client may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shepherd.rounds.acceptance import MAX_METRIC
from shepherd.rounds.report import MAX_NATS
from shepherd.rounds.weights import Shares
from shepherd.silos.protocol.wire import Scores

MOST_CATEGORIES = 100
"""Categories of one site; one that names more is left out."""
MOST_NAMES = 200
"""Categories in a row; those that the fewest sites hold are pooled into OTHER beyond that."""
OTHER = "other"

Pairs = Mapping[str, tuple[float, int]]


def pooled(replies: Mapping[str, Scores | str], share: float) -> dict[str, Any]:
    """The `heldout` of a row.

    Args:
        replies: each site's scores, or why it gave none.
        share: the most that one site counts for, in (0, 1]; of n < 1 / share sites, 1 / n.

    Returns:
        `loss`, `category` and `client`, mean nats a token, and `left_out`, site -> why; empty where no site's
        scores can be counted.
    """
    sound = {site: _sound(reply) for site, reply in replies.items()}
    sites = {site: pairs for site, pairs in sound.items() if not isinstance(pairs, str)}
    if not sites:
        return {}
    named = _renamed(sites)
    return {
        "loss": _mean([_whole(pairs) for pairs in sites.values()], share),
        "category": {
            name: _mean([pairs[name] for pairs in named.values() if name in pairs], share)
            for name in sorted({name for pairs in named.values() for name in pairs})
        },
        "client": {site: nats / tokens for site, (nats, tokens) in _each(sites, _whole).items()},
        "left_out": {site: why for site, why in sound.items() if isinstance(why, str)},
    }


def _sound(reply: Scores | str) -> Pairs | str:
    """What of a site's scores can be counted, or why nothing can."""
    if isinstance(reply, str):
        return reply
    if len(reply.categories) > MOST_CATEGORIES:
        return f"it names {len(reply.categories)} categories, and at most {MOST_CATEGORIES} are counted"
    kept = {
        name: (min(float(nats), MAX_NATS * tokens), tokens)
        for name, (nats, tokens) in reply.categories.items()
        if 0 < tokens <= MAX_METRIC and 0 <= nats <= MAX_METRIC
    }
    return kept or "it has no held-out example that may be told of, or no number that can be counted with"


def _renamed(sites: Mapping[str, Pairs]) -> Mapping[str, Pairs]:
    """The same with no more than MOST_NAMES names, those first that the most sites have."""
    held: dict[str, int] = {}
    for name in (name for pairs in sites.values() for name in pairs):
        held[name] = held.get(name, 0) + 1
    if len(held) <= MOST_NAMES:
        return sites
    kept = set(sorted(held, key=lambda name: (-held[name], name))[: MOST_NAMES - 1])
    return _each(sites, lambda pairs: _folded(pairs, kept))


def _folded(pairs: Pairs, kept: set[str]) -> Pairs:
    rest = _whole({name: pair for name, pair in pairs.items() if name not in kept or name == OTHER})
    named = {name: pair for name, pair in pairs.items() if name in kept and name != OTHER}
    return {**named, OTHER: rest} if rest[1] else named


def _each(sites: Mapping[str, Pairs], of: Callable[[Pairs], Any]) -> dict[str, Any]:
    return {site: of(pairs) for site, pairs in sites.items()}


def _whole(pairs: Pairs) -> tuple[float, int]:
    return math.fsum(nats for nats, _ in pairs.values()), sum(tokens for _, tokens in pairs.values())


def _mean(sites: Sequence[tuple[float, int]], share: float) -> float:
    """Over sites, each with its summed nats and its tokens."""
    shares = Shares(share)
    for _, tokens in sites:
        shares.add(float(tokens))
    cap = shares.last_cap()
    weights = [min(float(tokens), cap) for _, tokens in sites]
    means = [nats / tokens for nats, tokens in sites]
    return math.fsum(w * mean for w, mean in zip(weights, means, strict=True)) / math.fsum(weights)
