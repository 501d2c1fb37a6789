"""Examples to token ids and the mask of what is trained (law 9), for any fast tokenizer.

What comes before a response is tokenised as one string, and the response as its continuation. So
`prompt` gives, at generation time, exactly the ids after which `render` trained a response, whatever
a tokenizer would merge across that border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shepherd.data.encode import Encoded, beginning, encode
from shepherd.data.examples import Example, Turn
from shepherd.data.segments import TemplateName, Tokenizer, end_of_turn, segments, special_tokens
from shepherd.errors import TemplateError

__all__ = ["Dropped", "LossOn", "Rendered", "TemplateName", "Tokenizer", "prompt", "render", "stop_ids"]

LossOn = Literal["responses", "all"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendered:
    """One example as tokens: `ids` and `trained`, both (T,); `cut` tokens were taken out to fit.

    `trained[t]` says that token t is a target of the loss. The first token never is, since nothing
    predicts it.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    cut: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Why an example is left out."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A prompt as tokens, and the response to it without its end-of-turn token."""

    prompt: list[int]
    context: tuple[int, int]
    response: list[int]

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.response) + 1


def render(
    example: Example,
    template: TemplateName,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
) -> Rendered | Dropped:
    """One example; see `render_all`."""
    return render_all([example], template, tokenizer, max_tokens=max_tokens, loss_on=loss_on)[0]


def render_all(
    examples: Sequence[Example],
    template: TemplateName,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
) -> list[Rendered | Dropped]:
    """Each example as at most `max_tokens` tokens, or the reason that it is dropped.

    Every assistant turn ends in EOS, or in the chat template's own end-of-turn token, trained. What is
    too long loses tokens from the ends of its contexts first, then from the end of its last response,
    then its last exchange; an example that cannot keep one token of a response is dropped, and so is
    one whose text holds a special token that the chat template would obey.

    Raises:
        TemplateError: the tokenizer is not fast, has no EOS or no chat template, or the template
            cannot render an example.
    """
    head, end = _frame(template, tokenizer)
    barred = set(special_tokens(tokenizer)) if template == "chat" else set()
    drops = [_held(example.turns, barred) for example in examples]
    parts = [
        [] if drop else segments(example.turns, template, tokenizer, example.where or "an example")
        for example, drop in zip(examples, drops, strict=True)
    ]
    ids = encode([part for some in parts for part in some], tokenizer, special=template == "chat")
    borders = pairwise(accumulate((len(some) for some in parts), initial=0))
    return [
        Dropped(reason=f"its text holds the special token {drop}")
        if drop
        else _rendered(_exchanges(ids[a:b]), max_tokens, head, end, loss_on)
        for drop, (a, b) in zip(drops, borders, strict=True)
    ]


def prompt(
    turns: Sequence[Turn],
    template: TemplateName,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
) -> list[int]:
    """The ids up to where the model answers the last turn, which must be the user's.

    What `render` gives for these turns and a response starts with exactly these ids, unless it was
    cut. With `max_tokens`, contexts (and only they) are cut to come down to it.

    Raises:
        TemplateError: the last turn is not the user's, a text holds a special token that the chat
            template would obey, or the template cannot render.
    """
    if not turns or turns[-1].role != "user":
        raise TemplateError("a prompt must end with a user turn; leave the answer out")
    head, end = _frame(template, tokenizer)
    held = _held(turns, set(special_tokens(tokenizer)) if template == "chat" else set())
    if held:
        raise TemplateError(f"the prompt holds the special token {held}; take it out of the text")
    parts = segments(turns, template, tokenizer, "the prompt")
    ids = encode(parts, tokenizer, special=template == "chat")
    exchanges = _exchanges([*ids, Encoded([], (0, 0))])
    if max_tokens is not None:
        size = len(head) + sum(exchange.size for exchange in exchanges) - 1  # the last one has no end
        exchanges = _contexts_cut(exchanges, size - max_tokens)
    *answered, last = exchanges
    return [*head, *(t for e in answered for t in (*e.prompt, *e.response, end)), *last.prompt]


def stop_ids(template: TemplateName, tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer: EOS, and the chat template's end-of-turn token."""
    _, end = _frame(template, tokenizer)
    return sorted({int(tokenizer.eos_token_id), end})


def _frame(template: TemplateName, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The ids before an example (a chat template writes its own), and the one after each response."""
    if not getattr(tokenizer, "is_fast", True):
        raise TemplateError("the tokenizer is not a fast one; load the base with its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise TemplateError("the tokenizer has no EOS token, so no answer would end; set its eos_token")
    eos = int(tokenizer.eos_token_id)
    if template == "chat":
        return [], special_tokens(tokenizer).get(end_of_turn(tokenizer), eos)
    return beginning(tokenizer), eos


def _held(turns: Sequence[Turn], barred: set[str]) -> str:
    texts = [text for turn in turns for text in (turn.text, turn.context)]
    return next((token for token in sorted(barred) if any(token in text for text in texts)), "")


def _exchanges(parts: Sequence[Encoded]) -> list[_Exchange]:
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [_Exchange(prompt.ids, prompt.context, response.ids) for prompt, response in pairs]


def _fitted(exchanges: list[_Exchange], room: int) -> list[_Exchange]:
    """At most `room` tokens, or no exchange at all."""
    exchanges = _contexts_cut(exchanges, sum(exchange.size for exchange in exchanges) - room)
    while exchanges:
        over = sum(exchange.size for exchange in exchanges) - room
        *others, last = exchanges
        if over < len(last.response):
            return [*others, replace(last, response=last.response[: len(last.response) - max(over, 0)])]
        exchanges = others
    return []


def _contexts_cut(exchanges: list[_Exchange], over: int) -> list[_Exchange]:
    """Take up to `over` tokens from the ends of the contexts, the first turn's first."""
    shorter = []
    for exchange in exchanges:
        start, stop = exchange.context
        count = min(max(over, 0), stop - start)
        kept = exchange.prompt[: stop - count] + exchange.prompt[stop:]
        shorter.append(replace(exchange, prompt=kept, context=(start, stop - count)))
        over -= count
    return shorter


def _rendered(
    whole: list[_Exchange], max_tokens: int, head: list[int], end: int, loss_on: LossOn
) -> Rendered | Dropped:
    if not all(exchange.response for exchange in whole):
        return Dropped(reason="a response has no token")
    kept = _fitted(whole, max_tokens - len(head))
    if not kept:
        return Dropped(reason="its prompt leaves no room for a response")
    pieces = [
        (head, False),
        *(piece for e in kept for piece in ((e.prompt, False), ([*e.response, end], True))),
    ]
    ids = np.fromiter(chain.from_iterable(piece for piece, _ in pieces), dtype=np.int32)
    trained = np.repeat([mark or loss_on == "all" for _, mark in pieces], [len(piece) for piece, _ in pieces])
    trained[0] = False
    cut = sum(exchange.size for exchange in whole) - sum(exchange.size for exchange in kept)
    return Rendered(ids=ids, trained=trained, cut=cut)
