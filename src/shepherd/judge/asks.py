"""Every request that a protocol makes, known before the first is sent; and what they will cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shepherd.errors import SettingsError
from shepherd.judge import prompts
from shepherd.judge.answers import Answers
from shepherd.judge.cache import key
from shepherd.judge.questions import Question
from shepherd.settings import JudgeTable

Pair = tuple[Answers, Answers]

BYTES_A_TOKEN = 4
"""A rule of thumb for English; the estimate before asking rests on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. `swapped` shows the second arm's answer first; `key` is its place in the cache."""

    question: str
    first: str
    second: str
    swapped: bool
    repeat: int
    prompt: str
    key: str

    @property
    def about(self) -> Mapping[str, str | int | bool]:
        """For whoever reads the cache."""
        return {
            "question": self.question,
            "first": self.first,
            "second": self.second,
            "swapped": self.swapped,
            "repeat": self.repeat,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is coming: new `calls`, replies that are `cached`, and tokens (estimated; at most)."""

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    most: int | None = None

    def sentence(self, table: JudgeTable) -> str:
        """What a person wants to know before it is spent."""
        kept = f" ({self.cached:,} more are here already)" if self.cached else ""
        if not self.calls and not self.cached:
            return f"The judge {table.model} is not asked: all answers are the same."
        if not self.calls:
            return f"The judge {table.model} is not asked: all {self.cached:,} replies are here already."
        capped = self.most is not None and self.most < self.calls
        stop = f" It stops after {self.most:,} of them, as --max-calls says." if capped else ""
        return (
            f"The judge {table.model} at {table.base_url} gets {self.calls:,} calls{kept}: about "
            f"{self.prompt_tokens:,} tokens to read and at most {self.completion_tokens:,} to write.{stop}"
        )


def asks(pairs: Sequence[Pair], questions: Sequence[Question], table: JudgeTable) -> tuple[Ask, ...]:
    """All requests, question by question, so that whatever stops them leaves whole questions behind.

    Two answers that are the same text are a tie without asking, where the protocol knows ties.

    Raises:
        SettingsError: no model is named.
    """
    if not table.model:
        raise SettingsError("key judge.model is empty; name the model that shall judge")
    return tuple(
        ask for question in questions for first, second in pairs for ask in of(question, first, second, table)
    )


def of(question: Question, first: Answers, second: Answers, table: JudgeTable) -> Iterator[Ask]:
    """The requests about one question and one pair."""
    a, b = first.texts[question.id], second.texts[question.id]
    if table.protocol == "fedit":
        shown = [(prompts.fedit(question, a, b), False, repeat) for repeat in range(table.repeats)]
    elif a == b:
        shown = []
    else:
        shown = [(prompts.pairwise(question, a, b), False, 0), (prompts.pairwise(question, b, a), True, 0)]
    for prompt, swapped, repeat in shown:
        yield Ask(
            question=question.id,
            first=first.name,
            second=second.name,
            swapped=swapped,
            repeat=repeat,
            prompt=prompt,
            key=key(table.model, table.base_url, prompt, table.temperature, table.max_tokens, repeat),
        )


def plan(wanted: Sequence[Ask], cached: Mapping[str, object], table: JudgeTable, most: int | None) -> Plan:
    """What these requests will cost beyond what is cached; `most` new calls at most."""
    coming = pending(wanted, cached)
    spent = coming if most is None else coming[:most]
    return Plan(
        calls=len(coming),
        cached=len({ask.key for ask in wanted} & cached.keys()),
        prompt_tokens=sum(len(ask.prompt.encode()) for ask in spent) // BYTES_A_TOKEN,
        completion_tokens=len(spent) * table.max_tokens,
        most=most,
    )


def pending(wanted: Sequence[Ask], cached: Mapping[str, object]) -> list[Ask]:
    """Each request that is not cached, once, in order."""
    return list({ask.key: ask for ask in wanted if ask.key not in cached}.values())
