"""Split the turns of a chat into pieces of text: prompt, response, prompt, response, and so on.

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
    """The part of a `transformers` fast tokenizer that is used here."""

    eos_token_id: Any
    chat_template: Any
    added_tokens_decoder: Any

    def __call__(self, text: Any, **options: Any) -> Any:
        """Token ids, and offsets where asked for, of a text or a list of texts."""

    def __hash__(self) -> int:
        """Hash by identity, as `transformers` does."""

    def __len__(self) -> int:
        """Vocabulary size, with added tokens."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render a chat to text."""

    def get_chat_template(self) -> str:
        """The source of the chat template."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Decode ids to text."""


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template by its name, with the settings of a run file.

    `options` are variables of a chat template; `date`, an ISO date, is printed as today's; `system` is the
    system prompt of chats without a system turn. "" and None leave both to the template.
    """

    name: TemplateName
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    date: str = ""
    system: str | None = None

    @classmethod
    def of(cls, table: DataTable) -> Template:
        """The template of a run file's [data] table."""
        return cls(table.template, table.template_options, table.date, table.system)

    def with_system(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns, with `system` in front where they have no system turn."""
        if self.system is None or turns[0].role == "system":
            return turns
        return [Turn(role="system", text=self.system), *turns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A prompt or a response, which is tokenised as one string.

    `context` is the range of a prompt's context, in characters; `end` is the ids that end a response;
    `trained` is false where the data mark a response as not to be trained.
    """

    text: str
    first: bool = False
    context: tuple[int, int] = (0, 0)
    end: tuple[int, ...] = ()
    trained: bool = True


class Style(NamedTuple):
    """Texts of a fixed template, in the order in which they are joined.

    A chat is: system + gap (first turn) or between (later ones); user + text [+ context + its text] + answer;
    space + response.
    """

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


def styled(turns: Sequence[Turn], name: TemplateName, eos: int) -> Iterator[Piece]:
    """Pieces of a chat under a fixed template; the last is a prompt if the last turn is the user's."""
    style = STYLES[name]
    given = turns[0].text if turns[0].role == "system" else None
    spoken = turns if given is None else turns[1:]
    default = style.system_with_context if spoken[0].context else style.system
    system = default if given is None else given
    lead = system + style.gap if system else ""
    for number, turn in enumerate(spoken):
        if turn.role == "assistant":
            yield Piece(text=style.space + turn.text, end=(eos,), trained=turn.trained)
            continue
        before = (style.between if number else lead) + style.user + turn.text
        before += style.context if turn.context else ""
        yield Piece(
            text=before + turn.context + style.answer,
            first=number == 0,
            context=(len(before), len(before) + len(turn.context)),
        )


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Texts that this tokenizer reads as one added token each, special or not, with their ids."""
    return {token.content: int(number) for number, token in tokenizer.added_tokens_decoder.items()}


def special_tokens(tokenizer: Tokenizer) -> set[str]:
    """Texts of the added tokens that are marked special."""
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
