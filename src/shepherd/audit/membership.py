"""Membership inference: whether an example was trained on, inferred from how well an adapter predicts it.

Every score is high for a member. Members are training examples of clients; the others are held out of the
same data. Scores are those of Yeom et al. (2018: loss), Carlini et al. (2021: reference and zlib), Shi et al.
(2024, min-k) and Zhang et al. (2025, min-k++), on the trained tokens of an example. The reference is the
untuned base, which everybody has who has the adapter.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.audit.estimate import Attack, Floats, attack
from shepherd.core import Adapter
from shepherd.data.dataset import TokenisedData, categories
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError
from shepherd.evaluate.loss import stratified_subset
from shepherd.evaluate.personal import own_places
from shepherd.model.base import Base
from shepherd.training import score
from shepherd.training.score import TokenScores
from shepherd.training.tune import predictions

REFERENCE = "reference"
SCORES = ("loss", REFERENCE, "zlib", "min_k", "min_k_plus")
LEAST_SHARE = 0.2
"""Share of an example's tokens, the least likely ones, that min-k and min-k++ go by; at least one token."""
LOWEST_LOG = -1e4
"""Log-probability of a token that a model gives none, or whose probability is no number."""
MIN_GROUP = 10
"""Fewest members, and fewest others, that an attack is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Candidates:
    """Examples that an attack is tried on: the members first, then the others."""

    data: Tokens
    clients: tuple[str, ...]
    """Client of each member, (m,)."""
    categories: tuple[str, ...]
    """Category of each example, members and others; "" where it is not known."""
    own: Mapping[str, NDArray[np.int64]]
    """Client -> the others that are compared with its members, as indices into the others."""

    @property
    def members(self) -> int:
        """Number of members."""
        return len(self.clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How well each score tells members from others, for one adapter."""

    scores: Mapping[str, Attack]
    clients: Mapping[str, Attack]
    """Client -> the reference score on its members, against others like them."""
    categories: Mapping[str, Attack]

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            name: {key: each.row() for key, each in getattr(self, name).items()} for name in self.__slots__
        }


def candidates(prepared: TokenisedData, most: int, trained: Mapping[str, float], seed: int) -> Candidates:
    """Draw members and others for an attack.

    Args:
        prepared: what the run trains and scores on.
        most: largest number of members, and of others.
        trained: client -> share of its examples that were trained on; those of 0 have no members, and a
            client that is not named was trained on.
        seed: of the draw.

    Raises:
        DataError: fewer than `MIN_GROUP` members or others can be scored.
    """
    rng = np.random.default_rng(seed)
    members = _members(prepared, most, trained, rng)
    held = np.flatnonzero(predictions(prepared.heldout) > 0).tolist() if len(prepared.heldout) else []
    every = categories(prepared)
    others = [held[i] for i in stratified_subset([every[i] for i in held], most).tolist()]
    for found, what in ((members, "examples that the run trained on"), (others, "held-out examples")):
        if len(found) < MIN_GROUP:
            raise DataError(
                f"an audit compares at least {MIN_GROUP} examples that were trained on with as many that were"
                f" held out, and this run has {len(found)} {what}; raise data.holdout, or use more data"
            )
    names = [name for name, _ in members]
    known = prepared.example_categories
    parts = [prepared.clients[name].take([place]) for name, place in members]
    return Candidates(
        data=Tokens.pooled([*parts, prepared.heldout.take(others)]),
        clients=tuple(names),
        categories=(
            *(known[name][place] if name in known else "" for name, place in members),
            *(every[place] for place in others),
        ),
        own={name: _own(prepared, others, name) for name in dict.fromkeys(names)},
    )


def _members(
    prepared: TokenisedData, most: int, trained: Mapping[str, float], rng: np.random.Generator
) -> list[tuple[str, int]]:
    """Client and place of each member, drawn evenly over the clients."""
    drawn = {
        name: rng.permutation(np.flatnonzero(predictions(data) > 0)).tolist()
        for name, data in prepared.clients.items()
        if trained.get(name, 1.0) > 0
    }
    pairs = [(name, place) for name, places in drawn.items() for place in places]
    return [pairs[i] for i in stratified_subset([name for name, _ in pairs], most).tolist()]


def _own(prepared: TokenisedData, others: Sequence[int], client: str) -> NDArray[np.int64]:
    mix = prepared.category_counts.get(client, {})
    own = set(own_places(prepared.heldout_examples, others, client, mix))
    return np.array([at for at, place in enumerate(others) if place in own], dtype=np.int64)


def measure(
    base: Base, adapters: Mapping[str, Adapter], found: Candidates, *, micro_batch: int
) -> dict[str, Membership]:
    """Attack each adapter; errors as for `training.score.losses`."""
    lengths = compressed(base, found.data)
    tokens = score.token_scores(
        base, [base.zero, *adapters.values()], found.data, micro_batch=micro_batch, what="members and others"
    )
    return {
        name: attacked(scores(tokens, place, lengths), found) for place, name in enumerate(adapters, start=1)
    }


def compressed(base: Base, data: Tokens) -> Floats:
    """Bytes of each example's trained text after compression by zlib, (n,)."""
    texts = (base.tokenizer.decode(ids[trained]) for ids, trained in map(data.example, range(len(data))))
    return np.array([len(zlib.compress(str(text).encode())) for text in texts], dtype=np.float64)


def scores(tokens: TokenScores, adapter: int, lengths: Floats) -> dict[str, Floats]:
    """Each score of an adapter on all examples, (n,), high for members.

    Args:
        tokens: scores of the base, as adapter 0, and of other adapters.
        adapter: index of the adapter in `tokens`.
        lengths: compressed bytes of each example, (n,).
    """
    logs, before, mean = map(_finite, (tokens.logs[adapter], tokens.logs[0], tokens.means[adapter]))
    spread = np.maximum(np.nan_to_num(tokens.deviations[adapter], nan=1.0), 1e-6)
    normal = (logs - mean) / spread
    parts = [slice(start, stop) for start, stop in pairwise(tokens.offsets)]
    each: dict[str, list[float]] = {
        "loss": [logs[part].mean() for part in parts],
        REFERENCE: [(logs[part] - before[part]).mean() for part in parts],
        "zlib": [logs[part].sum() / length for part, length in zip(parts, lengths, strict=True)],
        "min_k": [least(logs[part]) for part in parts],
        "min_k_plus": [least(normal[part]) for part in parts],
    }
    return {name: np.array(values) for name, values in each.items()}


def _finite(logs: Floats) -> Floats:
    """Log-probabilities, also of a model that diverged, whose are no numbers."""
    return np.clip(np.nan_to_num(logs, nan=LOWEST_LOG, neginf=LOWEST_LOG), LOWEST_LOG, 0.0)


def least(values: Floats) -> float:
    """Mean of the lowest fifth of some numbers, at least one of them.

    >>> least(np.array([-9.0, -1.0, -2.0]))
    -9.0
    """
    count = max(1, int(LEAST_SHARE * len(values)))
    return float(np.sort(values)[:count].mean())


def attacked(values: Mapping[str, Floats], found: Candidates) -> Membership:
    """How well the scores tell members from others, for all of them, by client and by category."""
    m = found.members
    inside, outside = values[REFERENCE][:m], values[REFERENCE][m:]
    clients, named = np.array(found.clients), np.array(found.categories)
    by_client = {
        name: (inside[clients == name], outside[own]) for name, own in found.own.items() if len(found.own) > 1
    }
    known = Counter(found.categories[:m]).keys() - {""}
    by_category = {
        str(name): (inside[named[:m] == name], outside[named[m:] == name])
        for name in sorted(known)
        if len(known) > 1
    }
    return Membership(
        scores={name: attack(each[:m], each[m:]) for name, each in values.items()},
        clients=_measurable(by_client),
        categories=_measurable(by_category),
    )


def _measurable(groups: Mapping[str, tuple[Floats, Floats]]) -> dict[str, Attack]:
    return {
        name: attack(inside, outside)
        for name, (inside, outside) in groups.items()
        if min(len(inside), len(outside)) >= MIN_GROUP
    }
