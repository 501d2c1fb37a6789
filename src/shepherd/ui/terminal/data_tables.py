"""Print the data before any training: samples with their masks, counts, and what each client holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from rich import box
from rich.table import Table
from rich.text import Text

from shepherd.data.lint import Report
from shepherd.data.tokens import Counts, response_remarks
from shepherd.ui.terminal.console import PlainConsole, styled
from shepherd.visible import shown, shown_line

MAX_CLIENT_ROWS = 40
"""If there are more clients than this, only the smallest and the largest are listed."""

MAX_CATEGORY_COLUMNS = 8
"""More categories than this do not fit a line."""


def print_lint_report(report: Report, stream: TextIO | None = None) -> None:
    """Print samples and counts. Trained text is in [[ ]], and bold and green on a terminal."""
    console = PlainConsole(stream)
    for sample in report.samples:
        cut = f", {sample.cut} tokens cut" if sample.cut else ""
        title = f"{sample.category or 'no category'} ({sample.where or 'in memory'}{cut})"
        console.print(styled(shown_line(title), "bold underline"))
        console.print(_marked(sample.spans), soft_wrap=True, end="\n\n")
    console.print("Text in [[ ]] is trained; the model only reads the rest.\n")
    if report.by_category and report.by_client:
        console.print(
            "Categories and all count every example that was read; clients count those to train on, without"
            " duplicates and what is held out."
        )
    groups = [
        ("by category, as read", report.by_category),
        ("by client, to train on", _smallest_and_largest(report.by_client)),
    ]
    console.print_table(_count_table([*groups, ("", {"all": report.counts})]))
    for reason, number in report.counts.dropped.items():
        first = report.counts.first.get(reason)
        where = f" (the first: {first})" if first else ""
        console.print(f"{number:,} dropped: {reason}{where}", soft_wrap=True)
    counts = report.counts
    for remark in response_remarks(kept=counts.kept, cut=counts.cut_responses, marked=counts.marked):
        console.print(remark, soft_wrap=True)
    for remark in report.remarks:
        console.print(remark, soft_wrap=True)


def _marked(spans: Sequence[tuple[str, bool]]) -> Text:
    pieces = [
        (f"[[{shown(text)}]]", "bold green") if trained else (shown(text), "dim") for text, trained in spans
    ]
    return Text.assemble(*pieces)


def _smallest_and_largest(clients: Mapping[str, Counts]) -> Mapping[str, Counts]:
    if len(clients) <= MAX_CLIENT_ROWS:
        return clients
    by_size = sorted(clients, key=lambda name: clients[name].examples)
    return {
        f"{name} ({which})": clients[name]
        for name, which in ((by_size[0], "smallest"), (by_size[-1], "largest"))
    }


def _count_table(groups: Sequence[tuple[str, Mapping[str, Counts]]]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for name in ("examples", "cut", "dropped", "tokens", "trained", "masked"):
        table.add_column(name, justify="right", no_wrap=True)
    for title, counts in groups:
        if title and counts:
            table.add_row(title, style="dim")
        for name, group in counts.items():
            shares = f"{group.share_cut:.1%}", f"{group.share_dropped:.1%}"
            numbers = f"{group.tokens:,}", f"{group.trained:,}", f"{group.share_masked:.1%}"
            table.add_row(name or "(none)", f"{group.examples:,}", *shares, *numbers)
        table.add_section()
    return table


def print_holdings(
    names: Sequence[str],
    clients: Sequence[str],
    counts: Sequence[Sequence[int]],
    stream: TextIO | None = None,
) -> None:
    """Print how many examples of each category each client holds; `counts` is (clients, categories)."""
    names, counts = _commonest(names, counts)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    width = min(16, max(map(len, clients), default=0))
    table.add_column("client", overflow="fold", min_width=max(6, width))
    for name in names:
        table.add_column(name.replace("_", " ") or "(none)", justify="right", overflow="fold")
    table.add_column("all", justify="right", no_wrap=True)
    for client, row in zip(clients, counts, strict=True):
        table.add_row(client, *(f"{number:,}" if number else "·" for number in row), f"{sum(row):,}")
    PlainConsole(stream).print_table(table)


def _commonest(
    names: Sequence[str], counts: Sequence[Sequence[int]]
) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
    """Names and counts of the categories that fit a line: the commonest, and the rest as "others"."""
    if len(names) <= MAX_CATEGORY_COLUMNS:
        return names, counts
    totals = [sum(row[place] for row in counts) for place in range(len(names))]
    first = sorted(sorted(range(len(names)), key=lambda place: -totals[place])[: MAX_CATEGORY_COLUMNS - 1])
    rows = [[*(row[place] for place in first), sum(row) - sum(row[p] for p in first)] for row in counts]
    return [*(names[place] for place in first), "others"], rows
