"""Read prompts that a model should refuse: of `evaluation.harmful`, or of `shepherd evaluate --harmful`."""

from __future__ import annotations

from pathlib import Path

from shepherd.consent import Consent
from shepherd.data import files, packed
from shepherd.data.examples import Turn
from shepherd.data.prompts import read as read_prompts
from shepherd.errors import BadRow, DataError
from shepherd.judge.agreed import require_agreed
from shepherd.settings import DataTable, RunSettings

PROMPT_FIELDS = ("instruction", "prompt", "goal", "behavior", "question", "text")
"""Fields of a harmful prompt, in any case: those of AdvBench (goal), HarmBench (Behavior), XSTest."""


def required(settings: RunSettings, consent: Consent) -> list[tuple[Turn, ...]]:
    """The prompts of `evaluation.harmful`; empty if there is no such file.

    Raises:
        DataError: the file cannot be read, or a row has no prompt.
        JudgeError: the run names a judge, and nobody agreed to send answers there.
    """
    if not settings.evaluation.harmful:
        return []
    if settings.judge.model:
        require_agreed(settings.judge, consent)
    return read(Path(settings.evaluation.harmful), settings.data)


def read(file: Path, table: DataTable) -> list[tuple[Turn, ...]]:
    """The prompts of a file: rows with a field of `PROMPT_FIELDS`, or one a line.

    Raises:
        DataError: the file cannot be read, or a row has no prompt.
    """
    if packed.suffix(file) not in files.READERS:
        return [each.turns for each in read_prompts(str(file), table)]
    found: list[tuple[Turn, ...]] = []
    for where, given in files.rows_of(file):
        if isinstance(given, BadRow):
            raise given
        fields = {str(key).lower(): value for key, value in given.items()} if isinstance(given, dict) else {}
        text = next((fields[name] for name in PROMPT_FIELDS if fields.get(name)), None)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where} has no prompt; give it one of the fields {', '.join(PROMPT_FIELDS)}")
        found.append((Turn(role="user", text=text),))
    return found
