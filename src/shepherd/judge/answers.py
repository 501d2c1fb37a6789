"""Answers of one arm by question, and their file: one {"question": id, "answer": text} a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shepherd.data import files, packed
from shepherd.errors import BadRow, DataError
from shepherd.io.atomic import write_atomic
from shepherd.judge.questions import Question, whole
from shepherd.visible import shown_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers of the arm `name`, by question id."""

    name: str
    texts: Mapping[str, str]

    def require(self, questions: Iterable[Question]) -> None:
        """Raise DataError if a question has no answer; the message names the first."""
        missing = [question.id for question in questions if question.id not in self.texts]
        if missing:
            raise DataError(
                f"{self.name} has no answer to question {missing[0]} ({len(missing)} missing); "
                "answer the same questions that are judged"
            )


def read(path: Path, name: str) -> Answers:
    """Read an answers file.

    Raises:
        DataError: the file is missing, empty or unreadable, a row is unreadable (names the line), or a
            question is answered twice.
    """
    texts: dict[str, str] = {}
    for where, row in files.rows_of(path):
        question, text = _pair(row, where)
        if question in texts:
            raise BadRow(f"{where}: question {question} was already answered; keep one of the two")
        texts[question] = text
    return Answers(name=name, texts=texts)


def write(path: Path, answers: Answers) -> Path:
    """Write an answers file atomically.

    Raises:
        FolderError: the disk is full, or the folder cannot be written.
    """
    rows = ({"question": question, "answer": text} for question, text in answers.texts.items())
    return write_atomic(path, "".join(shown_json(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows))


def names(first: Path, second: Path) -> tuple[str, str]:
    """Names for the arms of two files or folders: the shortest ends of their paths that differ.

    Raises:
        DataError: both paths are the same.

    >>> names(Path("runs/a/adapter"), Path("runs/b/adapter")), names(Path("base.jsonl"), Path("runs/b"))
    (('a/adapter', 'b/adapter'), ('base', 'b'))
    """
    ends = [(*path.resolve().parent.parts, _called(path.resolve())) for path in (first, second)]
    for length in range(1, max(map(len, ends)) + 1):
        a, b = ("/".join(end[-length:]) for end in ends)
        if a != b:
            return a, b
    raise DataError(f"{first} and {second} are the same answers; name two that differ")


def _called(path: Path) -> str:
    return packed.stem(path) if packed.suffix(path) in files.READERS else path.name


def _pair(row: object, where: str) -> tuple[str, str]:
    match row:
        case BadRow():
            raise row
        case {"question": str() | int() as question, "answer": str() as answer}:
            return str(question), whole(answer, where)
    raise BadRow(f'{where} is not an answer; write it as {{"question": "id", "answer": "text"}}')
