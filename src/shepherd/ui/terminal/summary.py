"""Print the end of a run: scores before and after, where the adapter is, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.table import Table

from shepherd.io.progress import duration, many
from shepherd.ui.terminal.console import PlainConsole
from shepherd.ui.terminal.figures import Row, budgets

Pair = tuple[float | None, float | None]
ANY_QUESTION = "YOUR QUESTION"
_NONE: Pair = (None, None)


def print_summary(
    folder: Path,
    rows: Sequence[Row],
    finished: Mapping[str, Any],
    stream: TextIO | None = None,
    question: str = ANY_QUESTION,
) -> None:
    """Print the final table; `finished` is from `Run.finish`, `rows` is the whole log.

    The question is one to try next; none of the data, whose text does not belong in a log.
    """
    console = PlainConsole(stream)
    answers: Mapping[str, Pair] = finished.get("answers") or {}
    losses = loss_by_category(rows)
    console.print()
    if answers or losses:
        console.print_table(_table(answers, losses))
    for sentence in finished.get("remarks", ()):
        console.print(sentence, soft_wrap=True)
    console.print(f"{_effort(rows)}Adapter: {finished['adapter']}\n", soft_wrap=True)
    console.print("Try next:")
    for command in _next_commands(folder, question):
        console.print(f"  {command}", soft_wrap=True)


def loss_by_category(rows: Sequence[Row]) -> dict[str, Pair]:
    """Held-out response loss (before training, after the last scored round) by category and for "all"."""
    scored = [row["heldout"] for row in rows if "heldout" in row]
    if not scored:
        return {}
    first = scored[0] if rows[0]["round"] == 0 and "heldout" in rows[0] else {}
    before, after = _categories(first), _categories(scored[-1])
    return {name: (before.get(name), after[name]) for name in after}


def _categories(heldout: Mapping[str, Any]) -> dict[str, float | None]:
    return {**heldout.get("category", {}), "all": heldout.get("loss")}


def _table(answers: Mapping[str, Pair], losses: Mapping[str, Pair]) -> Table:
    table = Table(box=box.SIMPLE, title="Held-out examples, before and after", title_justify="left")
    table.add_column("category", overflow="fold")
    for kind in ("right answers",) * bool(answers) + ("response loss",) * bool(losses):
        table.add_column(f"{kind}\nbefore", justify="right", no_wrap=True)
        table.add_column("\nafter", justify="right", no_wrap=True, style="bold")
    names = sorted({*answers, *losses} - {"all"}) + ["all"] * ("all" in {*answers, *losses})
    for name in names:
        cells = [_share(x) for x in answers.get(name, _NONE)] if answers else []
        cells += [_loss(x) for x in losses.get(name, _NONE)] if losses else []
        table.add_row(name, *cells, end_section=name == names[-2:][0] and names[-1] == "all")
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _effort(rows: Sequence[Row]) -> str:
    """Rounds, time, and how much of the clients' data has been trained on."""
    trained = [row for row in rows if row["round"] > 0]
    if not trained:
        return ""
    shares = trained[-1].get("coverage", {}).values()
    covered = f", {sum(shares) / len(shares):.0%} of each client's data seen on average" if shares else ""
    seconds = [row["seconds"]["round"] for row in trained if "seconds" in row]
    took = f" in {duration(sum(seconds))}" if seconds else ""
    spent = "".join(f", {said}" for said in budgets(trained[-1]))
    return f"{many(len(trained), 'round')}{took}{covered}{spent}.\n"


def _next_commands(folder: Path, question: str) -> list[str]:
    name = shlex.quote(str(folder))
    return [
        f'shepherd generate {name} "{question}"',
        f'shepherd generate {name} "{question}" --base',
    ]
