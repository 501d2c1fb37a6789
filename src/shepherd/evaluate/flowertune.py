"""The formats in which the FlowerTune leaderboard asks choices, as a second score beside likelihoods.

Each format is a prompt, a longest answer and a rule that reads the answer, as in Flower's evaluation code
(benchmarks/flowertune-llm/evaluation). The prompt has tags of no model's template, the answer is greedy, and
in two of the three it may be one token long: below a few billion parameters this measures whether a model
writes the format, and choices scored by likelihood whether it knows the answer. The fourth task of the board,
code, runs what the model wrote, and is no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from shepherd.errors import DataError
from shepherd.io.phrases import listed

MAX_FINANCE_TOKENS = 512
"""Most tokens of prompt and answer together in the format of finance."""
_CHAT = "<|im_start|>question\n{}<|im_end|>\n<|im_start|>answer\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way of asking a choice.

    prompt: (query, choices) -> the text that is asked. expected: (choices, place) -> what the answer has to
    say. reads: (answer, expected) -> whether it says so. budget: (tokens of the prompt, tokens of `expected`)
    -> most tokens of the answer.
    """

    prompt: Callable[[str, Sequence[str]], str]
    expected: Callable[[Sequence[str], int], str]
    reads: Callable[[str, str], bool]
    budget: Callable[[int, int], int]


def lettered(query: str, choices: Sequence[str]) -> str:
    """A question with its choices below it, one a line behind a letter.

    >>> print(lettered("Which is red", ["A rose", "Snow"]))
    Question: Which is red?
    <BLANKLINE>
    Options:
    A. A rose
    B. Snow
    """
    mark = "" if query.endswith(("?", ".")) else "?"
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)
    )
    return f"Question: {query}{mark}\n\nOptions:\n{options}"


def _of_letters(choices: Sequence[str]) -> bool:
    """Whether the choices are letters, whose texts the query has already."""
    return [choice.strip() for choice in choices] == list(ascii_uppercase[: len(choices)])


def _general(query: str, choices: Sequence[str]) -> str:
    return _CHAT.format(query if _of_letters(choices) else lettered(query, choices))


def _letter(choices: Sequence[str], place: int) -> str:
    return ascii_uppercase[place]


def _medical(query: str, choices: Sequence[str]) -> str:
    return _CHAT.format(query) if _of_words(choices) else _general(query, choices)


def _of_words(choices: Sequence[str]) -> bool:
    """Whether the choices are PubMedQA's, which are asked for by their words."""
    return {choice.strip().lower() for choice in choices} <= {"yes", "no", "maybe"}


def _medical_answer(choices: Sequence[str], place: int) -> str:
    return choices[place].strip().lower() if _of_words(choices) else ascii_uppercase[place]


def _finance(query: str, choices: Sequence[str]) -> str:
    ask = "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}."
    return f"Instruction: {ask}\nInput: {query}\nAnswer: "


def require_fit(name: str, choices: Sequence[Sequence[str]]) -> None:
    """Raise DataError unless a format can ask for these choices, one sequence for each document."""
    if not choices:
        raise DataError(f"none of the tasks is of choices, which the format {name!r} asks; leave it out")
    for each in choices:
        if name == "finance" and not {choice.strip().lower() for choice in each} <= SENTIMENTS:
            raise DataError(
                f"the format finance reads a sentiment, and a document has the choices {listed(each, most=3)}"
                "; leave --format finance out, or ask tasks whose choices are positive, negative and neutral"
            )
        if name != "finance" and len(each) > len(ascii_uppercase):
            raise DataError(
                f"the format {name} names choices by letters, and a document has {len(each)} of them; leave"
                f" --format {name} out, or that task"
            )


def sentiment(answer: str) -> str:
    """The sentiment that an answer is taken for: "positive" anywhere wins, and anything else is neutral.

    >>> sentiment("It is not positive."), sentiment("Negative!"), sentiment("I do not know.")
    ('positive', 'negative', 'neutral')
    """
    for word in ("positive", "negative"):
        if word in answer or word.capitalize() in answer:
            return word
    return "neutral"


def _begins(answer: str, expected: str) -> bool:
    return answer.strip().lower().startswith(expected.lower())


SENTIMENTS = {"positive", "negative", "neutral"}
FORMATS = {
    "general": Format(
        prompt=_general,
        expected=_letter,
        reads=lambda answer, expected: answer.strip()[:1] == expected,
        budget=lambda _, expected: expected,
    ),
    "medical": Format(
        prompt=_medical, expected=_medical_answer, reads=_begins, budget=lambda _, expected: expected
    ),
    "finance": Format(
        prompt=_finance,
        expected=lambda choices, place: choices[place].strip().lower(),
        reads=lambda answer, expected: sentiment(answer) == expected,
        budget=lambda prompt, _: max(1, MAX_FINANCE_TOKENS - prompt),
    ),
}
