"""Render examples to token ids and a loss mask (law 9), for any fast tokenizer.

The text before a response is tokenised as one string, and the response as its continuation. So `prompt`
returns, at generation time, exactly the ids after which `render` trained a response, whatever a tokenizer
would merge across that border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shepherd.data.chat_template import ChatTemplate, Refusal, chat_template
from shepherd.data.encode import Encoded, encode, leading_ids
from shepherd.data.examples import Example, Turn
from shepherd.data.pairs import answers_from
from shepherd.data.template_pieces import Piece, Template, TemplateName, Tokenizer, styled
from shepherd.errors import TemplateError

__all__ = [
    "Dropped",
    "LossOn",
    "Rendered",
    "Template",
    "TemplateName",
    "Tokenizer",
    "prompt",
    "render",
    "render_all",
    "rendered",
    "rendered_pairs",
    "stop_ids",
]

LossOn = Literal["responses", "all"]
EXAMPLES_PER_BATCH = 4096
"""Examples whose texts and tokens are Python objects at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendered:
    """One example as tokens: `ids` and `loss_mask`, both (T,); `cut` tokens were removed to fit.

    `loss_mask[t]` is true where token t is a target of the loss. The first token never is, since nothing
    predicts it. `cut_response` is true where the last response is cut and has no end of turn; `marked` counts
    the responses that the data mark as not to be trained.
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    cut: int = 0
    cut_response: bool = False
    marked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An example that is left out: the reason, and its file and line."""

    reason: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A prompt, its response and the end-of-turn ids, as tokens; earlier exchanges may have no end.

    `marked` is true where the data mark the response as not to be trained.
    """

    prompt: list[int]
    context: tuple[int, int]
    response: list[int]
    end: tuple[int, ...]
    marked: bool = False
    cut: bool = False

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.response) + len(self.end)


@dataclass(frozen=True, slots=True)
class _Renderer:
    """A template with a tokenizer: `head` is the ids before an example; `chat` is set for "chat" only."""

    template: Template
    tokenizer: Tokenizer
    head: list[int]
    eos: int
    chat: ChatTemplate | None
    barred: tuple[str, ...] = ()
    barred_of_prompts: tuple[str, ...] = ()

    @property
    def stops(self) -> list[int]:
        return sorted({self.eos, *(self.chat.stops if self.chat else ())})

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        turns = self.template.with_system(turns)
        if self.chat is not None:
            return self.chat.pieces(turns)
        return list(styled(turns, self.template.name, self.eos))

    def encoded(self, pieces: Sequence[Piece]) -> list[Encoded]:
        return encode(pieces, self.tokenizer, special=self.chat is not None)


def render(
    example: Example,
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
) -> Rendered | Dropped:
    """Render one example; see `render_all`."""
    return render_all([example], template, tokenizer, max_tokens=max_tokens, loss_on=loss_on)[0]


def render_all(
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
    drop_refused: bool = False,
) -> list[Rendered | Dropped]:
    """Render each example to at most `max_tokens` tokens, or give the reason that it is dropped.

    The last response of an example ends in EOS, or in the chat template's own end-of-turn tokens, which are
    trained; so do earlier ones, where the chat template ends those. A longer example loses tokens from the
    ends of its contexts first, then from the end of its last response, then its last exchange. A response
    that was cut has no end of turn, since its author did not end it there. An example is dropped if no token
    of a response that is to be trained fits, or if its text holds a special token that the chat template
    would obey.

    Args:
        drop_refused: drop an example that the chat template refuses or rewrites, as a bad row.

    Raises:
        TemplateError: the tokenizer is not fast, has no EOS or no chat template, or the template
            cannot render an example.
    """
    return list(
        rendered(
            examples, template, tokenizer, max_tokens=max_tokens, loss_on=loss_on, drop_refused=drop_refused
        )
    )


def rendered(
    examples: Iterable[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
    drop_refused: bool = False,
) -> Iterator[Rendered | Dropped]:
    """As `render_all`, one after another, with no more than `EXAMPLES_PER_BATCH` examples in memory."""
    renderer = _renderer(template, tokenizer)
    source = iter(examples)
    while batch := list(islice(source, EXAMPLES_PER_BATCH)):
        for part, example in zip(_encoded_chats(batch, renderer, drop_refused), batch, strict=True):
            yield (
                part
                if isinstance(part, Dropped)
                else _rendered(part, max_tokens, renderer, loss_on, example.where)
            )


def rendered_pairs(
    examples: Iterable[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    drop_refused: bool = False,
) -> Iterator[tuple[Rendered, Rendered] | Dropped]:
    """Render the better and the worse answer of each example, as `rendered` does; both or neither is kept.

    Only what follows the prompt that both share is trained. Where one is too long, the contexts of both are
    cut alike, so that they answer the same prompt. A pair is dropped whose answers are the same, also where
    that is only so after both were cut, and an example that has no other answer.

    Raises:
        TemplateError: as `render_all`.
    """
    renderer = _renderer(template, tokenizer)
    source = iter(examples)
    while batch := list(islice(source, EXAMPLES_PER_BATCH // 2)):
        chats = [
            replace(example, turns=_only_answers(turns, answers_from(example.turns, example.rejected)))
            for example in batch
            for turns in (example.turns, example.rejected or example.turns)
        ]
        encoded = _encoded_chats(chats, renderer, drop_refused)
        for chosen, rejected, example in zip(encoded[::2], encoded[1::2], batch, strict=True):
            yield _rendered_pair(chosen, rejected, max_tokens, renderer, example)


def _only_answers(turns: Sequence[Turn], prompt: int) -> tuple[Turn, ...]:
    """The turns, of which the first `prompt` are not trained."""
    return tuple(replace(turn, trained=turn.trained and n >= prompt) for n, turn in enumerate(turns))


def _rendered_pair(
    chosen: list[_Exchange] | Dropped,
    rejected: list[_Exchange] | Dropped,
    max_tokens: int,
    renderer: _Renderer,
    example: Example,
) -> tuple[Rendered, Rendered] | Dropped:
    if not example.rejected:
        return Dropped(reason="it has no rejected answer", where=example.where)
    if isinstance(chosen, Dropped):
        return chosen
    if isinstance(rejected, Dropped):
        return rejected
    room = max_tokens - len(renderer.head)
    over = max(_size([*side[:-1], _ended(side[-1], renderer.eos)]) for side in (chosen, rejected)) - room

    def rendered(side: list[_Exchange]) -> Rendered | Dropped:
        shorter = _contexts_cut(side, over)
        found = _rendered(shorter, max_tokens, renderer, "responses", example.where)
        if isinstance(found, Dropped):
            return found
        # turns of the prompt are masked as such, and not by marks of the data
        return replace(found, cut=found.cut + _size(side) - _size(shorter), marked=0)

    first, other = rendered(chosen), rendered(rejected)
    if isinstance(first, Dropped):
        return first
    if isinstance(other, Dropped):
        return other
    if np.array_equal(first.ids, other.ids):
        cut = " in the part that fits" if first.cut_response else ""
        return Dropped(reason=f"its chosen and its rejected answer are the same{cut}", where=example.where)
    return first, other


def _encoded_chats(
    examples: Sequence[Example], renderer: _Renderer, drop_refused: bool
) -> list[list[_Exchange] | Dropped]:
    """The exchanges of each example as tokens, uncut."""
    parts: list[list[Piece] | Dropped] = []
    for example in examples:
        try:
            token = _reserved_token(example.turns, renderer)
            parts.append(
                Dropped(reason=f"its text holds the special token {token}", where=example.where)
                if token
                else renderer.pieces(example.turns)
            )
        except Refusal as refusal:
            if not drop_refused:
                raise TemplateError(
                    f'{example.where or "an example"}: {refusal}, or set data.on_bad_row = "skip"'
                ) from refusal
            parts.append(Dropped(reason=refusal.reason, where=example.where))
    whole = [part for part in parts if not isinstance(part, Dropped)]
    ids = iter(renderer.encoded([piece for part in whole for piece in part]))
    return [
        part if isinstance(part, Dropped) else _exchanges(part, list(islice(ids, len(part))))
        for part in parts
    ]


def prompt(
    turns: Sequence[Turn],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
) -> list[int]:
    """Token ids of a prompt, up to where the model answers the last turn, which must be the user's.

    The ids of `render` for these turns and a response start with exactly these, unless they were cut. With
    `max_tokens`, contexts (and nothing else) are cut down to fit it.

    Raises:
        TemplateError: the last turn is not the user's, a text holds a special token that the chat
            template would obey, or the template cannot render.
    """
    if not turns or turns[-1].role != "user":
        raise TemplateError("a prompt must end with a user turn; leave the answer out")
    renderer = _renderer(template, tokenizer)
    token = _reserved_token(turns, renderer)
    if token:
        raise TemplateError(f"the prompt holds the special token {token}; take it out of the text")
    try:
        parts = [*renderer.pieces(turns), Piece(text="")]  # and no response yet
    except Refusal as refusal:
        raise TemplateError(f"the prompt: {refusal}") from refusal
    exchanges = _exchanges(parts, renderer.encoded(parts))
    if max_tokens is not None:
        exchanges = _contexts_cut(exchanges, len(renderer.head) + _size(exchanges) - max_tokens)
    return [*renderer.head, *(t for e in exchanges for t in (*e.prompt, *e.response, *e.end))]


def stop_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
    """Token ids that end an answer: EOS, and the chat template's end-of-turn token."""
    return _renderer(template, tokenizer).stops


def prints_date(template: Template, tokenizer: Tokenizer) -> bool:
    """Whether the template prints today's date, so that its prompts change from day to day."""
    chat = _renderer(template, tokenizer).chat
    return chat is not None and chat.prints_date()


def remarks(template: Template, tokenizer: Tokenizer) -> list[str]:
    """Sentences on what the template adds that the data do not show, one each."""
    chat = _renderer(template, tokenizer).chat
    if chat is None:
        return []
    found = []
    preface = chat.preface() if template.system is None else ""
    if preface:
        found.append(
            f"The chat template writes {preface!r} before every chat without a system turn;"
            ' data.system = "..." puts another system prompt there.'
        )
    if chat.prints_date():
        day = f"fixed to {template.date} in this run" if template.date else "fixed to the day a run starts"
        found.append(f"The chat template prints today's date, {day}; data.date sets it.")
    lead = chat.leads()
    if lead and chat.may_lead(lead):
        found.append(
            f"The chat template writes {lead!r} before an answer, and its generation prompt does not: it is"
            " trained as the beginning of a response."
        )
    if not chat.ends:
        earlier = (
            "which it writes after earlier ones" if chat.ends_earlier() else "and nothing after earlier ones"
        )
        found.append(
            f"The chat template writes no end of turn: {chat.eos} is added after the last response of each"
            f" chat, {earlier}."
        )
    return found


def _renderer(template: Template, tokenizer: Tokenizer) -> _Renderer:
    if not getattr(tokenizer, "is_fast", True):
        raise TemplateError("the tokenizer is not a fast one; use a base that has a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise TemplateError("the tokenizer has no EOS token, so no answer would end; set its eos_token")
    chat = chat_template(template, tokenizer) if template.name == "chat" else None
    head = leading_ids(tokenizer) if chat is None else []  # a chat template writes its own
    barred, prompts = (chat.barred, chat.barred_of_prompts) if chat else ((), ())
    renderer = _Renderer(
        template, tokenizer, head, int(tokenizer.eos_token_id), chat, (*sorted(barred),), (*sorted(prompts),)
    )
    token = template.system and _reserved_token([Turn(role="system", text=template.system)], renderer)
    if token:
        raise TemplateError(f"data.system holds the token {token} of the chat template; take it out")
    return renderer


def _reserved_token(turns: Sequence[Turn], renderer: _Renderer) -> str:
    """The first text that would be read as a token of the chat template's own; "" where there is none."""
    if renderer.chat is None:
        return ""
    for turn in turns:
        tokens = renderer.barred if turn.role == "assistant" else renderer.barred_of_prompts
        for token in tokens:
            if token in turn.text or token in turn.context:
                return token
    return ""


def _exchanges(pieces: Sequence[Piece], ids: Sequence[Encoded]) -> list[_Exchange]:
    pairs = zip(ids[::2], ids[1::2], pieces[1::2], strict=True)
    return [
        _Exchange(ask.ids, ask.context, reply.ids, text.end, marked=not text.trained)
        for ask, reply, text in pairs
    ]


def _fitted(exchanges: list[_Exchange], room: int, eos: int) -> list[_Exchange]:
    """Cut to `room` tokens, or to no exchange; the last one has an end, unless its response is cut."""
    while exchanges and exchanges[-1].marked and _size(exchanges) > room:  # nothing is trained by it
        exchanges = exchanges[:-1]
    exchanges = _contexts_cut(exchanges, _size(exchanges) - room)
    while exchanges:
        *others, last = exchanges
        last = _ended(last, eos)
        if _size([*others, last]) <= room:
            return [*others, last]
        left = min(room - _size(others) - len(last.prompt), len(last.response) - 1)
        if left > 0 and not last.marked:
            return [*others, replace(last, response=last.response[:left], end=(), cut=True)]
        exchanges = others
    return []


def _size(exchanges: Sequence[_Exchange]) -> int:
    return sum(exchange.size for exchange in exchanges)


def _ended(last: _Exchange, eos: int) -> _Exchange:
    return replace(last, end=last.end or (eos,))


def _contexts_cut(exchanges: list[_Exchange], over: int) -> list[_Exchange]:
    """Cut up to `over` tokens from the ends of the contexts, the first turn's first."""
    shorter = []
    for exchange in exchanges:
        start, stop = exchange.context
        count = min(max(over, 0), stop - start)
        kept = exchange.prompt[: stop - count] + exchange.prompt[stop:]
        shorter.append(replace(exchange, prompt=kept, context=(start, stop - count)))
        over -= count
    return shorter


def _rendered(
    whole: list[_Exchange], max_tokens: int, renderer: _Renderer, loss_on: LossOn, where: str
) -> Rendered | Dropped:
    if not all(exchange.response for exchange in whole):
        return Dropped(reason="a response has no token", where=where)
    *earlier, last = whole
    whole = [*earlier, _ended(last, renderer.eos)]
    kept = _fitted(whole, max_tokens - len(renderer.head), renderer.eos)
    if not kept:
        return Dropped(reason="its prompt leaves no room for a response", where=where)
    if all(exchange.marked for exchange in kept):
        left = "" if all(exchange.marked for exchange in whole) else " that is left of it"
        return Dropped(reason=f"no response{left} is to be trained", where=where)
    every = loss_on == "all"
    pieces = [(renderer.head, every)]
    for exchange in kept:
        pieces += [(exchange.prompt, every), ([*exchange.response, *exchange.end], not exchange.marked)]
    ids = np.fromiter(chain.from_iterable(piece for piece, _ in pieces), dtype=np.int32)
    loss_mask = np.repeat([mark for _, mark in pieces], [len(piece) for piece, _ in pieces])
    loss_mask[0] = False
    return Rendered(
        ids=ids,
        loss_mask=loss_mask,
        cut=_size(whole) - _size(kept),
        cut_response=kept[-1].cut,
        marked=sum(exchange.marked for exchange in kept),
    )
