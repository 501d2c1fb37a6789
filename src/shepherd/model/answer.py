"""Answer conversations with a base and its adapters: from turns to texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shepherd.core import Adapter
from shepherd.data.examples import Turn
from shepherd.data.template import Template, prompt, stop_ids
from shepherd.model import generate
from shepherd.model.base import Base
from shepherd.settings import DataTable


class Answer(NamedTuple):
    """The generated answer to one prompt."""

    text: str
    cut: bool
    """Whether it reached its maximum length before the model ended it."""


def prompt_ids(base: Base, data: DataTable, turns: Sequence[Turn]) -> list[int]:
    """Token ids of a conversation that ends with the user's turn, with contexts cut as in training.

    Raises:
        TemplateError: as `data.template.prompt`.
    """
    longest = min(data.max_tokens, base.max_length or data.max_tokens)
    return prompt(turns, Template.of(data), base.tokenizer, max_tokens=longest)


def answers(
    base: Base,
    data: DataTable,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    **sampling: Any,
) -> list[list[Answer]]:
    """The answer of each adapter (None is the base alone) to each prompt.

    Args:
        prompts: token ids, from `prompt_ids`.
        max_new_tokens: tokens of an answer, at least 1.
        sampling: the arguments temperature, top_p, seed and draws of `generate.generate`; greedy by default.

    Raises:
        BaseError: as `generate.generate`.
    """
    stop = stop_ids(Template.of(data), base.tokenizer)
    found = generate.generate(base, adapters, prompts, max_new_tokens=max_new_tokens, stop=stop, **sampling)
    longest = [generate.max_answer_tokens(base, len(ids), max_new_tokens) for ids in prompts]
    return [
        [
            Answer(text=decoded(base, ids), cut=len(ids) == most)
            for ids, most in zip(rows, longest, strict=True)
        ]
        for rows in found
    ]


def decoded(base: Base, ids: Sequence[int]) -> str:
    """The text of an answer's token ids, without special tokens and the space around it."""
    return str(base.tokenizer.decode(ids, skip_special_tokens=True)).strip()
