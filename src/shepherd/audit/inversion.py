"""Gradient inversion: the tokens of a client's examples, read from its update alone.

The first adapted modules read vectors that depend on a token (and its position) only, so anyone who has the
base can compute the vector of every token of the vocabulary and check which of them the update was made of
(`inversion_spans`). A later layer's inputs depend on all tokens before, so the same check there puts the
found tokens in order: a prefix is extended by each of them, and only what the later layer may have read is
kept. This is the attack of DAGER (Petrov et al., arXiv 2405.15586) against the changes of LoRA factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from shepherd.audit.inversion_spans import FLOAT32_ROUNDING, Seen, seen
from shepherd.core import Adapter, Payload
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError
from shepherd.model import layer_inputs, lora
from shepherd.model.base import Base

MAX_PREFIXES = 6
"""Prefixes that are extended side by side, those that are least likely to fit by chance."""
OTHERS, OTHERS_TOKENS = 256, 4
"""Sequences of random tokens, and their length, that say how far vectors are that are no inputs."""
CANDIDATES = 2**14
"""Vectors of tokens that are in memory at once."""
SECONDS = 10.0
"""Time that the ordering of the found tokens may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What an update was made of, as far as the attack found out; it never saw the examples."""

    tokens: tuple[int, ...] = field(repr=False)
    """Different tokens, ascending."""
    sequences: tuple[tuple[int, ...], ...] = field(repr=False)
    """Tokens in order, from the first of an example."""
    log_chances: NDArray[np.float64] = field(repr=False)
    """Log-chance of each token of the vocabulary to be as near to the span by chance, where it is nearest."""
    dimensions: int
    """Dimensions of the span of the first modules' inputs."""
    why_none: str = ""
    """Why the attack does not apply; "" if it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """How much of a batch the attack recovers from an update.

    The last token of an example is left out of all figures: it is only predicted, so no layer reads it.
    """

    batch_tokens: int
    """Different tokens in the batch."""
    found: int
    """Tokens that the attack names."""
    precision: float | None
    """Share of the named tokens that are in the batch; None if it names none."""
    recall: float
    """Share of the batch's tokens that it names."""
    examples: float
    """Share of the examples that it recovers whole, in order."""
    ordered: float
    """Mean share of an example, from its first token on, that one of its sequences has right."""
    auc: float
    """Chance that a token of the batch is nearer to the span than another of the vocabulary; 0.5 is none."""
    dimensions: int
    """Dimensions of the span of the first modules' inputs."""
    why_none: str = ""
    """Why the attack does not apply; "" if it does."""


def recovered(
    base: Base,
    before: Adapter,
    delta: Payload,
    data: Tokens,
    *,
    noise: float = 0.0,
    rounding: float = FLOAT32_ROUNDING,
    seconds: float = SECONDS,
) -> Inversion:
    """How much of these examples can be read from an update that was made of them.

    Args:
        before: the adapter that the update is relative to, with all its factors.
        delta: the change of the adapter: one client's, or a mean over several.
        data: every example that the update is made of.
        noise: standard deviation of the noise that was added to each entry of `delta`, which is public.
        rounding: largest relative rounding error of an entry of `delta`.
        seconds: time that the ordering may take; what is found until then counts.

    Raises:
        DataError: there is no example, or one has more tokens than the base reads.
        AdapterError: `before` does not fit the base.
    """
    longest = int(data.lengths.max(initial=0))
    base.require_reads(longest, "the examples to recover")
    if longest < 2:
        raise DataError("there is no example of two tokens or more to recover; give some")
    guess = attack(base, before, delta, longest=longest, noise=noise, rounding=rounding, seconds=seconds)
    return scored(guess, data)


def attack(
    base: Base,
    before: Adapter,
    delta: Payload,
    *,
    longest: int,
    noise: float = 0.0,
    rounding: float = FLOAT32_ROUNDING,
    seconds: float = SECONDS,
) -> Guess:
    """What an update was made of, from the update, the base and the adapter before it.

    Args:
        longest: most tokens that an example has, such as `data.max_tokens`.
    """
    lora.require_fits(base.targets, before, f"the adapter for base {base.name}")
    groups = [
        group
        for group in layer_inputs.groups(base, before)
        if any(name in delta for target in group for name in (target.name_a, target.name_b))
    ]
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    nothing = Guess(tokens=(), sequences=(), log_chances=np.zeros(vocabulary), dimensions=0)
    if not groups:
        return replace(nothing, why_none="the update changes no linear module")
    first = groups[0]
    if _mixes(base, before, first[0]):
        return replace(nothing, why_none="the first adapted module reads several tokens mixed")

    others = np.random.default_rng(0).integers(vocabulary, size=(OTHERS, OTHERS_TOKENS))

    def spans(group: Sequence[lora.Target]) -> Seen:
        names = [(target.name_a, target.name_b) for target in group]
        revealed = seen(names, before, delta, noise=noise, rounding=max(rounding, _rounding(base)))
        return revealed.against(layer_inputs.inputs(base, before, others, group[0])[:, -1])

    revealed = spans(first)
    inside, log_chances = _checked(base, before, first[0], revealed, longest - 1)
    inside = _nearest(inside, log_chances, revealed.dimensions)
    ordering = next((group for group in groups[1:] if len(group) >= len(first)), None)
    sequences: tuple[tuple[int, ...], ...] = ()
    if ordering is not None and inside.any():
        allowed = [np.flatnonzero(own) for own in inside.T]
        allowed += allowed[-1:] * (longest - 1 - len(allowed))  # where the position makes no difference
        sequences = _ordered(base, before, ordering[0], spans(ordering), allowed, seconds)
    return Guess(
        tokens=tuple(np.flatnonzero(inside.any(axis=1)).tolist()),
        sequences=sequences,
        log_chances=log_chances.min(axis=1),
        dimensions=revealed.dimensions,
    )


def _rounding(base: Base) -> float:
    """Largest relative rounding error of the number type that the base computes in."""
    bits = {"torch.bfloat16": 8, "torch.float16": 11}
    return 2.0 ** -bits.get(str(base.dtype), 24)


def _mixes(base: Base, before: Adapter, target: lora.Target) -> bool:
    """Whether what a target reads for a token depends on the tokens before it."""
    rows = np.array([[1, 3], [2, 3]], np.int64)
    one, other = layer_inputs.inputs(base, before, rows, target)[:, 1]
    return bool(np.linalg.norm(one - other) > 1e-3 * np.linalg.norm(one))


def _checked(
    base: Base, before: Adapter, target: lora.Target, revealed: Seen, positions: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether a target that mixes nothing seems to have read each token at each position; and log-chances.

    Both are (V, positions), or (V, 1) where the position makes no difference, as with rotary embeddings.
    """
    vocabulary = np.arange(int(base.model.config.get_text_config().vocab_size), dtype=np.int64)
    probe = layer_inputs.inputs(base, before, np.full((1, 2), vocabulary[-1]), target)[0]
    moves = positions > 1 and np.linalg.norm(probe[0] - probe[1]) > 1e-6 * np.linalg.norm(probe[0])
    rows = np.repeat(vocabulary[:, None], positions if moves else 1, axis=1)
    parts = [
        revealed.inside(
            layer_inputs.inputs(base, before, some, target).reshape(-1, target.inputs), among=rows.size
        )
        for some in np.array_split(rows, -(-rows.size // CANDIDATES))  # not all vectors at once
    ]
    inside, log_chances = (np.concatenate(each).reshape(rows.shape) for each in zip(*parts, strict=True))
    return inside, log_chances


def _nearest(inside: NDArray[np.bool_], log_chances: NDArray[np.float64], most: int) -> NDArray[np.bool_]:
    """Those inside that are nearest, at most as many as the span has dimensions.

    A batch may have more inputs than that only if they depend on each other, and where vectors are alike, as
    those of rare tokens, noise puts very many inside.
    """
    found = np.flatnonzero(inside)
    nearest = found[np.argsort(log_chances.reshape(-1)[found], kind="stable")[:most]]
    kept = np.zeros(inside.size, bool)
    kept[nearest] = True
    return kept.reshape(inside.shape)


def _ordered(
    base: Base,
    before: Adapter,
    target: lora.Target,
    revealed: Seen,
    allowed: Sequence[NDArray[np.int64]],
    seconds: float,
) -> tuple[tuple[int, ...], ...]:
    """Sequences whose every prefix the target may have read, extended token by token.

    Args:
        allowed: tokens that may be at each position.
    """
    ends = monotonic() + seconds
    prefixes, sums = np.zeros((1, 0), np.int64), np.zeros(1)
    whole: list[tuple[int, ...]] = []
    for tokens in allowed:
        read = layer_inputs.continued(base, before, prefixes, tokens, target)  # (p, n, in)
        among = len(prefixes) * len(tokens)
        inside, log_chances = revealed.inside(read.reshape(among, target.inputs), among=among)
        total = np.repeat(sums, len(tokens)) + log_chances
        ended = ~inside.reshape(read.shape[:2]).any(axis=1)
        if prefixes.shape[1]:
            whole += map(tuple, prefixes[ended].tolist())
        nearest = np.sort(np.flatnonzero(inside)[np.argsort(total[inside], kind="stable")[:MAX_PREFIXES]])
        which, following = np.divmod(nearest, max(1, len(tokens)))
        sums = total[nearest]
        prefixes = np.concatenate([prefixes[which], tokens[following][:, None]], axis=1)
        if not len(prefixes) or monotonic() > ends:
            break
    return (*whole, *map(tuple, prefixes.tolist()))


def scored(guess: Guess, data: Tokens) -> Inversion:
    """How much of the examples a guess has right."""
    texts = [data.example(index)[0][:-1].tolist() for index in range(len(data))]
    truth = {token for text in texts for token in text}
    right = len(truth.intersection(guess.tokens))
    exact = set(guess.sequences)
    return Inversion(
        batch_tokens=len(truth),
        found=len(guess.tokens),
        precision=right / len(guess.tokens) if guess.tokens else None,
        recall=right / len(truth),
        examples=float(np.mean([tuple(text) in exact for text in texts])),
        ordered=float(np.mean([_begun(text, guess.sequences) / max(1, len(text)) for text in texts])),
        auc=_auc(guess.log_chances, truth),
        dimensions=guess.dimensions,
        why_none=guess.why_none,
    )


def _begun(text: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    """Tokens from the start of a text that the best of the sequences has right."""
    return max((_alike(text, sequence) for sequence in sequences), default=0)


def _alike(text: Sequence[int], sequence: Sequence[int]) -> int:
    pairs = enumerate(zip(text, sequence, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(text), len(sequence)))


def _auc(scores: NDArray[np.float64], truth: set[int]) -> float:
    """Chance that a token of the batch is nearer than another one; ties count half."""
    members = np.zeros(len(scores), bool)
    members[list(truth)] = True
    own, others = scores[members], np.sort(scores[~members])
    if not len(own) or not len(others):
        return 0.5
    farther = len(others) - np.searchsorted(others, own, side="right")
    level = np.searchsorted(others, own, side="right") - np.searchsorted(others, own, side="left")
    return float(np.mean((farther + level / 2) / len(others)))
