"""The list of sites that a server knows."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from tests.silos.flare import federations

from shepherd.silos.flare import known_sites, provision
from shepherd.silos.flare.known_sites import SiteRecorder


def test_a_server_knows_the_sites_that_it_was_made_with_and_those_that_are_added(
    federation: Path, tmp_path: Path
) -> None:
    made = federations.copied(federation, tmp_path / "f")
    assert known_sites.read(made / "server") == {"site-1", "site-2"}
    assert stat.S_IMODE((made / "server" / known_sites.FILE).stat().st_mode) == 0o600
    provision.add_site(made, "site-3")
    assert known_sites.read(made / "server") == {"site-1", "site-2", "site-3"}


def test_who_comes_is_written_down_once(tmp_path: Path) -> None:
    first = SiteRecorder(tmp_path)
    for name in ("b", "a", "b"):
        first.record(name)
    assert known_sites.read(tmp_path) == {"a", "b"}
    written = (tmp_path / known_sites.FILE).stat().st_mtime_ns
    first.record("a")
    assert (tmp_path / known_sites.FILE).stat().st_mtime_ns == written


def test_where_it_cannot_be_written_who_comes_is_let_in_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="shepherd.door")
    (tmp_path / "shepherd").write_text("a file in its place")
    SiteRecorder(tmp_path).record("a")
    assert caplog.messages


@pytest.mark.parametrize("text", ["", "{", "{}", "3", "[1, null]"])
def test_a_damaged_list_knows_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "shepherd").mkdir()
    (tmp_path / known_sites.FILE).write_text(text)
    assert known_sites.read(tmp_path) == frozenset()
