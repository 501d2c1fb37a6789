"""Turns to segments of text: what comes before a response, and the response, in turn.

Alpaca's prompts are Stanford Alpaca's (Taori et al. 2023) with the line break of alpaca-lora after
"### Response:"; Vicuna's is FastChat's v1.1 (Zheng et al. 2023, arXiv 2306.05685).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from shepherd.data.examples import Turn
from shepherd.errors import TemplateError

TemplateName = Literal["alpaca", "alpaca-short", "vicuna", "plain", "chat"]


class Tokenizer(Protocol):
    """What is used of a `transformers` fast tokenizer."""

    eos_token_id: Any
    chat_template: Any
    added_tokens_decoder: Any

    def __call__(self, text: Any, **options: Any) -> Any:
        """Token ids, and offsets where asked for, of a text or a list of texts."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The text of a chat."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Text from ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece that is tokenised as one string; `context` is the range of its context, in characters."""

    text: str
    response: bool = False
    first: bool = False
    context: tuple[int, int] = (0, 0)


class Style(NamedTuple):
    """system + gap | between, then user + text [+ context + its text] + answer, then space + response."""

    system: str
    system_with_context: str
    gap: str
    between: str
    user: str
    context: str
    answer: str
    space: str


_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_ALPACA = "Below is an instruction that describes a task"
_WRITE = "Write a response that appropriately completes the request."
_HEADERS = ("### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:\n", "")

STYLES: Mapping[str, Style] = {
    "alpaca": Style(
        f"{_ALPACA}. {_WRITE}",
        f"{_ALPACA}, paired with an input that provides further context. {_WRITE}",
        "\n\n",
        "\n\n",
        *_HEADERS,
    ),
    "alpaca-short": Style("", "", "\n\n", "\n\n", *_HEADERS),
    "vicuna": Style(_VICUNA, _VICUNA, " ", "", "USER: ", "\n\n", " ASSISTANT:", " "),
    "plain": Style("", "", "\n\n", "\n\n", "", "\n\n", "\n\n", ""),
}


def segments(
    turns: Sequence[Turn], template: TemplateName, tokenizer: Tokenizer, where: str
) -> list[Segment]:
    """Prompt, response, prompt, response, ...; ends with a prompt if the last turn is the user's.

    Raises:
        TemplateError: the tokenizer has no chat template, or it cannot render these turns.
    """
    if template == "chat":
        return _chat_segments(turns, tokenizer, where)
    return list(_styled(turns, STYLES[template]))


def _styled(turns: Sequence[Turn], style: Style) -> Iterator[Segment]:
    given = turns[0].text if turns[0].role == "system" else None
    spoken = turns if given is None else turns[1:]
    default = style.system_with_context if spoken[0].context else style.system
    system = default if given is None else given
    lead = system + style.gap if system else ""
    for number, turn in enumerate(spoken):
        if turn.role == "assistant":
            yield Segment(text=style.space + turn.text, response=True)
            continue
        before = (style.between if number else lead) + style.user + turn.text
        before += style.context if turn.context else ""
        yield Segment(
            text=before + turn.context + style.answer,
            first=number == 0,
            context=(len(before), len(before) + len(turn.context)),
        )


def _chat_segments(turns: Sequence[Turn], tokenizer: Tokenizer, where: str) -> list[Segment]:
    write = _writer(turns, tokenizer, where)
    answered = turns[-1].role == "assistant"
    text = write(len(turns), not answered)
    end = end_of_turn(tokenizer)
    found: list[Segment] = []
    at = 0
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        start = len(write(place, True))
        if text[:start] != write(place, True) or start < at:
            raise TemplateError(
                f"{where}: the chat template writes turn {place + 1} differently once it is answered, so "
                "training and generation would not agree; use one exchange an example, or another template"
            )
        stop, after = _response_ends(text, start, turn.text, end, f"{where}: turn {place + 1}")
        found.append(_before(text[at:start], turns[:place], first=at == 0))
        found.append(Segment(text=text[start:stop], response=True))
        at = after
    return found if answered else [*found, _before(text[at:], turns, first=at == 0)]


def _writer(turns: Sequence[Turn], tokenizer: Tokenizer, where: str) -> Callable[[int, bool], str]:
    if not tokenizer.chat_template:
        raise TemplateError('the tokenizer has no chat template; set data.template = "alpaca" or another')
    messages = [{"role": turn.role, "content": _content(turn)} for turn in turns]

    def write(count: int, to_answer: bool) -> str:
        options = {"tokenize": False, "add_generation_prompt": to_answer}
        try:
            return str(tokenizer.apply_chat_template(messages[:count], **options))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise TemplateError(
                f"{where}: the tokenizer's chat template refuses this chat ({reason}); "
                "mend its turns, or set another data.template"
            ) from error

    return write


def _content(turn: Turn) -> str:
    return f"{turn.text}\n\n{turn.context}" if turn.context else turn.text


def _before(text: str, turns: Sequence[Turn], *, first: bool) -> Segment:
    context = turns[-1].context.strip() if turns else ""
    at = text.rfind(context) if context else -1
    return Segment(text=text, first=first, context=(at, at + len(context)) if at >= 0 else (0, 0))


def _response_ends(text: str, start: int, content: str, end: str, where: str) -> tuple[int, int]:
    """Where the response stops (before its end-of-turn token) and where the next prompt starts."""
    tail = re.escape(content.strip()) + (rf"(\s*){re.escape(end)}" if end else "()")
    found = re.compile(tail).search(text, start)
    if found is None:
        raise TemplateError(
            f"{where}: the chat template rewrites this response; use a template that keeps it as it is"
        )
    return found.end(1), found.end()


def end_of_turn(tokenizer: Tokenizer) -> str:
    """The special token that the chat template writes after a response, or "" if it writes none."""
    probe = (Turn(role="user", text="a"), Turn(role="assistant", text="zyx"))
    text = _writer(probe, tokenizer, "a trial chat")(2, False)
    after = text[text.rfind("zyx") + 3 :].lstrip()
    return max((token for token in special_tokens(tokenizer) if after.startswith(token)), key=len, default="")


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The texts that this tokenizer reads as special tokens, with their ids."""
    added = tokenizer.added_tokens_decoder.items()
    return {token.content: int(number) for number, token in added if token.special}
