"""The site's ledger: what a visit spends is kept whatever happens, and a spent budget stops the site."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from shepherd.core.spending import FixedSize, Poisson, Shuffled, Spending, Turns
from shepherd.errors import FolderError
from shepherd.privacy import accountant
from shepherd.silos.site import privacy_ledger as ledger
from shepherd.silos.site.privacy_ledger import Budget, Entry
from shepherd.silos.site.site_settings import SiteDataTable

STEPS = Spending(noise=2.0, sampling=Poisson(chance=0.1), steps=5)
ENTRY = Entry(when="2026-11-29T20:00:00+00:00", run="ab" * 8, round=0, id="q1", unit="example", spent=STEPS)
DELTA = 1e-4


def budget(visits: float, unit: ledger.Unit = "example") -> Budget:
    """What so many visits like `ENTRY` spend, and a little more."""
    whole = replace(STEPS, steps=round(STEPS.steps * visits))
    return Budget(unit=unit, epsilon=accountant.epsilon([whole], DELTA) * 1.01, delta=DELTA)


def spend(path: Path, budgets=(), *entries: Entry) -> str | None:
    return ledger.spend(path, list(budgets), list(entries or [ENTRY]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "privacy" / "0123.jsonl"


@pytest.mark.parametrize(
    "sampling",
    [Poisson(chance=0.25), FixedSize(size=2, of=9), Turns(every=3), Shuffled(steps=4)],
    ids=lambda each: type(each).__name__,
)
def test_what_was_entered_is_read_again(path, sampling) -> None:
    entry = replace(ENTRY, unit="client", spent=Spending(noise=1.5, sampling=sampling, steps=1))
    assert spend(path, (), ENTRY, entry) is None
    assert spend(path) is None
    assert ledger.read(path) == [ENTRY, entry, ENTRY]


def test_noise_on_whole_numbers_is_read_again_and_counted_apart(path) -> None:
    spent = Spending(noise=1.5, sampling=Turns(every=1), steps=1, levels=127)
    entry = replace(ENTRY, unit="client", spent=spent)
    gaussian = replace(entry, spent=replace(spent, levels=0))
    for each in (entry, entry, gaussian):
        assert spend(path, (), each) is None
    assert ledger.read(path) == [entry, entry, gaussian]
    assert '"levels"' not in path.read_text().splitlines()[2]
    both = [replace(spent, steps=2), gaussian.spent]
    assert ledger.epsilon(ledger.read(path), "client", DELTA) == accountant.epsilon(both, DELTA)


def test_it_is_for_its_owner_alone(path) -> None:
    spend(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_visits_of_all_runs_add_up_and_the_one_too_many_is_refused_and_not_entered(path) -> None:
    allowed = [budget(3)]
    for number in range(3):
        assert ledger.refusal(path, allowed, [("example", STEPS)]) is None
        assert spend(path, allowed, replace(ENTRY, run=f"{number:016x}")) is None
    said = ledger.refusal(path, allowed, [("example", STEPS)])
    assert said is not None
    assert "for an example, over all runs so far" in said
    assert spend(path, allowed) == said
    assert len(ledger.read(path)) == 3
    # less is still left than a whole visit takes
    assert spend(path, allowed, replace(ENTRY, spent=replace(STEPS, noise=50.0, steps=1))) is None


def test_epsilon_is_that_of_all_steps_together(path) -> None:
    other = Spending(noise=1.0, sampling=Poisson(chance=0.02), steps=7)
    for spent in (STEPS, other, STEPS):
        spend(path, (), replace(ENTRY, spent=spent))
    theirs = accountant.epsilon([replace(STEPS, steps=10), other], DELTA)
    assert ledger.epsilon(ledger.read(path), "example", DELTA) == pytest.approx(theirs, rel=1e-3)
    assert ledger.epsilon(ledger.read(path), "client", DELTA) == 0.0


def test_the_privacy_of_examples_and_that_of_the_site_have_their_own_budgets(path) -> None:
    for _ in range(3):
        spend(path)
    site = replace(ENTRY, unit="client", spent=STEPS)
    assert spend(path, [budget(3), budget(1, "client")], site) is None
    said = spend(path, [budget(3), budget(1, "client")], site)
    assert said is not None
    assert "for this site" in said


def test_numbers_for_which_there_is_no_one_epsilon_are_refused(path) -> None:
    spend(path, (), replace(ENTRY, spent=Spending(noise=9.0, sampling=FixedSize(size=1, of=9), steps=1)))
    said = ledger.refusal(path, [budget(100)], [("example", STEPS)])
    assert said is not None
    assert "epsilon is inf" in said


@pytest.mark.parametrize("torn", ["", "{", ENTRY.line(), ENTRY.line()[:40]])
def test_a_line_that_a_crash_left_unfinished_is_a_visit_that_never_began(path, torn) -> None:
    spend(path)
    with path.open("a") as file:
        file.write(torn)
    assert ledger.read(path) == [ENTRY]
    assert spend(path) is None
    assert ledger.read(path) == [ENTRY, ENTRY]


BAD = {
    "no JSON": "nonsense",
    "no table": "[]",
    "empty": "",
    "no noise": json.dumps({**json.loads(ENTRY.line()), "noise": None}),
    "NaN": ENTRY.line().replace("2.0", "NaN"),
    "infinite": ENTRY.line().replace("2.0", "1e999"),
    "negative": ENTRY.line().replace("2.0", "-2.0"),
    "zero": ENTRY.line().replace("2.0", "0.0"),
    "negative steps": ENTRY.line().replace('"steps": 5', '"steps": -5'),
    "half a step": ENTRY.line().replace('"steps": 5', '"steps": 0.5'),
    "steps as text": ENTRY.line().replace('"steps": 5', '"steps": "5"'),
    "another unit": ENTRY.line().replace('"example"', '"nobody"'),
    "another sampling": ENTRY.line().replace("Poisson", "Whole"),
    "chance": ENTRY.line().replace("0.1", "1.5"),
    "more keys": ENTRY.line().replace('"chance"', '"luck"'),
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_line_that_cannot_be_read_stops_everything(path, line) -> None:
    spend(path)
    with path.open("a") as file:
        file.write(f"{line}\n{ENTRY.line()}\n")
    before = path.read_bytes()
    for ask in (lambda: ledger.refusal(path, [budget(9)], []), lambda: spend(path, [budget(9)])):
        with pytest.raises(FolderError, match=r"line 2 of privacy ledger .* restore it from a copy"):
            ask()
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_ledger_that_may_not_be_read_stops_everything(path) -> None:
    spend(path)
    path.chmod(0)
    with pytest.raises(FolderError, match="cannot be"):
        ledger.refusal(path, [budget(9)], [])


def test_a_disk_that_takes_no_more_stops_the_visit_and_leaves_no_part_of_a_line(path, monkeypatch) -> None:
    spend(path)
    honest, left = os.write, [20]

    def full(handle: int, data: bytes) -> int:
        if not left:
            raise OSError(28, "No space left on device")
        return honest(handle, data[: left.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(FolderError, match="is full"):
        spend(path)
    monkeypatch.undo()
    assert ledger.read(path) == [ENTRY]
    assert path.read_text().count("\n") == 1


def test_two_processes_never_spend_the_same_rest(path) -> None:
    """Each asks for one of three visits five times, at once."""
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from shepherd.silos.site import privacy_ledger as ledger
        from shepherd.silos.site.privacy_ledger import Budget
        entry = ledger._entry(Path("."), 1, {ENTRY.line().encode()!r})
        allowed = Budget(unit="example", epsilon={budget(3).epsilon}, delta={DELTA})
        for _ in range(5):
            ledger.spend(Path({str(path)!r}), [allowed], [entry])
        """
    )
    started = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [each.wait(120) for each in started] == [0, 0]
    assert ledger.read(path) == [ENTRY] * 3


def test_each_source_has_its_own(tmp_path) -> None:
    def of(**table: object) -> Path:
        return ledger.place(tmp_path, SiteDataTable.model_validate({"source": "a.jsonl", **table}))

    assert of() == of(category="other", delimiter=";") == of(source=os.path.abspath("a.jsonl"))
    assert len({of(), of(source="b.jsonl"), of(part="test"), of(config="x")}) == 4
