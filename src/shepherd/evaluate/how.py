"""How a score was measured, as far as that changes its number: the key `how` of a row of evaluation.json.

A row of an earlier version has none, and how it was measured is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from shepherd.io.phrases import listed
from shepherd.io.progress import many

Row = Mapping[str, Any]
NOT_KNOWN = "measured in a way that is not known"


class HowTask(BaseModel):
    """How one task was asked."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    version: str | None = None
    """Version of the task; None where its file has none."""
    fewshot: int | None = None
    """Examples in each prompt; None in a format that has a prompt of its own."""
    own_fewshot: int | None = None
    """Examples that the task itself asks for."""


class How(BaseModel):
    """How a score was measured; what is not of its kind is None, or empty."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    limited: bool
    """Whether somebody had only a part of the documents or prompts asked."""
    of_documents: int
    """Documents or prompts that there are; the row says how many the score is of."""
    tasks: dict[str, HowTask] = {}
    chat: bool | None = None
    """Whether a task was asked in the chat template of the base's tokenizer."""
    lm_eval: str | None = None
    """Version of lm-eval."""
    prompts: str | None = None
    """Name of the file of harmful prompts."""
    max_new_tokens: int | None = None
    """Longest answer to a harmful prompt."""
    judge: str | None = None
    """The judge's model."""

    @classmethod
    def of(cls, row: Row) -> How | None:
        """How the score of a row was measured; None if that is not known.

        Raises:
            ValidationError: the row's `how` is damaged.
        """
        return None if row.get("how") is None else cls.model_validate(row["how"])

    @property
    def own_fewshot(self) -> bool:
        """Whether each task was asked with as many examples as it says itself."""
        return all(task.fewshot == task.own_fewshot for task in self.tasks.values())

    @property
    def way(self) -> Row:
        """What makes two scores of one name different ones: not the versions, of which the newest counts."""
        shots = {name: task.fewshot for name, task in self.tasks.items()}
        return {**self.model_dump(include={"chat", "prompts", "max_new_tokens", "judge"}), "fewshot": shots}


def words(row: Row) -> str:
    """How the score of a row was measured, where a reader cannot take that for granted; "" if he can.

    >>> how = {"limited": True, "of_documents": 14, "tasks": {"quiz": {"fewshot": 5, "own_fewshot": 0}}}
    >>> words({"kind": "task", "documents": 4, "how": {**how, "chat": True}})
    '4 of 14 documents, 5 examples in the prompt and not 0, in the chat template'
    """
    how = How.of(row)
    if how is None:
        return NOT_KNOWN
    other = [task for task in how.tasks.values() if task.fewshot != task.own_fewshot]
    parts = (
        f"{row['documents']:,} of {how.of_documents:,} {'prompts' if how.prompts else 'documents'}"
        if row["documents"] < how.of_documents
        else "",
        f"{_numbers([task.fewshot for task in other])} examples in the prompt and not"
        f" {_numbers([task.own_fewshot for task in other])}"
        if other
        else "",
        "in the chat template" if how.chat else "",
        f"over {listed(list(how.tasks))}" if row.get("kind") == "format" else "",
        how.prompts or "",
        f"answers of at most {many(how.max_new_tokens, 'token')}" if how.max_new_tokens else "",
        how.judge or "",
    )
    return ", ".join(filter(None, parts))


def _numbers(given: Sequence[int | None]) -> str:
    return " or ".join(map(str, sorted({each or 0 for each in given})))


def asked_by(rows: Sequence[Row]) -> str:
    """Sentence on the versions of lm-eval and of the tasks that some scores are of; "" without any."""
    found = [how for how in map(How.of, rows) if how is not None and how.lm_eval]
    if not found:
        return ""
    harness = listed(list(dict.fromkeys(str(how.lm_eval) for how in found)))
    versions = {name: task.version for how in found for name, task in how.tasks.items() if task.version}
    named = [f"{name} {version}" for name, version in versions.items()]
    return f"Tasks are asked by lm-eval {harness}{f', in the versions {listed(named)}' if named else ''}."


def replaces(new: Row, old: Row) -> bool:
    """Whether a score takes the place of an older one: one of all documents does so of one of a part.

    One of a part takes the place of none but one of as many; and one of a way that is not known goes when all
    documents are measured.
    """
    if new["name"] != old["name"]:
        return False
    now, then = How.of(new), How.of(old)
    if now is None or then is None:
        return then is None and (now is None or not now.limited)
    if now.way != then.way:
        return False
    return not now.limited or (then.limited and new["documents"] == old["documents"])
