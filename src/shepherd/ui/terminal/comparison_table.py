"""Print a comparison: each arm with its intervals, what federation adds, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.table import Table

from shepherd.ui.terminal.console import PlainConsole
from shepherd.ui.terminal.figures import budgets
from shepherd.ui.terminal.scores_table import print_by_arm

Row = Mapping[str, Any]
MAX_ARM_COLUMNS = 7
"""A table with more arms than this does not fit a terminal."""
LABELS = {"right": "right %", "exact": "exact %", "f1": "F1 %", "rouge_l": "ROUGE-L %", "loss": "loss"}
NATS = ("loss", "margin")
"""Measures that are in nats and not in percent."""
PAIRS = {"preference": "prefers\nchosen %", "margin": "reward\nmargin"}
"""Measures of what arms prefer of pairs of answers."""


def print_comparison(comparison: Row, stream: TextIO | None = None) -> None:
    """Print the arms of comparison.json by measure, by category if answers are checked, and its verdicts.

    Where benchmark tasks or harmful prompts scored the same adapters, a second table has these by arm.

    The sentences that say in words what the table shows are left to the report.

    Args:
        comparison: the object in comparison.json.
        stream: where to print; stdout if None.
    """
    console = PlainConsole(stream)
    arms: Sequence[Row] = comparison["arms"]
    names = [name for name in labels(comparison) if all(name in arm["measures"] for arm in arms)]
    preferring = [name for name in names if name in PAIRS]
    if "right" in names or preferring:  # they say more than likeness to one answer; the report has all
        names = [*preferring, *(name for name in names if name == "right"), "loss"]
    if not names:
        console.print("Nothing is held out, so nothing can be compared; set data.holdout.")
        return
    tested = {row["measure"] for row in comparison["differences"]}
    chief = next((name for name in names if name in tested), names[0])
    console.print()
    console.print_table(_arms_table(comparison, arms, names, chief))
    if chief == "right" and len(arms) <= MAX_ARM_COLUMNS:
        console.print_table(_category_table(arms, chief, labels(comparison)[chief]))
    if scores := comparison.get("scores"):
        print_by_arm(scores, [arm["name"] for arm in arms], stream, short=True)
    for sentence in comparison["verdicts"]:
        console.print(f"- {sentence}")


def labels(comparison: Row) -> dict[str, str]:
    """Column heads by measure: the usual ones, others that the comparison describes, and the loss last."""
    others = {
        each["name"]: f"{each['label']} %"
        for each in comparison.get("measures", ())
        if each["name"] not in LABELS and each["name"] not in PAIRS
    }
    return {
        **PAIRS,
        **{name: label for name, label in LABELS.items() if name != "loss"},
        **others,
        "loss": LABELS["loss"],
    }


def _arms_table(comparison: Row, arms: Sequence[Row], names: Sequence[str], chief: str) -> Table:
    seeds = len(comparison["seeds"])
    by_answers = names[0] not in NATS and names[0] not in PAIRS
    asked = comparison["questions"] if by_answers else comparison["loss_examples"]
    what = "pairs" if names[0] in PAIRS else "questions"
    title = f"{asked:,} held-out {what}, {seeds} seed{'s' * (seeds > 1)}; 95% intervals below each number"
    table = Table(box=box.SIMPLE, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold", min_width=12)
    chosen = labels(comparison)[chief].replace("\n", " ")
    for name in names:
        table.add_column(labels(comparison)[name], justify="right", no_wrap=True)
    table.add_column(
        f"{comparison.get('against', 'federated')}\n/ arm, {chosen.removesuffix(' %')}",
        justify="right",
        no_wrap=True,
    )
    table.add_column("Holm p", justify="right", no_wrap=True)
    for arm in arms:
        style = "bold" if arm["kind"] == "federated" else ""
        cells = [_interval(arm["measures"][name], *_format(name)) for name in names]
        row = _difference(comparison, arm["name"], chief)
        relative = _relative(row["relative"]) if row else ""
        table.add_row(_arm_label(arm), *cells, relative, _p_value(row["p_holm"]) if row else "", style=style)
    return table


def _arm_label(arm: Row) -> str:
    """The arm's name, and below it the categories of a local one's client, and the epsilon that it spent."""
    own = [", ".join(arm["categories"])] if arm["kind"] == "local" else []
    return "\n".join(filter(None, [arm["name"], *own, *budgets(arm)]))


def _category_table(arms: Sequence[Row], chief: str, label: str) -> Table:
    """The chief measure by category and arm, in whole percent; the report has the decimals."""
    names = sorted({name for arm in arms for name in arm["category"][chief]})
    title = f"{label} by category"
    table = Table(box=box.SIMPLE, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("category", overflow="fold")
    for arm in arms:
        table.add_column(arm["name"].replace("-", "-\n", 1), justify="right", overflow="fold")
    for name in names:
        cells = [_interval(arm["category"][chief].get(name), 0, 100) for arm in arms]
        table.add_row(name, *cells)
    return table


def _difference(comparison: Row, arm: str, measure: str) -> Row | None:
    rows = (row for row in comparison["differences"] if (row["arm"], row["measure"]) == (arm, measure))
    return next(rows, None)


def _format(measure: str) -> tuple[int, float]:
    """Digits after the point, and the factor to multiply by."""
    return (3, 1) if measure in NATS else (1, 100)


def _interval(row: Row | None, places: int, factor: float) -> str:
    if row is None or row["value"] is None:
        return "-"
    low, high = (_number(row[end], places, factor) for end in ("low", "high"))
    return f"{_number(row['value'], places, factor)}\n{low}-{high}"


def _relative(row: Row) -> str:
    """The ratio federated / arm; only its lower bound if the arm is near 0."""
    if row["high"] is None:
        return "-" if row["low"] is None else f"> {row['low']:.0f}"
    return _interval(row, 3, 1)


def _number(value: float | None, places: int, factor: float) -> str:
    return "?" if value is None else f"{factor * value:.{places}f}"


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
