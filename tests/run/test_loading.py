"""What is said of a base when it is loaded, runs over an unpacked one, and which checkpoints are a base's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import transformers as hf

from benchmarks import tiny
from shepherd.core import ServerState
from shepherd.errors import BaseError, CheckpointError
from shepherd.model import base as bases_
from shepherd.model import fingerprint, generate
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.loading import load_base, load_checkpoint
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.settings import AdapterTable, ModelTable
from tests import runs
from tests.model import bases


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    config = hf.BloomConfig(vocab_size=bases.VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    return bases.save(config, tmp_path_factory.mktemp("bloom"))


def test_a_base_that_cannot_be_packed_is_said_to_be_slower(bloom, llama_folder, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    load_base(runs.settings(llama_folder, tmp_path / "rows.jsonl", tmp_path / "run"))
    assert "slower" not in caplog.text
    load_base(runs.settings(bloom, tmp_path / "rows.jsonl", tmp_path / "run"))
    assert (
        f"{bloom} cannot be packed (its attention is code of its own and cannot be replaced), so each"
        " pass holds one client's examples, padded: this is slower" in caplog.text
    )
    assert "cannot generate" not in caplog.text


def test_a_base_that_cannot_generate_says_so_and_trains(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    base = tiny.save(tiny.config("recurrent_gemma"), tmp_path / "base")
    settings = runs.settings(base, runs.written(tmp_path / "rows.jsonl"), tmp_path / "run")
    with open_run(settings) as run:
        reason = run.base.proof.mute
        assert "get_seq_length" in reason
        assert f"{base} can be trained and scored, but cannot generate answers: {reason}" in caplog.text
        with pytest.raises(BaseError, match=r"cannot generate answers: .*get_seq_length"):
            generate.generate(run.base, [None], [[5, 6]], max_new_tokens=2, stop=[1])
        for _ in run.rounds():
            pass
        assert run.finish()["answers"] == {}


def test_a_run_over_such_a_base_tunes_it(bloom, tmp_path) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    rows = {}
    for workers in (1, 2):
        settings = runs.settings(bloom, source, tmp_path / str(workers), machine={"workers": workers})
        running = open_run(settings)
        rows[workers] = [runs.without_times(row) for _, row in running.rounds()]
        running.close()
    assert rows[1] == rows[2]
    losses = [row["heldout"]["loss"] for row in read_rows(tmp_path / "1")]
    assert losses[-1] < losses[0]


def test_windows_are_proven_as_far_as_the_runs_examples_go(tmp_path, monkeypatch) -> None:
    from shepherd.model import attention
    from shepherd.model.attention import Reach

    base = tiny.save(tiny.config("mistral", sliding_window=30), tmp_path / "base")
    monkeypatch.setattr(attention, "_reach", lambda module, options: Reach())
    for longest, packed in ((30, True), (31, False)):
        settings = runs.settings(base, tmp_path / "rows", tmp_path / "run", data={"max_tokens": longest})
        assert load_base(settings).packed is packed


def test_a_missing_base_is_named(tmp_path) -> None:
    with pytest.raises(BaseError, match=r"there is no folder .*none, which model\.base names"):
        load_base(runs.settings(tmp_path / "none", tmp_path / "rows", tmp_path / "run"))


def saved(folder: Path, base: bases_.Base, made_over: str) -> Path:
    state = ServerState(round=1, adapter=bases.random_adapter(base, 1))
    return checkpoint.save(folder, Checkpoint(state=state, notes={"base": made_over}), keep=1)


def test_it_loads_over_the_same_base_in_another_dtype(llama, llama_folder, tmp_path) -> None:
    path = saved(tmp_path, llama, llama.fingerprint)
    half = bases_.load(
        ModelTable(base=str(llama_folder), dtype="float16"), AdapterTable(rank=3, alpha=6), device="cpu"
    )
    assert load_checkpoint(path, half).state.adapter == bases.random_adapter(llama, 1)


def test_it_loads_with_the_fingerprint_of_before_and_not_with_anothers(llama, tmp_path) -> None:
    before = fingerprint.of_tensors(llama.model, llama.targets)
    assert before != llama.fingerprint
    assert load_checkpoint(saved(tmp_path / "old", llama, before), llama).state.round == 1
    with pytest.raises(CheckpointError, match="belongs to another base"):
        load_checkpoint(saved(tmp_path / "other", llama, "0" * 16), llama)
