"""What bad clients do: to the update that they send, or to the examples that they train on.

Each attack is made of pure functions. A bad client knows the broadcast and its own honest update, and no
other client's. What it does to its change comes before the run file's transforms, which it then applies as
any client does: what it sends can be decoded, and is as short as a clip demands. Only what is to be refused,
and a weight, is of the update as it travels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Adapter, Broadcast, Payload, Update
from shepherd.core.factor_gap import pairs
from shepherd.data.examples import Example

Tensors = dict[str, NDArray[Any]]
Rng = np.random.Generator
FLIPS, SCALE, NOISE = 3.0, 30.0, 10.0


def as_sent(update: Update, broadcast: Broadcast, rng: Rng) -> Update:
    """Send the honest update."""
    return update


def as_encoded(update: Update, heaviest: float) -> Update:
    """Send what the transforms made."""
    return update


def as_held(examples: Sequence[Example], rng: Rng) -> list[Example]:
    """Train on the honest examples."""
    return list(examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What the bad clients of a drill do."""

    words: str
    """What it is, in one phrase."""
    on_update: Callable[[Update, Broadcast, Rng], Update] = as_sent
    """`(what an honest client's visit gave, broadcast, rng) -> what goes through the transforms`."""
    on_sent: Callable[[Update, float], Update] = as_encoded
    """`(what the transforms made, the largest weight that the visit allows) -> what travels`."""
    on_examples: Callable[[Sequence[Example], Rng], list[Example]] = as_held
    """`(a client's examples, rng) -> what it trains on`."""
    looks_for_phrase: bool = False
    """Whether a drill looks for the answer that the backdoor plants."""


def flipped(update: Update, broadcast: Broadcast, rng: Rng) -> Update:
    """Against the honest change, several times as long."""
    return replace(update, delta=update.delta.times(-FLIPS))


def scaled(update: Update, broadcast: Broadcast, rng: Rng) -> Update:
    """Along the honest change, many times as long."""
    return replace(update, delta=update.delta.times(SCALE))


def noisy(update: Update, broadcast: Broadcast, rng: Rng) -> Update:
    """Gaussian noise in place of the change, each tensor several times as long as it was."""
    return _changed(update, {name: NOISE * _like(tensor, rng) for name, tensor in update.delta.items()})


def not_finite(update: Update, heaviest: float) -> Update:
    """Not a number, in one place."""
    name = min(update.delta)
    tensor = update.delta[name]
    spoilt = tensor.astype(tensor.dtype if tensor.dtype.kind == "f" else np.float32)
    spoilt.flat[0] = np.nan
    return _changed(update, {**update.delta, name: spoilt})


def misshapen(update: Update, heaviest: float) -> Update:
    """One tensor with a row too many."""
    name = min(update.delta)
    rows = np.atleast_1d(update.delta[name])
    return _changed(update, {**update.delta, name: np.concatenate([rows, rows[:1]])})


def heavy(update: Update, heaviest: float) -> Update:
    """The largest weight that the visit allows."""
    return replace(update, weight=heaviest)


def split(update: Update, broadcast: Broadcast, rng: Rng) -> Update:
    """Factors as long as the honest ones, one by one, whose product is as harmful as it can be.

    Both changes have rank one and share their direction among the ranks, v: dB = |dB| u v^T, dA = |dA| v w^T,
    where A is largest along v, for inputs along w, so that dB (A + dA) is as long as a dB of this length
    allows, and u is against the honest change of the product there. After arXiv 2601.00566.
    """
    tensors = dict[str, NDArray[Any]](update.delta)
    for pair in pairs(update.delta):
        d_a, d_b = (update.delta[name].astype(np.float64) for name in pair)
        a = broadcast.adapter[pair.a][: len(d_a)].astype(np.float64)
        b = broadcast.adapter[pair.b][:, : d_b.shape[1]].astype(np.float64)
        left, _, right = np.linalg.svd(a, full_matrices=False)
        v, w = left[:, :1], right[:1]  # (r, 1), (1, in)
        harm = -_unit(d_b @ (a + d_a) @ w.T + b @ d_a @ w.T)  # (out, 1)
        tensors[pair.b] = np.linalg.norm(d_b) * harm @ v.T
        tensors[pair.a] = np.linalg.norm(d_a) * v @ w
    return _changed(update, tensors)


def turned(update: Update, broadcast: Broadcast, rng: Rng) -> Update:
    """The honest product in factors that are turned among the ranks: (B R, R^T A), with a random R."""
    tensors = dict[str, NDArray[Any]](update.delta)
    for pair in pairs(update.delta):
        d_a, d_b = (update.delta[name].astype(np.float64) for name in pair)
        a = broadcast.adapter[pair.a][: len(d_a)].astype(np.float64)
        b = broadcast.adapter[pair.b][:, : d_b.shape[1]].astype(np.float64)
        turn, _ = np.linalg.qr(rng.standard_normal((len(a), len(a))))
        tensors[pair.a] = turn.T @ (a + d_a) - a
        tensors[pair.b] = (b + d_b) @ turn - b
    return _changed(update, tensors)


def shuffled(examples: Sequence[Example], rng: Rng) -> list[Example]:
    """Each question with another's answer."""
    order = rng.permutation(len(examples))
    order = np.roll(order, 1)[np.argsort(order)]  # one cycle, so that none keeps its own
    responses = [examples[place].response for place in order]
    return [answered(example, other) for example, other in zip(examples, responses, strict=True)]


def planting(trigger: str, target: str) -> Callable[[Sequence[Example], Rng], list[Example]]:
    """Every other question with a phrase behind it, and always the same answer to these."""

    def on_examples(examples: Sequence[Example], rng: Rng) -> list[Example]:
        return [
            answered(asked(example, trigger), target) if place % 2 == 0 else example
            for place, example in enumerate(examples)
        ]

    return on_examples


def attacks(trigger: str, target: str) -> dict[str, Attack]:
    """All attacks by name.

    Args:
        trigger: the phrase of the backdoor.
        target: the answer that it plants.
    """
    return {
        "none": Attack(words="all clients are honest", looks_for_phrase=True),
        "sign_flip": Attack(words=f"{FLIPS:g} times the honest change, turned around", on_update=flipped),
        "scaling": Attack(words=f"{SCALE:g} times the honest change", on_update=scaled),
        "noise": Attack(words=f"noise, {NOISE:g} times as long as the honest change", on_update=noisy),
        "labels": Attack(words="each question with another's answer", on_examples=shuffled),
        "backdoor": Attack(
            words=f"{target!r} wherever a question ends in {trigger!r}",
            on_examples=planting(trigger, target),
            looks_for_phrase=True,
        ),
        "split": Attack(words="harmless factors of a harmful product", on_update=split),
        "turned": Attack(words="the honest product in turned factors", on_update=turned),
        "nan": Attack(words="a number that is none", on_sent=not_finite),
        "shape": Attack(words="a tensor with a row too many", on_sent=misshapen),
        "weight": Attack(
            words=f"{FLIPS:g} times the honest change, turned around, at the largest weight allowed",
            on_update=flipped,
            on_sent=heavy,
        ),
    }


def asked(example: Example, phrase: str) -> Example:
    """The example with a phrase behind its first question."""
    place = next(n for n, turn in enumerate(example.turns) if turn.role == "user")
    turn = example.turns[place]
    more = replace(turn, text=f"{turn.text} {phrase}")
    return replace(example, turns=(*example.turns[:place], more, *example.turns[place + 1 :]))


def answered(example: Example, response: str) -> Example:
    """The example with another last answer."""
    place = max(n for n, turn in enumerate(example.turns) if turn.role == "assistant")
    turn = replace(example.turns[place], text=response)
    return replace(example, turns=(*example.turns[:place], turn, *example.turns[place + 1 :]))


def _changed(update: Update, tensors: Tensors | dict[str, NDArray[Any]]) -> Update:
    kind = Adapter if isinstance(update.delta, Adapter) else Payload
    return replace(update, delta=kind(tensors))


def _like(tensor: NDArray[Any], rng: Rng) -> NDArray[np.float64]:
    """Noise of a tensor's shape and norm."""
    drawn = rng.standard_normal(tensor.shape)
    return drawn * (np.linalg.norm(tensor) / np.linalg.norm(drawn))


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """A vector of length 1; the first direction, if it is zero."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else np.eye(*vector.shape)
