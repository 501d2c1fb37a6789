"""Combine the held-out losses of several sites into one row, with a bounded weight for each site.

A site reports sums by category, which the server cannot verify. So they are first reduced to one mean for
each site and category; a mean is at most 50 nats a token; and a site is weighted by its tokens, up to the
largest share that a client may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shepherd.rounds.acceptance import MAX_METRIC
from shepherd.rounds.report import MAX_NATS
from shepherd.rounds.weights import Shares
from shepherd.silos.protocol.wire import Scores

MAX_SITE_CATEGORIES = 100
"""Categories of one site; a site that reports more is left out."""
MAX_ROW_CATEGORIES = 200
"""Categories in a row; beyond that, those held by the fewest sites are pooled as `OTHER`."""
OTHER = "other"

Pairs = Mapping[str, tuple[float, int]]


def pooled(replies: Mapping[str, Scores | str], share: float) -> dict[str, Any]:
    """The `heldout` entry of a row of the run's log.

    Args:
        replies: each site's scores, or the reason that it gave none.
        share: largest weight of one site, in (0, 1]; with n < 1 / share sites it is 1 / n.

    Returns:
        `loss`, `category` and `client`, mean nats a token, and `left_out`, site -> reason; empty where no
        site has usable scores.
    """
    sound = {site: _usable_scores(reply) for site, reply in replies.items()}
    sites = {site: pairs for site, pairs in sound.items() if not isinstance(pairs, str)}
    if not sites:
        return {}
    named = _limit_categories(sites)
    return {
        "loss": _weighted_mean([_total(pairs) for pairs in sites.values()], share),
        "category": {
            name: _weighted_mean([pairs[name] for pairs in named.values() if name in pairs], share)
            for name in sorted({name for pairs in named.values() for name in pairs})
        },
        "client": {site: nats / tokens for site, (nats, tokens) in _map_sites(sites, _total).items()},
        "left_out": {site: why for site, why in sound.items() if isinstance(why, str)},
    }


def _usable_scores(reply: Scores | str) -> Pairs | str:
    """The usable part of a site's scores, or the reason that there is none."""
    if isinstance(reply, str):
        return reply
    if len(reply.categories) > MAX_SITE_CATEGORIES:
        return f"it reports {len(reply.categories)} categories, and the limit is {MAX_SITE_CATEGORIES}"
    kept = {
        name: (min(float(nats), MAX_NATS * tokens), tokens)
        for name, (nats, tokens) in reply.categories.items()
        if 0 < tokens <= MAX_METRIC and 0 <= nats <= MAX_METRIC
    }
    return kept or "it may release no held-out score, or reports no usable number"


def _limit_categories(sites: Mapping[str, Pairs]) -> Mapping[str, Pairs]:
    """Keep at most MAX_ROW_CATEGORIES category names, those of the most sites; pool the rest as `OTHER`."""
    held: dict[str, int] = {}
    for name in (name for pairs in sites.values() for name in pairs):
        held[name] = held.get(name, 0) + 1
    if len(held) <= MAX_ROW_CATEGORIES:
        return sites
    kept = set(sorted(held, key=lambda name: (-held[name], name))[: MAX_ROW_CATEGORIES - 1])
    return _map_sites(sites, lambda pairs: _pool_rare(pairs, kept))


def _pool_rare(pairs: Pairs, kept: set[str]) -> Pairs:
    rest = _total({name: pair for name, pair in pairs.items() if name not in kept or name == OTHER})
    named = {name: pair for name, pair in pairs.items() if name in kept and name != OTHER}
    return {**named, OTHER: rest} if rest[1] else named


def _map_sites(sites: Mapping[str, Pairs], of: Callable[[Pairs], Any]) -> dict[str, Any]:
    return {site: of(pairs) for site, pairs in sites.items()}


def _total(pairs: Pairs) -> tuple[float, int]:
    return math.fsum(nats for nats, _ in pairs.values()), sum(tokens for _, tokens in pairs.values())


def _weighted_mean(sites: Sequence[tuple[float, int]], share: float) -> float:
    """Mean nats a token over sites, each given as (summed nats, tokens), with capped weights."""
    shares = Shares(share)
    for _, tokens in sites:
        shares.add(float(tokens))
    cap = shares.last_cap()
    weights = [min(float(tokens), cap) for _, tokens in sites]
    means = [nats / tokens for nats, tokens in sites]
    return math.fsum(w * mean for w, mean in zip(weights, means, strict=True)) / math.fsum(weights)
