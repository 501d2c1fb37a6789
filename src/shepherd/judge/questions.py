"""Questions for every arm: from a file, the held-out examples, or a known benchmark."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.core import seed_for
from shepherd.data import files
from shepherd.data.examples import Example
from shepherd.errors import BadRow, DataError
from shepherd.evaluate.loss import stratified_subset

KNOWN = {"vicuna": "vicuna_80_question.jsonl", "mt-bench": "mt_bench_question.jsonl"}
REFERENCES = {"mt-bench": "mt_bench_reference_gpt-4.jsonl"}
HELD_OUT = "heldout"

_ID = ("id", "question_id")
_TEXT = ("question", "instruction", "text", "prompt")
_CONTEXT = ("context", "input")
_REFERENCE = ("reference", "response", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question; `context` is a text that it is about, `reference` a good answer, "" for none."""

    id: str
    text: str
    category: str = ""
    context: str = ""
    reference: str = ""


def find(name: str) -> tuple[Question, ...]:
    """Questions that `judge.questions` names: "vicuna", "mt-bench" (its first turns), or a file.

    Raises:
        DataError: the file is missing, empty or unreadable, or a row is unreadable (names file and line).
    """
    if name == HELD_OUT:
        raise DataError(
            'the questions "heldout" are available in a run only; use a file, "vicuna" or "mt-bench"'
        )
    if name not in KNOWN:
        return read(Path(name).expanduser())
    asked = read(_shared(name, KNOWN[name]))
    if name not in REFERENCES:
        return asked
    answers = _references(_shared(name, REFERENCES[name]))
    return tuple(replace(q, reference=answers.get(q.id, q.reference)) for q in asked)


def read(path: Path) -> tuple[Question, ...]:
    """Read the questions of a JSONL, JSON, CSV or Parquet file, one a row.

    A row has `question`, `instruction`, `text` or `prompt`, or `turns`, of which the first is asked. It
    may have `id` or `question_id` (else the row's number is it), `category`, `context` or `input`, and
    `reference`, `response` or `output`.

    Raises:
        DataError: the file is missing, empty or unreadable, a row is unreadable, or an id is repeated.
    """
    asked: dict[str, Question] = {}
    for number, (where, row) in enumerate(files.rows_of(path), 1):
        question = _question(row, where, number)
        if question.id in asked:
            raise BadRow(f"{where}: the id {question.id} is already used; give each question its own")
        asked[question.id] = question
    return tuple(asked.values())


def held_out(examples: Iterable[Example]) -> tuple[Question, ...]:
    """Held-out examples as questions with their responses as references.

    The id is a hash of the content, so that saved answers never match other examples.
    """
    asked: dict[str, Question] = {}
    for example in examples:
        text = f"{example.instruction}\0{example.context}\0{example.response}"
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        asked[name] = Question(
            id=name,
            text=example.instruction,
            category=example.category,
            context=example.context,
            reference=example.response,
        )
    return tuple(asked.values())


def limited(questions: Sequence[Question], most: int | None) -> tuple[Question, ...]:
    """The first questions of each category, evenly over the categories; `most` in all, or all for None."""
    if most is None:
        return tuple(questions)
    return tuple(questions[place] for place in stratified_subset([q.category for q in questions], most))


def drawn(questions: Sequence[Question], most: int | None, seed: int) -> tuple[Question, ...]:
    """Questions drawn at random, evenly over the categories, in their order; `most` in all (None: all)."""
    if most is None:
        return tuple(questions)
    order = np.random.default_rng(seed_for(seed, "questions")).permutation(len(questions))
    places = stratified_subset([questions[place].category for place in order], most)
    return tuple(questions[place] for place in sorted(order[places]))


def _shared(name: str, file: str) -> Path:
    folder = Path(os.environ.get("SHEPHERD_SHARED", "../shared")) / "data" / "prompts"
    if not (folder / file).is_file():
        raise DataError(
            f"the questions of {name} are expected in {folder / file}, which does not exist; "
            "set SHEPHERD_SHARED to the folder that holds data/prompts, or set judge.questions to a file"
        )
    return folder / file


def _question(row: Any, where: str, number: int) -> Question:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow(f'{where} is no object with named fields; write it as {{"question": ...}}')
    text = _turn(row["turns"], where) if "turns" in row else _field(row, _TEXT, where)
    if not text.strip():
        raise BadRow(f"{where} has no question; give it one of the fields {', '.join(_TEXT)}, turns")
    return Question(
        id=_field(row, _ID, where) or str(number),
        text=text,
        category=_field(row, ("category",), where),
        context=_field(row, _CONTEXT, where),
        reference=_field(row, _REFERENCE, where),
    )


def _turn(turns: Any, where: str) -> str:
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise BadRow(f'{where}: field turns is not a list of texts; write it as ["..."]')
    return whole(turns[0], where)


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """Text of the first of these fields that exists; of a list, its first entry (MT-bench's turns)."""
    name = next((name for name in names if row.get(name) is not None), None)
    value = row[name] if name else ""
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"{where}: field {name} is not text; write it in quotes")
    return whole(value, where)


def whole(text: str, where: str) -> str:
    """Return the text; raise BadRow if it has half of a surrogate pair (legal in JSON, not in UTF-8)."""
    if any("\ud800" <= letter <= "\udfff" for letter in set(text)):
        raise BadRow(f"{where} holds half of a surrogate pair; write the whole character")
    return text


def _references(path: Path) -> dict[str, str]:
    """MT-bench's reference answers to the first turns, by question."""
    found = {}
    for where, row in files.rows_of(path):
        try:
            found[str(row["question_id"])] = str(row["choices"][0]["turns"][0])
        except (TypeError, KeyError, IndexError) as error:
            raise BadRow(f"{where} is not a reference answer; download the file again") from error
    return found
