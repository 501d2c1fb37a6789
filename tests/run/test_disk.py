"""What a run's folder is expected to hold, against the folders of runs."""

from __future__ import annotations

import pytest

from shepherd.overrides import parse
from shepherd.run.forecast import forecast
from shepherd.run.opening import open_run
from tests import runs

SGD = {"optimiser": {"name": "sgd"}, "learning_rate": 0.05}
CASES = {
    "nothing is remembered": {"split": {"clients": 12}},
    "control variates": {
        "split": {"clients": 12},
        "algorithm": {"name": "scaffold"},
        "adapter": {"dropout": 0.0},
        "tuning": SGD,
        "federation": {"rounds": 4, "weights": "equal"},
        "selection": {"share": 1.0},
    },
    "factors of their own": {
        "split": {"clients": 12},
        "algorithm": {"name": "fedsa_lora"},
        "federation": {"rounds": 3},
        "checkpoints": {"keep": 1},
        "selection": {"share": 1.0},
    },
    "few are asked": {
        "split": {"clients": 12},
        "algorithm": {"name": "fedsa_lora"},
        "federation": {"rounds": 1},
        "selection": {"share": 0.25},
    },
    "what rounding left": {"transforms": [{"name": "quantise", "bits": 8}], "selection": {"share": 1.0}},
}


def size(folder, pattern):
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_as_large_as_expected(case, llama_folder, tmp_path) -> None:
    tables = {name: table for name, table in CASES[case].items() if name != "transforms"}
    given = runs.settings(llama_folder, runs.written(tmp_path / "rows.jsonl"), tmp_path / "run", **tables)
    if transforms := CASES[case].get("transforms"):
        given = parse({**given.model_dump(exclude_defaults=True), "transforms": transforms})
    found = forecast(given).disk
    with open_run(given) as run:
        for _ in run.rounds():
            pass
    folder = tmp_path / "run"
    assert found.memories == pytest.approx(size(folder, "clients/*"), rel=0.1)
    assert found.checkpoints == pytest.approx(size(folder, "checkpoints/**/*"), rel=0.15)
    assert found.log == pytest.approx(size(folder, "rounds.jsonl"), rel=0.5)
    assert found.data == pytest.approx(size(folder, "data/**/*"), rel=0.5)
