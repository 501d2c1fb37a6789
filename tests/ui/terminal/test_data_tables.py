"""The data as a person sees them before any training, in a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

from shepherd.data.lint import Report, Sample
from shepherd.data.tokens import Counts
from shepherd.ui.terminal.data_tables import print_holdings, print_lint_report
from tests.ui.terminal.golden import require_golden


def counts(examples: int) -> Counts:
    return Counts(
        examples=examples,
        kept=examples - 1,
        cut=1,
        dropped={"too long": 1},
        tokens=100,
        trained=25,
        cut_tokens=9,
    )


def report(clients: int) -> Report:
    sample = Sample(
        where="a.jsonl:3", category="qa", spans=(("Say [bold]hi[/]\n", False), ("hi</s>", True)), cut=2
    )
    return Report(
        samples=(sample, replace(sample, where="", category="", cut=0)),
        counts=counts(11),
        by_category={"information_extraction": counts(5), "": counts(6)},
        by_client={f"client-{n}": counts(2 + n) for n in range(clients)},
    )


def printed(found: Report) -> str:
    stream = io.StringIO()
    print_lint_report(found, stream)
    assert "\x1b" not in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    return stream.getvalue()


def test_samples_with_their_masks_and_counts() -> None:
    require_golden("lint_report", printed(report(2)))


def test_the_shares_are_the_counts() -> None:
    """Worked by hand: 1 of 11 is dropped, 1 of the 10 kept is cut, 25 of 100 tokens are trained."""
    lines = [" ".join(line.split()) for line in printed(report(2)).splitlines()]
    assert "all 11 10.0% 9.1% 100 25 75.0%" in lines
    assert "client-1 3 50.0% 33.3% 100 25 75.0%" in lines


def test_of_many_clients_only_the_smallest_and_the_largest() -> None:
    require_golden("lint_report_many_clients", printed(report(50)))


def test_the_first_dropped_example_and_what_a_template_adds() -> None:
    counted = replace(counts(3), first={"too long": "a.jsonl, line 4"})
    found = Report(samples=(), counts=counted, by_category={}, by_client={}, remarks=("It adds [a date].",))
    require_golden("lint_report_remarks", printed(found))


def holdings(names: list[str], clients: list[str], table: list[list[int]]) -> str:
    stream = io.StringIO()
    print_holdings(names, clients, table, stream)
    return stream.getvalue()


def test_many_categories_fit_a_line() -> None:
    """The seven commonest have columns; 0 + 1 + 2 + 3 + 4 are others."""
    names = [f"kind_{n}" for n in range(12)]
    text = holdings(names, ["client-0", "client-1"], [[*range(12)], [0] * 12])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "client-0 5 6 7 8 9 10 11 10 66" in lines
    require_golden("holdings_many_categories", text)


def test_a_few_categories_keep_their_names() -> None:
    require_golden("holdings", holdings(["open_qa", ""], ["a"], [[3, 4]]))
