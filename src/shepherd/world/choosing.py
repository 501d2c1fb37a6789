"""Pairs of answers about a world: the right one is chosen, a wrong or badly formed one rejected.

Half of the rejected answers are right answers to another task of the same category, as like the chosen one in
length as there is: the form is right, and what is said is wrong. The others say the right thing in the wrong
form: without their opening, cut off, said twice, or with talk in front. The check of each task confirms that
the rejected answer is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from shepherd import plugins
from shepherd.core.checker import Checker
from shepherd.world.facts import World
from shepherd.world.tasks import CATEGORIES, rows

CANDIDATES = 40
"""Answers to other tasks among which the most alike one is looked for."""


def preferences(world: World, per_category: int, seed: int) -> list[dict[str, Any]]:
    """The instructions of `rows`, each with a chosen and a rejected answer in place of a response.

    Raises:
        ValueError: a category does not have that many distinct instructions.
    """
    tasks = rows(world, per_category, seed)
    rng = Random(f"{seed}/preferences")
    found = []
    for category in CATEGORIES:
        own = [task for task in tasks if task["category"] == category]
        responses = [task["response"] for task in own]
        for number, task in enumerate(own):
            rejected = _rejected(task, responses, misformed=number % 2 == 1, rng=rng)
            rest = {key: value for key, value in task.items() if key != "response"}
            found.append({**rest, "chosen": task["response"], "rejected": rejected})
    return found


def _rejected(task: dict[str, Any], others: Sequence[str], *, misformed: bool, rng: Random) -> str:
    checker: Checker = plugins.checker(task["check"])
    kinds = [_misformed(task["response"], rng), _of_others(task["response"], others, rng)]
    for candidates in kinds if misformed else kinds[::-1]:
        for text in candidates:
            says_something = any(letter.isalnum() for letter in text)
            if says_something and text != task["response"] and not checker.right(text):
                return text
    return ""  # of one word that every form of it answers rightly, which no category has


def _of_others(response: str, others: Sequence[str], rng: Random) -> Iterator[str]:
    """Answers to other tasks, the most alike in number of words first."""
    length = len(response.split())
    drawn = rng.sample(others, min(CANDIDATES, len(others)))
    yield from sorted(drawn, key=lambda text: abs(len(text.split()) - length))


def _misformed(response: str, rng: Random) -> Iterator[str]:
    """The response in wrong forms, in any order."""
    forms: list[Callable[[str], str]] = [_unopened, _cut, _twice, _talking]
    for form in rng.sample(forms, len(forms)):
        yield form(response)


def _unopened(text: str) -> str:
    """Without its first word, up to a colon or a comma if there is one."""
    words = text.split(" ")
    after = next((n for n, word in enumerate(words[:-1], 1) if word.endswith((":", ","))), 1)
    return " ".join(words[after:])


def _cut(text: str) -> str:
    words = text.split(" ")
    return " ".join(words[: max(1, len(words) // 2)])


def _twice(text: str) -> str:
    return f"{text} {text}"


def _talking(text: str) -> str:
    return f"Well, let me think about it. {text}"
