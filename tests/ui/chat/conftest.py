"""A run of two rounds with what a comparison leaves in its folder; the arms' adapters differ widely."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import runs

EXAMPLES = {"qa": 7, "poem": 2}


@pytest.fixture(scope="session")
def compared(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shepherd.model import files
    from shepherd.run.opening import open_run
    from tests.model import bases

    path = tmp_path_factory.mktemp("compared") / "run"
    data = runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")
    evaluation = {"max_new_tokens": 12}
    tables = {"federation": {"rounds": 2}, "evaluation": evaluation}
    run = open_run(runs.settings(llama_folder, data, path, **tables))
    for _ in run.rounds():
        pass
    run.finish()
    below = path / "compare" / "seed-0"
    for seed, name in enumerate(("local-client-3", "local-client-1", "centralised")):
        files.write(below / name, bases.random_adapter(run.base, seed, size=0.5), run.base)
    ffa = {"algorithm": {"name": "ffa_lora"}, "federation": {"rounds": 1}}
    variant = open_run(runs.settings(llama_folder, data, below / "ffa", **ffa))
    next(variant.rounds())  # a variant that goes on still
    variant.close()
    (below / "local-client-2").mkdir()  # an arm that is not trained yet
    arms = [
        {"name": "base"},
        {"name": "local-client-1", "client": "client-1", "categories": EXAMPLES},
        {"name": "ffa", "overrides": ["algorithm.name=ffa_lora"]},
    ]
    (path / "compare" / "comparison.json").write_text(json.dumps({"format": 1, "arms": arms}))
    return path


@pytest.fixture(scope="session")
def bare(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was prepared, and has finished no round."""
    from shepherd.run.opening import open_run

    path = tmp_path_factory.mktemp("bare") / "run"
    data = runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")
    open_run(runs.settings(llama_folder, data, path)).close()
    return path
