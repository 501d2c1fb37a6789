"""Segments to token ids, by the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from shepherd.data.segments import Segment, Tokenizer

ANCHORS = ("\n", ":", "a")
"""What stands before a continuation while it is tokenised, the first that does not merge with it."""

BATCH = 1024
"""Texts a tokenizer call; bounds the memory that its encodings take."""


class Encoded(NamedTuple):
    """The ids of a segment, and the range of those that are wholly its context's."""

    ids: list[int]
    context: tuple[int, int]


def encode(segments: Sequence[Segment], tokenizer: Tokenizer, *, special: bool) -> list[Encoded]:
    """Each segment as ids, without any special token added.

    A first segment is tokenised as it stands, any other one as the continuation of some text: no
    SentencePiece prefix, no leading space. Text that looks like a special token is read as one only
    if `special`.
    """
    found: dict[int, Encoded] = {}
    rests = [place for place, segment in enumerate(segments) if not segment.first]
    for anchor in ANCHORS:
        head = next(_encodings(tokenizer, special, [anchor])).ids
        tried = _encodings(tokenizer, special, [anchor + segments[place].text for place in rests])
        for place, encoding in zip(rests, tried, strict=True):
            if encoding.ids[: len(head)] == head:
                found[place] = _encoded(segments[place], encoding, len(anchor), len(head))
        rests = [place for place in rests if place not in found]
    bare = [place for place in range(len(segments)) if place not in found]
    encodings = _encodings(tokenizer, special, [segments[place].text for place in bare])
    found |= {place: _encoded(segments[place], e, 0, 0) for place, e in zip(bare, encodings, strict=True)}
    return [found[place] for place in range(len(segments))]


def _encodings(tokenizer: Tokenizer, special: bool, texts: list[str]) -> Iterator[Any]:
    options = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
    for at in range(0, len(texts), BATCH):
        yield from tokenizer(texts[at : at + BATCH], **options).encodings


def _encoded(segment: Segment, encoding: Any, letters: int, tokens: int) -> Encoded:
    """Without what stands before it: so many letters, so many tokens."""
    start, stop = (place + letters for place in segment.context)
    first, last = _inside(encoding, start, stop)
    return Encoded(encoding.ids[tokens:], (first - tokens, last - tokens) if first < last else (0, 0))


def _inside(encoding: Any, start: int, stop: int) -> tuple[int, int]:
    """The range of tokens whose letters all lie in [start, stop)."""
    first = next((t for at in range(start, stop) if (t := encoding.char_to_token(at)) is not None), None)
    if first is None:
        return 0, 0
    last = next(t for at in reversed(range(start, stop)) if (t := encoding.char_to_token(at)) is not None)
    while last + 1 < len(encoding.ids) and encoding.token_to_chars(last + 1) == encoding.token_to_chars(last):
        last += 1  # a letter of several bytes may be several tokens
    return (
        first + (encoding.token_to_chars(first)[0] < start),
        last + (encoding.token_to_chars(last)[1] <= stop),
    )


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text of its own accord: its BOS, or nothing."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return list(whole[: next(starts, 0)])
