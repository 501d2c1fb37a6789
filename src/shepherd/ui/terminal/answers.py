"""Print answers to stdout; everything else goes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from shepherd.visible import shown as visible
from shepherd.visible import shown_json, shown_line

if TYPE_CHECKING:  # torch is not for `--help`
    from shepherd.run.answerer import Answer

MAX_HEADING_CHARS = 100


def print_stderr(text: str) -> None:
    """Print one line to stderr at once."""
    print(shown_line(text), file=sys.stderr, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print to stderr how long the block took: `loaded tiny in 3.1 s`."""
    began = perf_counter()
    yield
    print_stderr(f"{what} in {perf_counter() - began:.1f} s")


def print_answers(answers: Iterable[Answer], *, several: bool, as_json: bool) -> None:
    """Print each answer as it comes: alone, below its prompt if there are several, or as JSON."""
    count = cut = 0
    for answer in answers:
        text = _as_json(answer) if as_json else visible(_with_heading(answer) if several else answer.text)
        print(text, flush=True)
        count, cut = count + 1, cut + answer.cut
    if cut:
        print_stderr(
            f"{cut} of {count} answers were cut at the longest length; raise it with --max-new-tokens"
        )


def _as_json(answer: Answer) -> str:
    """One JSON object: `prompt`, `context` if there is one, `answer`, `n`, `seed` (null if greedy)."""
    context = {"context": answer.prompt.context} if answer.prompt.context else {}
    row = {"prompt": answer.prompt.text, **context, "answer": answer.text, "n": answer.n, "seed": answer.seed}
    return shown_json(json.dumps(row, ensure_ascii=False))


def _with_heading(answer: Answer) -> str:
    text = " ".join(answer.prompt.text.split())
    asked = text if len(text) <= MAX_HEADING_CHARS else f"{text[: MAX_HEADING_CHARS - 1]}…"
    return f"# {asked}{f' ({answer.n})' if answer.n > 1 else ''}\n{answer.text}\n"
