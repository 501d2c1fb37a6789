"""All requests that a protocol makes, and their cost, before the first is sent."""

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

BYTES_PER_TOKEN = 4
"""Rule of thumb for English, used for the estimate before asking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request; if `swapped`, the second arm's answer is shown first. `key` is its key in the cache."""

    question: str
    first: str
    second: str
    swapped: bool
    repeat: int
    prompt: str
    key: str

    @property
    def about(self) -> Mapping[str, str | int | bool]:
        """Values kept with the reply, for a person who reads the cache."""
        return {
            "question": self.question,
            "first": self.first,
            "second": self.second,
            "swapped": self.swapped,
            "repeat": self.repeat,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Planned cost: new `calls`, replies `cached`, estimated prompt tokens, and most completion tokens."""

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    most: int | None = None

    def sentence(self, table: JudgeTable) -> str:
        """The cost as a sentence for the user."""
        kept = f" ({self.cached:,} replies are already cached)" if self.cached else ""
        if not self.calls and not self.cached:
            return f"The judge {table.model} is not asked: all answers are the same."
        if not self.calls:
            return f"The judge {table.model} is not asked: all {self.cached:,} replies are already cached."
        capped = self.most is not None and self.most < self.calls
        stop = f" It stops after {self.most:,} of them because of --max-calls." if capped else ""
        return (
            f"The judge {table.model} at {table.base_url} gets {self.calls:,} calls{kept}: about "
            f"{self.prompt_tokens:,} tokens to read and at most {self.completion_tokens:,} to write.{stop}"
        )


def require_model(table: JudgeTable) -> None:
    """Raise SettingsError unless the table names a model to ask."""
    if not table.model:
        raise SettingsError("key judge.model is empty; set it to the model to ask")


def asks(pairs: Sequence[Pair], questions: Sequence[Question], table: JudgeTable) -> tuple[Ask, ...]:
    """All requests in the order of the questions, so that an interruption leaves whole questions answered.

    Where the protocol has ties, two identical answers are a tie and are not asked about.

    Raises:
        SettingsError: no model is named.
    """
    require_model(table)
    return tuple(
        ask
        for question in questions
        for first, second in pairs
        for ask in asks_of(question, first, second, table)
    )


def asks_of(question: Question, first: Answers, second: Answers, table: JudgeTable) -> Iterator[Ask]:
    """Requests about one question and one pair of arms."""
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


def plan(requests: Sequence[Ask], cached: Mapping[str, object], table: JudgeTable, most: int | None) -> Plan:
    """Cost of the requests that are not cached, of at most `most` new calls."""
    coming = pending(requests, cached)
    spent = coming if most is None else coming[:most]
    return Plan(
        calls=len(coming),
        cached=len({ask.key for ask in requests} & cached.keys()),
        prompt_tokens=sum(len(ask.prompt.encode()) for ask in spent) // BYTES_PER_TOKEN,
        completion_tokens=len(spent) * table.max_tokens,
        most=most,
    )


def pending(requests: Sequence[Ask], cached: Mapping[str, object]) -> list[Ask]:
    """Requests that are not cached, each once, in order."""
    return list({ask.key: ask for ask in requests if ask.key not in cached}.values())
