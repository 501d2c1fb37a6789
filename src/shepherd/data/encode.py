"""Tokenise the pieces of prompts and responses, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from shepherd.data.template_pieces import Piece, Tokenizer

ANCHORS = ("\n", ":", "a")
"""Texts put in front of a continuation to tokenise it; the first that does not merge with it is used."""

TEXTS_PER_CALL = 1024
"""Texts in one tokenizer call; bounds the memory of their encodings."""


class Encoded(NamedTuple):
    """Token ids of a piece, and the range of those that lie wholly in its context."""

    ids: list[int]
    context: tuple[int, int]


def encode(pieces: Sequence[Piece], tokenizer: Tokenizer, *, special: bool) -> list[Encoded]:
    """Tokenise each piece, adding no special token.

    A first piece is tokenised alone, any other one as the continuation of some text: no SentencePiece prefix,
    no leading space. Text that looks like a special token is read as one only if `special`.
    """
    found: dict[int, Encoded] = {}
    rests = [place for place, piece in enumerate(pieces) if not piece.first]
    for anchor in ANCHORS:
        head = next(_encodings(tokenizer, special, [anchor])).ids
        tried = _encodings(tokenizer, special, [anchor + pieces[place].text for place in rests])
        for place, encoding in zip(rests, tried, strict=True):
            if encoding.ids[: len(head)] == head:
                found[place] = _encoded(pieces[place], encoding, len(anchor), len(head))
        rests = [place for place in rests if place not in found]
    bare = [place for place in range(len(pieces)) if place not in found]
    encodings = _encodings(tokenizer, special, [pieces[place].text for place in bare])
    found |= {place: _encoded(pieces[place], e, 0, 0) for place, e in zip(bare, encodings, strict=True)}
    return [found[place] for place in range(len(pieces))]


def _encodings(tokenizer: Tokenizer, special: bool, texts: list[str]) -> Iterator[Any]:
    options = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
    for at in range(0, len(texts), TEXTS_PER_CALL):
        yield from tokenizer(texts[at : at + TEXTS_PER_CALL], **options).encodings


def _encoded(piece: Piece, encoding: Any, letters: int, tokens: int) -> Encoded:
    """The encoding without the text in front of the piece: its first `letters` and `tokens`."""
    start, stop = (place + letters for place in piece.context)
    first, last = _inside(encoding, start, stop)
    return Encoded(encoding.ids[tokens:], (first - tokens, last - tokens) if first < last else (0, 0))


def _inside(encoding: Any, start: int, stop: int) -> tuple[int, int]:
    """Range of the tokens whose characters all lie in [start, stop)."""
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


def leading_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that the tokenizer itself puts before a text: its BOS, or none."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return list(whole[: next(starts, 0)])
