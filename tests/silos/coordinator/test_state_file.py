"""Which kit a run over silos goes on with: never one that came with the run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.errors import SilosError
from shepherd.silos.coordinator import state_file
from shepherd.silos.protocol.jobspec import JobSpec

ORDER = JobSpec(
    run="0" * 16, base="b" * 64, fingerprint="f", version="0", sites=("site-1", "site-2"), settings={}
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    (path / "kit").mkdir(parents=True)
    return path


def kept(run: Path, kit: str) -> None:
    order = json.loads(ORDER.text())
    (run / "silos.json").write_text(json.dumps({"kit": kit, "job": None, "order": order}))


def test_a_kit_elsewhere_is_gone_on_with(run: Path, tmp_path: Path) -> None:
    (tmp_path / "ada").mkdir()
    kept(run, str(tmp_path / "ada"))
    assert state_file.kit_and_job(run) == (tmp_path / "ada", None)


@pytest.mark.parametrize("kit", ["{run}/kit", "kit", "../run/kit", "{run}/../link"])
def test_a_kit_in_the_run_folder_is_not_used_by_the_folders_word(run: Path, kit: str) -> None:
    (run.parent / "link").symlink_to(run / "kit")
    kept(run, kit.format(run=run))
    with pytest.raises(SilosError, match="names a kit inside the run folder itself"):
        state_file.kit_and_job(run)
    assert state_file.kit_and_job(run, kit=run / "kit") == (run / "kit", None)
