"""Examples to token ids and the mask of what is trained (law 9), for any fast tokenizer.

What comes before a response is tokenised as one string, and the response as its continuation. So
`prompt` gives, at generation time, exactly the ids after which `render` trained a response, whatever
a tokenizer would merge across that border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shepherd.data.chat_template import ChatTemplate, Refusal, chat_template
from shepherd.data.encode import Encoded, beginning, encode
from shepherd.data.examples import Example, Turn
from shepherd.data.segments import Segment, Template, TemplateName, Tokenizer, styled
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
    "stop_ids",
]

LossOn = Literal["responses", "all"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendered:
    """One example as tokens: `ids` and `trained`, both (T,); `cut` tokens were taken out to fit.

    `trained[t]` says that token t is a target of the loss. The first token never is, since nothing
    predicts it. `cut_response` says that its last response is cut and has no end, `marked` how many of its
    responses the data mark as not to be trained.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    cut: int = 0
    cut_response: bool = False
    marked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Why an example is left out, and where it comes from."""

    reason: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A prompt as tokens, the response to it, and what ends that; an earlier one may have no end.

    `marked` says that the data mark the response as not to be trained.
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
class _Writer:
    """A template with a tokenizer: `head` are the ids before an example, `chat` is None but for "chat"."""

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

    def segments(self, turns: Sequence[Turn]) -> list[Segment]:
        turns = self.template.opened(turns)
        if self.chat is not None:
            return self.chat.segments(turns)
        return list(styled(turns, self.template.name, self.eos))

    def encoded(self, segments: Sequence[Segment]) -> list[Encoded]:
        return encode(segments, self.tokenizer, special=self.chat is not None)


def render(
    example: Example,
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
) -> Rendered | Dropped:
    """One example; see `render_all`."""
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
    """Each example as at most `max_tokens` tokens, or the reason that it is dropped.

    The last response of an example ends in EOS, or in the chat template's own end-of-turn tokens, trained,
    and so do earlier ones, where the chat template ends those. What is too long loses tokens from the ends of
    its contexts first, then from the end of its last response, then its last exchange. A response that was
    cut has no end, since the author did not end it there. An example that cannot keep one token of a response
    that is to be trained is dropped, and so is one whose text holds a special token that the chat template
    would obey.

    Args:
        drop_refused: drop an example that the chat template refuses or does not keep, as a bad row.

    Raises:
        TemplateError: the tokenizer is not fast, has no EOS or no chat template, or the template
            cannot render an example.
    """
    writer = _writer(template, tokenizer)
    parts: list[list[Segment] | Dropped] = []
    for example in examples:
        try:
            held = _held(example.turns, writer)
            parts.append(
                Dropped(reason=f"its text holds the special token {held}", where=example.where)
                if held
                else writer.segments(example.turns)
            )
        except Refusal as refusal:
            if not drop_refused:
                raise TemplateError(
                    f'{example.where or "an example"}: {refusal}, or set data.on_bad_row = "skip"'
                ) from refusal
            parts.append(Dropped(reason=refusal.reason, where=example.where))
    whole = [part for part in parts if not isinstance(part, Dropped)]
    ids = iter(writer.encoded([segment for part in whole for segment in part]))
    return [
        part
        if isinstance(part, Dropped)
        else _rendered(_exchanges(part, list(islice(ids, len(part)))), max_tokens, writer, loss_on, example)
        for part, example in zip(parts, examples, strict=True)
    ]


def prompt(
    turns: Sequence[Turn],
    template: Template,
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
    writer = _writer(template, tokenizer)
    held = _held(turns, writer)
    if held:
        raise TemplateError(f"the prompt holds the special token {held}; take it out of the text")
    try:
        parts = [*writer.segments(turns), Segment(text="")]  # and no response yet
    except Refusal as refusal:
        raise TemplateError(f"the prompt: {refusal}") from refusal
    exchanges = _exchanges(parts, writer.encoded(parts))
    if max_tokens is not None:
        exchanges = _contexts_cut(exchanges, len(writer.head) + _size(exchanges) - max_tokens)
    return [*writer.head, *(t for e in exchanges for t in (*e.prompt, *e.response, *e.end))]


def stop_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer: EOS, and the chat template's end-of-turn token."""
    return _writer(template, tokenizer).stops


def prints_date(template: Template, tokenizer: Tokenizer) -> bool:
    """Whether the template prints the day, so that its prompts are others tomorrow."""
    chat = _writer(template, tokenizer).chat
    return chat is not None and chat.prints_date()


def remarks(template: Template, tokenizer: Tokenizer) -> list[str]:
    """What the template does of its own accord and the data do not show, a sentence each."""
    chat = _writer(template, tokenizer).chat
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
        day = f"as which the run keeps {template.date}" if template.date else "as which a run keeps its first"
        found.append(f"The chat template reads today's date, {day}; data.date sets it.")
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


def _writer(template: Template, tokenizer: Tokenizer) -> _Writer:
    if not getattr(tokenizer, "is_fast", True):
        raise TemplateError("the tokenizer is not a fast one; load the base with its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise TemplateError("the tokenizer has no EOS token, so no answer would end; set its eos_token")
    chat = chat_template(template, tokenizer) if template.name == "chat" else None
    head = beginning(tokenizer) if chat is None else []  # a chat template writes its own
    barred, prompts = (chat.barred, chat.barred_of_prompts) if chat else ((), ())
    writer = _Writer(
        template, tokenizer, head, int(tokenizer.eos_token_id), chat, (*sorted(barred),), (*sorted(prompts),)
    )
    held = template.system and _held([Turn(role="system", text=template.system)], writer)
    if held:
        raise TemplateError(f"data.system holds the token {held} of the chat template; take it out")
    return writer


def _held(turns: Sequence[Turn], writer: _Writer) -> str:
    """A token in a text that would be read as the template's own; only chat templates are read for tokens."""
    if writer.chat is None:
        return ""
    for turn in turns:
        tokens = writer.barred if turn.role == "assistant" else writer.barred_of_prompts
        for token in tokens:
            if token in turn.text or token in turn.context:
                return token
    return ""


def _exchanges(segments: Sequence[Segment], ids: Sequence[Encoded]) -> list[_Exchange]:
    pairs = zip(ids[::2], ids[1::2], segments[1::2], strict=True)
    return [
        _Exchange(ask.ids, ask.context, reply.ids, text.end, marked=not text.trained)
        for ask, reply, text in pairs
    ]


def _fitted(exchanges: list[_Exchange], room: int, eos: int) -> list[_Exchange]:
    """At most `room` tokens, or no exchange at all; the last one has an end, unless its response is cut."""
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
    whole: list[_Exchange], max_tokens: int, writer: _Writer, loss_on: LossOn, example: Example
) -> Rendered | Dropped:
    if not all(exchange.response for exchange in whole):
        return Dropped(reason="a response has no token", where=example.where)
    *earlier, last = whole
    whole = [*earlier, _ended(last, writer.eos)]
    kept = _fitted(whole, max_tokens - len(writer.head), writer.eos)
    if not kept:
        return Dropped(reason="its prompt leaves no room for a response", where=example.where)
    if all(exchange.marked for exchange in kept):
        left = "" if all(exchange.marked for exchange in whole) else " that is left of it"
        return Dropped(reason=f"no response{left} is to be trained", where=example.where)
    every = loss_on == "all"
    pieces = [(writer.head, every)]
    for exchange in kept:
        pieces += [(exchange.prompt, every), ([*exchange.response, *exchange.end], not exchange.marked)]
    ids = np.fromiter(chain.from_iterable(piece for piece, _ in pieces), dtype=np.int32)
    trained = np.repeat([mark for _, mark in pieces], [len(piece) for piece, _ in pieces])
    trained[0] = False
    return Rendered(
        ids=ids,
        trained=trained,
        cut=_size(whole) - _size(kept),
        cut_response=kept[-1].cut,
        marked=sum(exchange.marked for exchange in kept),
    )
