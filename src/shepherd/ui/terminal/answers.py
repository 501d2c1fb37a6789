"""Answers on stdout, and nothing else there: what is loaded and how far it is goes to stderr."""

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

HEADING = 100  # characters of a prompt that stand above its answer


def said(text: str) -> None:
    """Write to stderr, now."""
    print(shown_line(text), file=sys.stderr, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say on stderr how long it took: `loaded tiny in 3.1 s`."""
    began = perf_counter()
    yield
    said(f"{what} in {perf_counter() - began:.1f} s")


def shown(answers: Iterable[Answer], *, several: bool, as_json: bool) -> None:
    """Print each answer as it comes: alone, below its prompt where there are several, or as JSON."""
    count = cut = 0
    for answer in answers:
        text = _line(answer) if as_json else visible(_headed(answer) if several else answer.text)
        print(text, flush=True)
        count, cut = count + 1, cut + answer.cut
    if cut:
        said(f"{cut} of {count} answers reached the greatest length; --max-new-tokens gives them more")


def _line(answer: Answer) -> str:
    """One JSON object: `prompt`, `context` where there is one, `answer`, `n`, `seed` (null where greedy)."""
    context = {"context": answer.prompt.context} if answer.prompt.context else {}
    row = {"prompt": answer.prompt.text, **context, "answer": answer.text, "n": answer.n, "seed": answer.seed}
    return shown_json(json.dumps(row, ensure_ascii=False))


def _headed(answer: Answer) -> str:
    text = " ".join(answer.prompt.text.split())
    asked = text if len(text) <= HEADING else f"{text[: HEADING - 1]}…"
    return f"# {asked}{f' ({answer.n})' if answer.n > 1 else ''}\n{answer.text}\n"
