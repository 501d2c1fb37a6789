"""The site's ledger: what a visit spends is kept whatever happens, and a spent budget stops the site."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shepherd.core.spending import FixedSize, Poisson, Shuffled, Spending, Turns
from shepherd.errors import FolderError
from shepherd.privacy import accountant
from shepherd.silos.site import privacy_ledger as ledger
from shepherd.silos.site.privacy_ledger import Budget, Entry, Ledger
from shepherd.silos.site.site_settings import SiteDataTable
from shepherd.silos.site.site_store import Store

STEPS = Spending(noise=2.0, sampling=Poisson(chance=0.1), steps=5)
ENTRY = Entry(when="2026-11-29T20:00:00+00:00", run="ab" * 8, round=0, id="q1", unit="example", spent=STEPS)
DELTA = 1e-4


def budget(visits: float, unit: ledger.Unit = "example") -> Budget:
    """What so many visits like `ENTRY` spend, and a little more."""
    whole = replace(STEPS, steps=round(STEPS.steps * visits))
    return Budget(unit=unit, epsilon=accountant.epsilon([whole], DELTA) * 1.01, delta=DELTA)


def spend(path: Path, budgets=(), *entries: Entry) -> str | None:
    return ledger.spend(Ledger(path), list(budgets), list(entries or [ENTRY]))


def read(path: Path) -> list[Entry]:
    return ledger.read(Ledger(path))


def refusal(path: Path, *budgets: Budget) -> str | None:
    """Why another visit like `ENTRY` is refused."""
    return ledger.refusal(Ledger(path), budgets, [("example", STEPS)])


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
    assert read(path) == [ENTRY, entry, ENTRY]


def test_noise_on_whole_numbers_is_read_again_and_counted_apart(path) -> None:
    spent = Spending(noise=1.5, sampling=Turns(every=1), steps=1, levels=127)
    entry = replace(ENTRY, unit="client", spent=spent)
    gaussian = replace(entry, spent=replace(spent, levels=0))
    for each in (entry, entry, gaussian):
        assert spend(path, (), each) is None
    assert read(path) == [entry, entry, gaussian]
    assert '"levels"' not in path.read_text().splitlines()[2]
    both = [replace(spent, steps=2), gaussian.spent]
    assert ledger.epsilon(read(path), "client", DELTA) == accountant.epsilon(both, DELTA)


def test_it_is_for_its_owner_alone(path) -> None:
    spend(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_visits_of_all_runs_add_up_and_the_one_too_many_is_refused_and_not_entered(path) -> None:
    allowed = [budget(3)]
    for number in range(3):
        assert refusal(path, *allowed) is None
        assert spend(path, allowed, replace(ENTRY, run=f"{number:016x}")) is None
    said = refusal(path, *allowed)
    assert said is not None
    assert "for each example, over all runs so far" in said
    assert spend(path, allowed) == said
    assert len(read(path)) == 3
    # less is still left than a whole visit takes
    assert spend(path, allowed, replace(ENTRY, spent=replace(STEPS, noise=50.0, steps=1))) is None


def test_epsilon_is_that_of_all_steps_together(path) -> None:
    other = Spending(noise=1.0, sampling=Poisson(chance=0.02), steps=7)
    for spent in (STEPS, other, STEPS):
        spend(path, (), replace(ENTRY, spent=spent))
    theirs = accountant.epsilon([replace(STEPS, steps=10), other], DELTA)
    assert ledger.epsilon(read(path), "example", DELTA) == pytest.approx(theirs, rel=1e-3)
    assert ledger.epsilon(read(path), "client", DELTA) == 0.0


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
    said = refusal(path, budget(100))
    assert said is not None
    assert "epsilon is unbounded" in said


@pytest.mark.parametrize("torn", ["", "{", ENTRY.line(), ENTRY.line()[:40]])
def test_a_line_that_a_crash_left_unfinished_is_a_visit_that_never_began(path, torn) -> None:
    spend(path)
    with path.open("a") as file:
        file.write(torn)
    assert read(path) == [ENTRY]
    assert spend(path) is None
    assert read(path) == [ENTRY, ENTRY]


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
    for ask in (lambda: refusal(path, budget(9)), lambda: spend(path, [budget(9)])):
        with pytest.raises(FolderError, match=r"line 2 of privacy ledger .* restore it from a copy"):
            ask()
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_ledger_that_may_not_be_read_stops_everything(path) -> None:
    spend(path)
    path.chmod(0)
    with pytest.raises(FolderError, match="cannot be"):
        refusal(path, budget(9))


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
    assert read(path) == [ENTRY]
    assert path.read_text().count("\n") == 1


def test_two_processes_never_spend_the_same_rest(path) -> None:
    """Each asks for one of three visits five times, at once."""
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from shepherd.silos.site import privacy_ledger as ledger
        from shepherd.silos.site.privacy_ledger import Budget, Ledger
        entry = ledger._entry(Path("."), 1, {ENTRY.line().encode()!r})
        allowed = Budget(unit="example", epsilon={budget(3).epsilon}, delta={DELTA})
        for _ in range(5):
            ledger.spend(Ledger(Path({str(path)!r})), [allowed], [entry])
        """
    )
    started = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [each.wait(120) for each in started] == [0, 0]
    assert read(path) == [ENTRY] * 3


# what is lost ----------------------------------------------------------------------------------------------


def restored(path: Path, before: bytes) -> None:
    """What is asked of an owner whose ledger is lost."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(before)
    assert refusal(path, budget(9)) is None
    assert spend(path) is None


def removed(path: Path) -> None:
    path.unlink()


def removed_with_its_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def one_visit_short(path: Path) -> None:
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:-1]))


def cut_in_its_last_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def of_other_data(path: Path) -> None:
    """As long, and spends less."""
    cheap = replace(ENTRY, spent=replace(STEPS, noise=90.0))
    path.write_text(f"{cheap.line()}\n" * 3)


LOSSES = [removed, removed_with_its_folder, emptied, one_visit_short, cut_in_its_last_line, of_other_data]


@pytest.mark.parametrize("lost", LOSSES, ids=lambda each: each.__name__)
def test_a_ledger_that_has_lost_what_it_held_stops_everything(path, lost) -> None:
    for _ in range(3):
        spend(path)
    before = path.read_bytes()
    lost(path)
    asks: list[Callable[[], object]] = [
        lambda: read(path),
        lambda: refusal(path, budget(9)),
        lambda: spend(path, [budget(9)]),
        lambda: ledger.count_lines(Ledger(path)),
    ]
    for ask in asks:
        with pytest.raises(FolderError, match="every visit is refused") as caught:
            ask()
        assert str(path) in str(caught.value)
        assert str(path.parents[1] / "runs" / "privacy" / "0123.json") in str(caught.value)
    assert not path.exists() or b"q1" not in path.read_bytes()[len(before) :]
    restored(path, before)
    assert len(read(path)) == 4


def test_a_copy_from_before_the_last_visit_is_not_taken(path) -> None:
    spend(path)
    copied = path.read_bytes()
    spend(path)
    path.write_bytes(copied)
    with pytest.raises(FolderError, match="cut or changed"):
        refusal(path, budget(9))


def test_an_owner_whose_data_are_gone_begins_again(path) -> None:
    spend(path)
    path.unlink()
    (path.parents[1] / "runs" / "privacy" / "0123.json").unlink()
    assert read(path) == []
    assert spend(path, [budget(1)]) is None


def test_lines_may_be_added_of_a_ledger_whose_data_were_moved_here(path) -> None:
    spend(path)
    other = path.with_name("4567.jsonl")
    spend(other)
    with path.open("a") as file:
        file.write(other.read_text())
    assert spend(path) is None
    assert read(path) == [ENTRY] * 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"lines": "3", "sha256": ""}', '{"lines": 3}'])
def test_a_count_that_cannot_be_read_stops_everything(path, content) -> None:
    spend(path)
    count = path.parents[1] / "runs" / "privacy" / "0123.json"
    count.write_text(content)
    with pytest.raises(FolderError, match=r"runs/privacy/0123\.json cannot be read") as caught:
        spend(path)
    assert "every visit is refused" in str(caught.value)
    assert path.read_text().count("\n") == 1


def test_a_crash_after_the_line_and_before_its_count_spends_and_stops_nothing(path, monkeypatch) -> None:
    spend(path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        spend(path)
    monkeypatch.undo()
    assert read(path) == [ENTRY] * 2
    assert spend(path) is None
    assert read(path) == [ENTRY] * 3


def test_a_ledger_of_an_earlier_version_is_counted_as_soon_as_it_is_checked(path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(f"{ENTRY.line()}\n" * 2)
    assert ledger.count_lines(Ledger(path)) == [ENTRY] * 2
    one_visit_short(path)
    with pytest.raises(FolderError, match="cut or changed"):
        read(path)


def test_a_check_of_a_ledger_that_is_not_there_yet_makes_nothing(path) -> None:
    assert ledger.count_lines(Ledger(path)) == []
    assert not path.parents[1].exists()


def test_the_count_outlives_the_records_of_runs(path) -> None:
    """Those are deleted after a year without a request; the data may be trained on again later."""
    spend(path)
    home = path.parents[1]
    then = time.time() - 86_400 * 800
    for each in (home / "runs").rglob("*"):
        os.utime(each, (then, then))
    Store(home).save_score("ab" * 8, 0, "a" * 32, {})
    path.unlink()
    with pytest.raises(FolderError, match="is missing"):
        read(path)


# names ------------------------------------------------------------------------------------------------------


def of(home: Path, **table: object) -> Path:
    return ledger.ledger_of(home, SiteDataTable.model_validate(table)).path


def test_each_source_has_its_own_whatever_is_read_of_it(tmp_path) -> None:
    """A part or a configuration may hold the same examples as another one."""
    one = of(tmp_path, source="/data/a.jsonl")
    assert one == of(tmp_path, source="/data/a.jsonl", category="other", delimiter=";", part="b", config="c")
    assert one.parent == tmp_path / "privacy"
    hub = [
        of(tmp_path, source="owner/name", **more) for more in ({}, {"config": "default"}, {"part": "test"})
    ]
    assert len(set(hub)) == 1
    assert len({one, *hub, of(tmp_path, source="world"), of(tmp_path, source="/data/b.jsonl")}) == 4


@pytest.mark.parametrize("source", ["world", "owner/name", "/data/a.jsonl"])
def test_it_does_not_depend_on_the_folder_that_the_site_is_started_in(tmp_path, monkeypatch, source) -> None:
    found = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found.add(of(tmp_path, source=source))
    assert len(found) == 1


def test_two_links_to_one_file_are_one_source(tmp_path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "folder").symlink_to(tmp_path)
    names = ("a.jsonl", "b.jsonl", "folder/a.jsonl", "folder/./b.jsonl")
    assert len({of(tmp_path, source=str(tmp_path / name)) for name in names}) == 1


@pytest.mark.parametrize("written", ["Owner/Name", "owner/name/", " owner/name", "OWNER/NAME"])
def test_two_spellings_of_an_id_are_one_source(tmp_path, written) -> None:
    kept = ledger.ledger_of(tmp_path, SiteDataTable(source=written))
    assert kept.path == of(tmp_path, source="owner/name")
    assert ledger.spend(kept, [budget(1)], [ENTRY]) is None
    other = ledger.ledger_of(tmp_path, SiteDataTable(source="owner/name"))
    assert ledger.spend(other, [budget(1)], [ENTRY]) is not None
    assert of(tmp_path, source="owner/names") != kept.path


def table(source: Path) -> SiteDataTable:
    return SiteDataTable(source=str(source))


@pytest.fixture
def nested(tmp_path) -> Path:
    """d/rows.jsonl, d/e/more.jsonl, d/link.jsonl -> far.jsonl, and d/round -> d."""
    (tmp_path / "data" / "d" / "e").mkdir(parents=True)
    for name in ("d/rows.jsonl", "d/e/more.jsonl", "far.jsonl"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "data" / "d" / "link.jsonl").symlink_to(tmp_path / "data" / "far.jsonl")
    (tmp_path / "data" / "d" / "round").symlink_to(tmp_path / "data" / "d")
    return tmp_path / "data"


INSIDE = ["d/rows.jsonl", "d/e/more.jsonl", "d/e"]


@pytest.mark.parametrize(
    ("one", "other"), [*(("d", inside) for inside in INSIDE), *((inside, "d") for inside in INSIDE)]
)
def test_a_folder_and_what_is_in_it_share_what_they_have_spent(tmp_path, nested, one, other) -> None:
    def of_path(path: str) -> Ledger:
        return ledger.ledger_of(tmp_path / "home", table(nested / path))

    assert ledger.spend(of_path(one), [budget(2)], [ENTRY]) is None
    assert ledger.read(of_path("far.jsonl")) == []
    assert of_path(one).path != of_path(other).path
    assert ledger.spend(of_path(other), [budget(2)], [replace(ENTRY, examples=70)]) is None
    for path in (one, other):
        assert len(ledger.read(of_path(path))) == 2
        assert ledger.most_examples(of_path(path)) == 70
        assert ledger.spend(of_path(path), [budget(2)], [ENTRY]) is not None
    of_path(other).path.unlink()  # and the loss of either closes both
    with pytest.raises(FolderError, match="is missing"):
        ledger.read(of_path(one))


def test_what_the_links_of_a_folder_lead_to_counts_for_it(tmp_path, nested) -> None:
    for place in ("far.jsonl", ".", "d/round/e"):
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        kept = ledger.ledger_of(tmp_path / "home", table(nested / place))
        assert ledger.spend(kept, [], [ENTRY]) is None
        assert ledger.read(ledger.ledger_of(tmp_path / "home", table(nested / "d"))) == [ENTRY]


def test_two_files_of_a_folder_have_a_budget_each(tmp_path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
        one = ledger.ledger_of(tmp_path / "home", table(tmp_path / name))
        assert ledger.spend(one, [budget(1)], [ENTRY]) is None
    assert (
        ledger.spend(ledger.ledger_of(tmp_path / "home", table(tmp_path)), [budget(2)], [ENTRY]) is not None
    )


def test_a_file_of_a_folder_of_an_earlier_version_counts(tmp_path) -> None:
    former = tmp_path / "home" / "privacy" / former_name(str(tmp_path))
    former.parent.mkdir(parents=True)
    former.write_text(f"{ENTRY.line()}\n")
    (tmp_path / "a.jsonl").touch()
    assert ledger.read(ledger.ledger_of(tmp_path / "home", table(tmp_path / "a.jsonl"))) == [ENTRY]


def test_paths_that_differ_in_a_capital_letter_are_two_files(tmp_path) -> None:
    assert of(tmp_path, source="/data/A.jsonl") != of(tmp_path, source="/data/a.jsonl")


def test_what_was_entered_for_an_id_as_it_is_written_still_counts(tmp_path) -> None:
    """Its ledger was named by that spelling."""
    data = SiteDataTable(source="Owner/Name")
    former = tmp_path / "privacy" / f"{hashlib.sha256(b'Owner/Name').hexdigest()[:32]}.jsonl"
    former.parent.mkdir()
    former.write_text(f"{ENTRY.line()}\n" * 2)
    kept = ledger.ledger_of(tmp_path, data)
    assert kept.path != former
    assert ledger.spend(kept, [budget(3)], [ENTRY]) is None
    assert ledger.spend(kept, [budget(3)], [ENTRY]) is not None
    assert ledger.read(ledger.ledger_of(tmp_path, data)) == [ENTRY] * 3
    former.unlink()
    with pytest.raises(FolderError, match=former.name):
        ledger.read(ledger.ledger_of(tmp_path, data))


def former_name(source: str, config: str | None = None, part: str = "train") -> str:
    """The name of a ledger in an earlier version, whose sources were joined to the folder of the process."""
    named = json.dumps([os.path.abspath(source), config, part])
    return f"{hashlib.sha256(named.encode()).hexdigest()[:16]}.jsonl"


PARTS = {"config": "c", "part": "p"}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"source": "{}/a.jsonl"}, {"source": "{}/a.jsonl"}),
        ({"source": "{}/b.jsonl"}, {"source": "{}/b.jsonl"}),
        ({"source": "{}/a.jsonl"}, {"source": "{}/b.jsonl"}),  # a link to it
        (
            {"source": "{}/a.jsonl", "config": "c", "part": "p"},
            {"source": "{}/a.jsonl", "config": "c", "part": "p"},
        ),
        ({"source": "{}/a.jsonl"}, {"source": "{}/a.jsonl", "config": "c", "part": "p"}),
        ({"source": "world"}, {"source": "world"}),
        ({"source": "owner/name", "part": "p"}, {"source": "owner/name"}),
    ],
)
def test_what_an_earlier_version_has_entered_still_counts(tmp_path, monkeypatch, before, now) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    before, now = ({key: text.format(tmp_path) for key, text in each.items()} for each in (before, now))
    former = tmp_path / "privacy" / former_name(**before)
    former.parent.mkdir()
    former.write_text(f"{ENTRY.line()}\n" * 2)
    monkeypatch.chdir("/")  # the folder of the process before is not known
    kept = ledger.ledger_of(tmp_path, SiteDataTable.model_validate(now))
    assert ledger.read(kept) == [ENTRY] * 2
    assert ledger.spend(kept, [budget(3)], [ENTRY]) is None
    assert ledger.spend(kept, [budget(3)], [ENTRY]) is not None
    kept = ledger.ledger_of(tmp_path, SiteDataTable.model_validate(now))
    assert ledger.read(kept) == [ENTRY] * 3
    assert former.read_text() == f"{ENTRY.line()}\n" * 2  # nothing is added under the former name
    former.unlink()
    with pytest.raises(FolderError, match=former.name):
        ledger.read(ledger.ledger_of(tmp_path, SiteDataTable.model_validate(now)))


def test_a_file_does_not_count_for_another_one_of_an_earlier_version(tmp_path) -> None:
    former = tmp_path / "privacy" / former_name("/data/a.jsonl")
    former.parent.mkdir()
    former.write_text(f"{ENTRY.line()}\n")
    assert ledger.read(ledger.ledger_of(tmp_path, SiteDataTable(source="/data/b.jsonl"))) == []
