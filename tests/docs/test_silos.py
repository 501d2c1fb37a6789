"""The command by which docs/silos.md moves a site's state into a new kit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from shepherd.core.spending import Poisson, Spending
from shepherd.errors import FolderError
from shepherd.privacy import accountant
from shepherd.silos.protocol import ipc
from shepherd.silos.site import audit, privacy_ledger
from shepherd.silos.site.privacy_ledger import Budget, Entry, Ledger
from shepherd.silos.site.site_settings import SiteDataTable
from shepherd.silos.site.site_store import Store
from tests.silos.site.asking import request

PAGE = Path(__file__).parents[2] / "docs" / "silos.md"
VISIT = Spending(noise=2.0, sampling=Poisson(chance=0.1), steps=5)
ENTRY = Entry(when="2026-11-29T20:00:00+00:00", run="ab" * 8, round=0, id="q1", unit="example", spent=VISIT)
ONE = Budget(unit="example", epsilon=accountant.epsilon([VISIT], 1e-5) * 1.1, delta=1e-5)


def ledger_of(kit: Path) -> Ledger:
    return privacy_ledger.ledger_of(kit / "shepherd", SiteDataTable(source="/data/a.jsonl"))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Path of each file -> its mode and content."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in found}


@pytest.fixture
def kits(tmp_path: Path) -> tuple[Path, Path]:
    """An old kit whose site has spent its budget, and a new one."""
    old, new = tmp_path / "old", tmp_path / "new"
    for kit in (old, new):
        (kit / "startup").mkdir(parents=True)
    home = old / "shepherd"
    home.mkdir(mode=0o700)
    ipc.choose_address(home)
    Store(home).secret()
    Store(home).save_score("ab" * 8, 0, "a" * 32, {})
    audit.record(home / audit.FILE, audit.answered_event(request(), datetime.now(), audit.Released(bytes=1)))
    for name in (
        "state/ab/round-00001/notes.json",
        "data/0123/data.json",
        "supervisor.log",
        "of-a-later-version",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    assert privacy_ledger.spend(ledger_of(old), [ONE], [ENTRY]) is None
    return old, new


def renew(old: Path, new: Path) -> int:
    """Run the command of the page; its exit code."""
    (command,) = re.findall(r"^(.*mv OLD_KIT/shepherd.*)$", PAGE.read_text("utf8"), re.MULTILINE)
    words = command.replace("OLD_KIT", str(old)).replace("NEW_KIT", str(new))
    return subprocess.run(["sh", "-c", words], check=False, capture_output=True).returncode


def test_a_renewed_kit_has_every_file_of_the_old_one_and_no_new_budget(kits) -> None:
    old, new = kits
    before = files(old / "shepherd")
    assert len({path.split("/")[0].split("-")[0] for path in before}) == 9
    assert renew(old, new) == 0
    assert files(new / "shepherd") == before
    assert not (old / "shepherd").exists()
    assert (new / "shepherd").stat().st_mode & 0o777 == 0o700
    said = privacy_ledger.spend(ledger_of(new), [ONE], [ENTRY])
    assert said is not None
    assert "over all runs so far" in said


def test_a_kit_that_was_started_already_is_left_as_it_is(kits) -> None:
    old, new = kits
    (new / "shepherd").mkdir()
    before = files(old)
    assert renew(old, new) != 0
    assert files(old) == before
    assert list((new / "shepherd").iterdir()) == []


def forgotten(old: Path, new: Path) -> None:
    """As the page of an earlier version had it, without the ledger."""
    (new / "shepherd").mkdir(mode=0o700)
    for name in (
        "state",
        "runs",
        "secret",
        "data",
        *(path.name for path in (old / "shepherd").glob("audit*")),
    ):
        os.rename(old / "shepherd" / name, new / "shepherd" / name)


def without_the_ledger(old: Path, new: Path) -> None:
    renew(old, new)
    shutil.rmtree(new / "shepherd" / "privacy")


@pytest.mark.parametrize("moved", [forgotten, without_the_ledger], ids=lambda each: each.__name__)
def test_a_site_whose_ledger_was_left_behind_is_closed(kits, moved: Callable[[Path, Path], None]) -> None:
    old, new = kits
    moved(old, new)
    with pytest.raises(FolderError, match="is missing") as caught:
        privacy_ledger.spend(ledger_of(new), [ONE], [ENTRY])
    assert str(ledger_of(new).path) in str(caught.value)
