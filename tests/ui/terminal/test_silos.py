"""The table of a federation: a row for each site and each run, and names that are no markup."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("nvflare")

from shepherd.silos.coordinator.admin import Status
from shepherd.ui.terminal.silos import report


def printed(status: Status) -> list[str]:
    stream = io.StringIO()
    report(status, stream)
    return [line.strip() for line in stream.getvalue().splitlines() if line.strip(" ─")]


def test_every_site_and_every_run_has_its_row() -> None:
    status = Status(
        server="hub.example:8002", sites={"a[red]": "waits for work"}, runs={"0a1b": "round 2 of 3"}
    )
    assert [" ".join(line.split()) for line in printed(status)] == [
        "server hub.example:8002: 1 site, 1 run",
        "site now",
        "a[red] waits for work",
        "run now",
        "0a1b round 2 of 3",
    ]


def test_an_empty_federation_has_no_table() -> None:
    assert printed(Status(server="hub:1", sites={}, runs={})) == ["server hub:1: 0 sites, 0 runs"]
