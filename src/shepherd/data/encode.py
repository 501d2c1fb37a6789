"""Segments to token ids, by the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from shepherd.data.segments import Segment, Tokenizer

ANCHORS = ("\n", ":", "a")
"""What stands before a continuation while it is tokenised, the first that does not merge with it."""

BATCH = 1024
"""Texts a tokenizer call; bounds the memory that its encodings take."""


def encode(segments: Sequence[Segment], tokenizer: Tokenizer, *, special: bool) -> list[list[int]]:
    """The ids of each segment, without any special token added.

    A first segment is tokenised as it stands, any other one as the continuation of some text: no
    SentencePiece prefix, no leading space. Text that looks like a special token is read as one only
    if `special`.
    """
    call = partial(_ids, tokenizer, special)
    firsts = [place for place, segment in enumerate(segments) if segment.first]
    rests = [place for place, segment in enumerate(segments) if not segment.first]
    found = dict(zip(firsts, call([segments[place].text for place in firsts]), strict=True))
    for anchor in ANCHORS:
        head = call([anchor])[0]
        tried = call([anchor + segments[place].text for place in rests])
        good = {p: ids[len(head) :] for p, ids in zip(rests, tried, strict=True) if ids[: len(head)] == head}
        found |= good
        rests = [place for place in rests if place not in good]
    found |= dict(zip(rests, call([segments[place].text for place in rests]), strict=True))
    return [found[place] for place in range(len(segments))]


def _ids(tokenizer: Tokenizer, special: bool, texts: list[str]) -> list[list[int]]:
    options = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
    batches = (texts[at : at + BATCH] for at in range(0, len(texts), BATCH))
    return [ids for batch in batches for ids in tokenizer(batch, **options)["input_ids"]]


def context_range(
    segment: Segment, ids: Sequence[int], tokenizer: Tokenizer, *, special: bool
) -> tuple[int, int]:
    """Which of the segment's tokens are its context's: those that lie wholly inside it."""
    start, stop = segment.context
    if start == stop:
        return 0, 0
    for lead in ("", *ANCHORS) if segment.first else (*ANCHORS, ""):
        offsets, found = _offsets(lead + segment.text, tokenizer, special)
        shift = len(found) - len(ids)
        if shift >= 0 and found[shift:] == list(ids):
            spans = [(a - len(lead), b - len(lead)) for a, b in offsets[shift:]]
            inside = [place for place, (a, b) in enumerate(spans) if start <= a < b <= stop]
            return (inside[0], inside[-1] + 1) if inside else (0, 0)
    return 0, 0


def _offsets(text: str, tokenizer: Tokenizer, special: bool) -> tuple[Any, list[int]]:
    options = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
    encoded = tokenizer(text, return_offsets_mapping=True, **options)
    return encoded["offset_mapping"], encoded["input_ids"]


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text of its own accord: its BOS, or nothing."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return list(whole[: next(starts, 0)])
