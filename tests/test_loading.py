"""A checkpoint is one of its base, whatever the base is loaded as and whenever it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shepherd import checkpoint
from shepherd.checkpoint import Checkpoint
from shepherd.core import ServerState
from shepherd.errors import CheckpointError
from shepherd.loading import load_checkpoint
from shepherd.model import base as bases_
from shepherd.model import fingerprint
from shepherd.settings import AdapterTable, ModelTable
from tests.model import bases


def saved(folder: Path, base: bases_.Base, made_over: str) -> Path:
    state = ServerState(round=1, adapter=bases.random_adapter(base, 1))
    return checkpoint.save(folder, Checkpoint(state=state, notes={"base": made_over}), keep=1)


def test_it_loads_over_the_same_base_in_another_dtype(llama, llama_folder, tmp_path) -> None:
    path = saved(tmp_path, llama, llama.fingerprint)
    half = bases_.load(
        ModelTable(base=str(llama_folder), dtype="float16", device="cpu"), AdapterTable(rank=3, alpha=6)
    )
    assert load_checkpoint(path, half).state.adapter == bases.random_adapter(llama, 1)


def test_it_loads_with_the_fingerprint_of_before_and_not_with_anothers(llama, tmp_path) -> None:
    before = fingerprint.of_tensors(llama.model, llama.sites)
    assert before != llama.fingerprint
    assert load_checkpoint(saved(tmp_path / "old", llama, before), llama).state.round == 1
    with pytest.raises(CheckpointError, match="is of another base"):
        load_checkpoint(saved(tmp_path / "other", llama, "0" * 16), llama)
