"""A run that was really trained, reported while it goes on and at its end."""

from __future__ import annotations

import json
from pathlib import Path

from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.versions import VERSIONS
from shepherd.ui import report
from tests import runs


def test_a_real_run_is_reported_round_by_round(llama_folder: Path, tmp_path: Path) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    run = open_run(runs.settings(llama_folder, source, tmp_path / "run", federation={"rounds": 2}))
    states = [report.collect(run.folder)["status"]]
    for _ in run.rounds():
        states.append(report.collect(run.folder)["status"])
    run.finish()
    assert [(status["state"], status["round"]) for status in states] == [
        ("running", 0),
        ("running", 1),
        ("finished", 2),
    ]
    page = report.write(run.folder).read_text()
    found = json.loads((run.folder / report.JSON).read_text())
    rows = read_rows(run.folder)
    assert [arm["name"] for arm in found["arms"]] == ["base", "federated"]
    assert found["arms"][1]["measures"]["loss"]["value"] == rows[-1]["heldout"]["loss"]
    assert found["totals"]["bytes_up"] == sum(row.get("bytes_up", 0) for row in rows)
    assert set(found["holdings"]) == set(rows[-1]["coverage"]) == set(found["clients"])
    assert found["held"] == {name: sum(mix.values()) for name, mix in found["holdings"].items()}
    assert found["versions"] == json.loads((run.folder / VERSIONS).read_text())
    assert f'data-value="{rows[-1]["heldout"]["loss"]!r}"' in page
