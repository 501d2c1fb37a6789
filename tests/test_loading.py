"""What is said of a base when it is loaded, and a whole run over one that cannot be packed."""

from __future__ import annotations

import pytest
import transformers as hf

from shepherd import folder
from shepherd.errors import BaseError
from shepherd.loading import load_base
from shepherd.run import open_run
from tests import runs
from tests.model import bases


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    config = hf.BloomConfig(vocab_size=bases.VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    return bases.save(config, tmp_path_factory.mktemp("bloom"))


def test_a_base_that_cannot_be_packed_is_said_to_be_slower(bloom, llama_folder, tmp_path) -> None:
    said: list[str] = []
    load_base(runs.settings(llama_folder, tmp_path / "rows.jsonl", tmp_path / "run"), said.append)
    assert not any("slower" in line for line in said)
    load_base(runs.settings(bloom, tmp_path / "rows.jsonl", tmp_path / "run"), said.append)
    assert f"{bloom} runs slower than other bases" in said[-1]
    assert "its attention is code of its own" in said[-1]


def test_a_run_over_such_a_base_tunes_it(bloom, tmp_path) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    rows = {}
    for workers in (1, 2):
        settings = runs.settings(bloom, source, tmp_path / str(workers), tuning={"workers": workers})
        running = open_run(settings)
        rows[workers] = [runs.without_times(row) for _, row in running.rounds()]
        running.close()
    assert rows[1] == rows[2]
    losses = [row["heldout"]["loss"] for row in folder.read_rows(tmp_path / "1")]
    assert losses[-1] < losses[0]


def test_windows_are_proven_as_far_as_the_runs_examples_go(tmp_path, monkeypatch) -> None:
    from benchmarks import tiny
    from shepherd.model import attention
    from shepherd.model.attention import Reach

    base = tiny.save(tiny.config("mistral", sliding_window=30), tmp_path / "base")
    monkeypatch.setattr(attention, "_reach", lambda module, options: Reach())
    for longest, packed in ((30, True), (31, False)):
        settings = runs.settings(base, tmp_path / "rows", tmp_path / "run", data={"max_tokens": longest})
        assert load_base(settings).packed is packed


def test_a_missing_base_is_named(tmp_path) -> None:
    with pytest.raises(BaseError, match=r"has no config\.json"):
        load_base(runs.settings(tmp_path / "none", tmp_path / "rows", tmp_path / "run"))
