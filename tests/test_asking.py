"""Asking a run: with its final adapter, its last checkpoint's, and with the base alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from shepherd import folder
from shepherd.asking import adapter_of, generate
from shepherd.errors import CheckpointError, DataError, FolderError
from shepherd.loading import load_base
from shepherd.run import open_run
from tests import runs
from tests.model import bases


@pytest.fixture(scope="module")
def asked(llama_folder, tmp_path_factory) -> Path:
    """A run of one round that was stopped before its end: it has a checkpoint and no final adapter."""
    data = runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")
    output = tmp_path_factory.mktemp("asked") / "run"
    run = open_run(runs.settings(llama_folder, data, output, federation={"rounds": 1}))
    next(run.rounds())
    run.close()
    return output


def test_a_run_answers_with_its_adapter_and_without(asked) -> None:
    tuned = generate(asked, "w5 w9", max_new_tokens=6)
    assert tuned == generate(asked, "w5 w9", max_new_tokens=6)
    assert isinstance(generate(asked, "w5 w9", max_new_tokens=6, base=True), str)


def test_the_final_adapter_is_the_last_checkpoints(asked, llama_folder, tmp_path) -> None:
    data = runs.written(tmp_path / "rows.jsonl")
    run = open_run(runs.settings(llama_folder, data, tmp_path / "run", federation={"rounds": 1}))
    next(run.rounds())
    run.finish()
    base = load_base(folder.read_settings(asked))
    assert adapter_of(tmp_path / "run", base) == adapter_of(asked, base)


def test_an_empty_instruction_is_refused(asked) -> None:
    with pytest.raises(DataError, match="the instruction is empty"):
        generate(asked, " ")


def test_a_run_without_a_round_has_no_adapter_yet(llama_folder, tmp_path) -> None:
    data = runs.written(tmp_path / "rows.jsonl")
    open_run(runs.settings(llama_folder, data, tmp_path / "run")).close()
    with pytest.raises(FolderError, match="has finished no round yet"):
        generate(tmp_path / "run", "w5")
    assert isinstance(generate(tmp_path / "run", "w5", base=True, max_new_tokens=2), str)


def test_a_checkpoint_of_another_base_is_named(asked, tmp_path) -> None:
    other = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path / "other", seed=1), rank=2, alpha=16)
    with pytest.raises(CheckpointError, match=r"round-00001 is of another base .*; put the old one back"):
        adapter_of(asked, other)
    wider = bases.load(Path(load_base(folder.read_settings(asked)).name), rank=3, alpha=24)
    with pytest.raises(CheckpointError, match="is of another adapter: tensor"):
        adapter_of(asked, wider)
