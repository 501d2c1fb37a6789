"""The data as a person sees them before any training."""

import io
from dataclasses import replace
from pathlib import Path

from shepherd.data.lint import Report, Sample
from shepherd.data.tokens import Counts
from shepherd.ui.terminal import data


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


def printed(clients: int) -> str:
    sample = Sample(
        where="a.jsonl:3", category="qa", spans=(("Say [bold]hi[/]\n", False), ("hi</s>", True)), cut=2
    )
    found = Report(
        samples=(sample,),
        counts=counts(11),
        by_category={"information_extraction": counts(5), "": counts(6)},
        by_client={f"client-{n}": counts(2 + n) for n in range(clients)},
    )
    stream = io.StringIO()
    data.report(found, stream)
    return stream.getvalue()


def test_what_is_trained_is_set_off_and_nothing_is_taken_for_markup() -> None:
    text = printed(2)
    assert "qa (a.jsonl:3, 2 tokens cut)\nSay [bold]hi[/]\n[[hi</s>]]\n" in text
    assert "\x1b" not in text


def test_the_shares_are_the_counts() -> None:
    lines = [" ".join(line.split()) for line in printed(2).splitlines()]
    assert "all 11 10.0% 9.1% 100 25 75.0%" in lines
    assert "client-1 3 50.0% 33.3% 100 25 75.0%" in lines
    assert "information_extraction 5 25.0% 20.0% 100 25 75.0%" in lines
    assert "1 dropped: too long" in lines
    assert max(map(len, printed(2).splitlines())) <= 80


def test_of_many_clients_only_the_extremes() -> None:
    text = printed(50)
    assert "client-0 (least)" in text
    assert "client-49 (most)" in text
    assert "client-7" not in text


def test_holdings_fit_a_line_however_many_categories() -> None:
    stream = io.StringIO()
    names = [f"kind_{n}" for n in range(12)]
    table = [[n for n in range(12)], [0] * 12]
    data.holdings(names, ["client-0", "client-1"], table, stream)
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "client-0 5 6 7 8 9 10 11 10 66" in lines  # the seven commonest; 0 + 1 + 2 + 3 + 4 are others
    assert "client-1 · · · · · · · · 0" in lines
    assert max(map(len, stream.getvalue().splitlines())) <= 80


def test_a_few_categories_keep_their_names(tmp_path: Path) -> None:
    stream = io.StringIO()
    data.holdings(["open_qa", ""], ["a"], [[3, 4]], stream)
    assert "open qa" in stream.getvalue()
    assert "(none)" in stream.getvalue()


def test_the_first_of_what_is_dropped_and_what_a_template_adds_are_said() -> None:
    stream = io.StringIO()
    counted = replace(counts(3), first={"too long": "a.jsonl, line 4"})
    found = Report(samples=(), counts=counted, by_category={}, by_client={}, remarks=("It adds [a date].",))
    data.report(found, stream)
    assert "1 dropped: too long (the first: a.jsonl, line 4)\n" in stream.getvalue()
    assert "It adds [a date].\n" in stream.getvalue()
