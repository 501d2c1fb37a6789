"""The tables of a federation in a terminal of 80 columns; names are no markup."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from shepherd.silos.coordinator.admin import Status
from shepherd.silos.server.kept_runs import KeptRun
from shepherd.ui.terminal.federation_tables import print_kept_runs, print_status
from tests.ui.terminal.golden import require_golden


def status(**more: dict[str, str]) -> str:
    stream = io.StringIO()
    print_status(Status(server="hub.example:8002", **{"sites": {}, "runs": {}, **more}), stream)
    return stream.getvalue()


def test_every_site_and_every_run_has_its_row() -> None:
    sites = {"a[red]": "is idle", "b": "works on 0a1b"}
    require_golden("status", status(sites=sites, runs={"0a1b": "round 2 of 3"}))


def test_an_empty_federation_has_no_table() -> None:
    require_golden("status_empty", status())


def kept(run: str, **more: object) -> KeptRun:
    given = {
        "submitter": "bo@shepherd.local",
        "round": 20,
        "bytes": 64_100_000,
        "idle_s": 3.6e6,
        "active": False,
    }
    return KeptRun(run=run, folder=Path(run), **{**given, **more})  # type: ignore[arg-type]


def test_the_runs_that_a_server_keeps() -> None:
    stream = io.StringIO()
    print_kept_runs([kept("9f2c01d5a8e34b77"), kept("0a1b", round=3, active=True)], stream)
    require_golden("kept_runs", stream.getvalue())


def test_a_server_without_runs() -> None:
    stream = io.StringIO()
    print_kept_runs([], stream)
    require_golden("kept_runs_none", stream.getvalue())
