"""Turns to segments of text: what comes before a response, and the response, in turn.

Alpaca's prompts are Stanford Alpaca's (Taori et al. 2023) with the line break of alpaca-lora after
"### Response:"; Vicuna's is FastChat's v1.1 (Zheng et al. 2023, arXiv 2306.05685).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from shepherd.data.examples import Turn
from shepherd.settings import DataTable

TemplateName = Literal["alpaca", "alpaca-short", "vicuna", "plain", "chat"]


class Tokenizer(Protocol):
    """What is used of a `transformers` fast tokenizer."""

    eos_token_id: Any
    chat_template: Any
    added_tokens_decoder: Any

    def __call__(self, text: Any, **options: Any) -> Any:
        """Token ids, and offsets where asked for, of a text or a list of texts."""

    def __hash__(self) -> int:
        """One tokenizer is no other."""

    def __len__(self) -> int:
        """How many tokens it knows, added ones too."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The text of a chat."""

    def get_chat_template(self) -> str:
        """The source of the chat template."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Text from ids."""


@dataclass(frozen=True, slots=True)
class Template:
    """How chats are written: a template by its name, and what a run file lays over it.

    `options` are variables of a chat template; `date`, an ISO date, is what it prints as today's; `system` is
    the system prompt of chats without a system turn. "" and None leave both to the template.
    """

    name: TemplateName
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    date: str = ""
    system: str | None = None

    @classmethod
    def of(cls, table: DataTable) -> Template:
        """The template that a run file's [data] asks for."""
        return cls(table.template, table.template_options, table.date, table.system)

    def opened(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns as they are rendered: with the system prompt, where they have none of their own."""
        if self.system is None or turns[0].role == "system":
            return turns
        return [Turn(role="system", text=self.system), *turns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece that is tokenised as one string: a prompt, or a response.

    `context` is the range of a prompt's context, in characters; `end` are the ids that end a response, and
    `trained` says whether the data have it trained.
    """

    text: str
    first: bool = False
    context: tuple[int, int] = (0, 0)
    end: tuple[int, ...] = ()
    trained: bool = True


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


def styled(turns: Sequence[Turn], name: TemplateName, eos: int) -> Iterator[Segment]:
    """Prompt, response, prompt, response, ...; ends with a prompt if the last turn is the user's."""
    style = STYLES[name]
    given = turns[0].text if turns[0].role == "system" else None
    spoken = turns if given is None else turns[1:]
    default = style.system_with_context if spoken[0].context else style.system
    system = default if given is None else given
    lead = system + style.gap if system else ""
    for number, turn in enumerate(spoken):
        if turn.role == "assistant":
            yield Segment(text=style.space + turn.text, end=(eos,), trained=turn.trained)
            continue
        before = (style.between if number else lead) + style.user + turn.text
        before += style.context if turn.context else ""
        yield Segment(
            text=before + turn.context + style.answer,
            first=number == 0,
            context=(len(before), len(before) + len(turn.context)),
        )


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The texts that this tokenizer reads as one token each, special or not, with their ids."""
    return {token.content: int(number) for number, token in tokenizer.added_tokens_decoder.items()}


def special_tokens(tokenizer: Tokenizer) -> set[str]:
    """Those of them that are marked special."""
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
