"""What a run trains and scores on: who got which examples, and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shepherd.core import seed_for
from shepherd.data.examples import Example, Reading
from shepherd.data.holdout import HoldOut
from shepherd.data.keep import keep
from shepherd.data.noted import Notes
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError
from shepherd.io.progress import many

if TYPE_CHECKING:  # torch is not for `data split`
    from shepherd.model.base import Base

HELD_OUT = "the held-out examples"
SAMPLED_EXAMPLES = 1024
"""Examples whose lengths and speed stand for those of all."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Partition:
    """Examples and who gets which: `clients` maps a name to indices, `held` is what nobody trains on."""

    reading: Reading
    held: HoldOut
    clients: Mapping[str, Sequence[int]]

    @property
    def sizes(self) -> dict[str, int]:
        """How many examples each client has to train on."""
        return {name: len(own) for name, own in self.clients.items()}

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        held, clients = self.held, many(len(self.clients), "client")
        return f"<Division: {clients}, {len(held.train):,} examples, {len(held.heldout):,} held out>"

    def of(self, indices: Sequence[int]) -> Sequence[Example]:
        return keep(self.reading.examples[i] for i in indices)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenisedData:
    """What a run trains and scores on."""

    clients: Mapping[str, Tokens]
    category_counts: Mapping[str, Mapping[str, int]]
    """For each client, how many examples of each category it trains on."""
    heldout: Tokens
    heldout_examples: Sequence[Example]
    summary: Mapping[str, Any]
    """Counts: examples, duplicates and the like (see `HoldOut`), skipped rows, cut, dropped, tokens."""
    dropped: Sequence[str] = ()
    """One sentence for each reason that examples were dropped for."""
    notes: Notes = field(default_factory=Notes)
    """What of the rows is not read, refused or changed."""
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Where the first are of what `summary` counts, by its key there."""
    by_client: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The counts of each client: see `client_counts`."""
    left_out: Sequence[str] = ()
    """Sentences on what is in the folder of the data and is not read."""
    root: Tokens | None = None
    """The server's own examples (`data.root`), if there are any."""
    example_categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For each client, the category of each example that it trains on; folders of earlier versions have
    none."""
    rejected: Mapping[str, Tokens] = field(default_factory=dict)
    """For each client, the worse answer to each of its examples, where the objective compares two; `clients`
    then holds the better ones."""
    heldout_rejected: Tokens | None = None
    """The worse answers to the held-out examples, where the objective compares two."""

    @property
    def sizes(self) -> dict[str, int]:
        """How many examples each client has to train on."""
        return {name: len(own) for name, own in self.clients.items()}

    @property
    def trained_on(self) -> Mapping[str, Tokens]:
        """What each client trains on: its examples, or the two answers to each of them one after another."""
        if not self.rejected:
            return self.clients
        return {name: Tokens.interleaved([own, self.rejected[name]]) for name, own in self.clients.items()}

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        kept = sum(map(len, self.clients.values()))
        clients = many(len(self.clients), "client")
        return f"<Prepared: {clients}, {kept:,} examples, {len(self.heldout):,} held out>"


def categories(prepared: TokenisedData) -> list[str]:
    """The category of each held-out example."""
    return [example.category or "all" for example in prepared.heldout_examples]


def mean_length(prepared: TokenisedData) -> float:
    """Tokens of an example, on average over all clients; of a pair, those of both answers."""
    tokens = sum(len(data.ids) for data in (*prepared.clients.values(), *prepared.rejected.values()))
    return tokens / sum(len(data) for data in prepared.clients.values())


def sample(prepared: TokenisedData, seed: int) -> Tokens:
    """Up to `SAMPLED_EXAMPLES` examples of all clients, drawn at random; of pairs both answers in turn."""
    names = list(prepared.clients)
    starts = np.cumsum([0, *(len(prepared.clients[name]) for name in names)])
    drawn = np.random.default_rng(seed_for(seed, "forecast")).permutation(starts[-1])[:SAMPLED_EXAMPLES]
    owners = np.searchsorted(starts, drawn, side="right") - 1
    places = [(names[owner], place - starts[owner]) for owner, place in zip(owners, drawn, strict=True)]
    sides = [side for side in (prepared.clients, prepared.rejected) if side]
    return Tokens.interleaved(
        [Tokens.pooled([side[name].take([place]) for name, place in places]) for side in sides]
    )


def require_readable(prepared: TokenisedData, base: Base) -> None:
    """Raise DataError where an example holds a token, or a place, that the base has no embedding for."""
    known = len(base.model.get_input_embeddings().weight)
    whole = [*prepared.clients.items(), *prepared.rejected.items(), (HELD_OUT, prepared.heldout)]
    whole += [] if prepared.heldout_rejected is None else [(HELD_OUT, prepared.heldout_rejected)]
    for name, data in whole:
        if len(data) and int(data.ids.max()) >= known:
            raise DataError(
                f"{name}: token {int(data.ids.max())} is not among the {known} of base {base.name}; "
                "use the tokenizer that the base was trained with"
            )
        base.require_reads(int(data.lengths.max()) if len(data) else 0, name)


def require_heldout(count: int, source: str) -> None:
    """Raise DataError, before anything is trained to be compared, where no example is held out to score.

    Args:
        count: of the examples that are held out.
    """
    if not count:
        raise DataError(
            f"nothing of {source} is held out to compare on, since a client's last example is trained on; use"
            " data in which a client has two examples"
        )
