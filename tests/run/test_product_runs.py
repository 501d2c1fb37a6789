"""Whole runs with aggregations of products: side ranks are trained over, saved, resumed, written and read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from shepherd import settings as run_settings
from shepherd.compare.adapters import arm_adapter
from shepherd.compare.arms import Arm
from shepherd.core import corner
from shepherd.data import data_folder
from shepherd.errors import CheckpointError, SettingsError
from shepherd.model import files
from shepherd.run.answerer import adapter_of, load_run
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.training import score
from shepherd.ui.chat import answering
from shepherd.ui.chat.arms import FEDERATED
from tests import runs
from tests.model import bases

RANK = 2
RULES: dict[str, dict[str, Any]] = {
    "product": {},
    "florist": {"energy": 0.8},
    "side": {"side_rank": 5},
    "largest": {"name": "side", "side_rank": 5, "means": False},
    "flora": {"side_rank": 9},
    "zero_padding": {},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def done(llama_folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rule -> the folder of a finished run of it, and its last state."""
    made: dict[str, tuple[Path, Any]] = {}

    def run_of(rule: str) -> tuple[Path, Any]:
        if rule not in made:
            run = open_run(settings(rule, llama_folder, source, tmp_path_factory.mktemp("run") / rule))
            *_, (state, _) = run.rounds()
            run.finish()
            made[rule] = run.folder, state
        return made[rule]

    return run_of


def settings(rule: str, base: Path, source: Path, output: Path) -> run_settings.RunSettings:
    return runs.settings(base, source, output, aggregation={"name": rule, **RULES[rule]})


@pytest.mark.parametrize("rule", RULES)
def test_what_is_written_gives_the_same_logits_in_peft(done: Any, rule: str) -> None:
    path, state = done(rule)
    base = load_base(run_settings_of(path))
    prepared = run_data(path)
    whole, read = (
        score.losses(base, [each], prepared, micro_batch=64)
        for each in (state.adapter, files.read(path / "adapter", base))
    )
    np.testing.assert_allclose(whole, read, rtol=1e-5)
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32), path / "adapter"
    ).eval()
    ids, trained = prepared.example(0)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    losses = torch.nn.functional.cross_entropy(
        logits[:-1], torch.from_numpy(ids[1:].astype(np.int64)), reduction="none"
    )
    ours = float(losses[torch.from_numpy(np.array(trained[1:]))].sum())
    np.testing.assert_allclose(whole[0, 0], ours, rtol=1e-4)


def run_settings_of(path: Path) -> run_settings.RunSettings:
    from shepherd.run import folder

    return folder.planned(path)


def run_data(path: Path) -> Any:

    return data_folder.load(path / "data").heldout


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_stopped_goes_on_to_the_same_bits(
    done: Any, rule: str, llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    path, _ = done(rule)
    run = open_run(settings(rule, llama_folder, source, tmp_path / "run"))
    for _ in itertools.islice(run.rounds(), 1):
        pass
    run.close()
    again = resume(tmp_path / "run")
    for _ in again.rounds():
        pass
    again.finish()
    ours, theirs = ((each / "adapter" / files.WEIGHTS).read_bytes() for each in (tmp_path / "run", path))
    assert ours == theirs
    assert [runs.without_times(row) for row in read_rows(tmp_path / "run")] == [
        runs.without_times(row) for row in read_rows(path)
    ]


@pytest.mark.parametrize("rule", ["side", "flora"])
def test_clients_train_and_send_the_first_ranks_alone(done: Any, rule: str) -> None:
    path, state = done(rule)
    extra = RULES[rule]["side_rank"]
    for name, tensor in state.adapter.items():
        assert tensor.shape["lora_B" in name] == RANK + extra
    rows = read_rows(path)[1:]
    for row in rows:
        assert row["bytes_down"] / row["bytes_up"] == pytest.approx((RANK + extra) / RANK)
        assert 0 <= row["gap"] < np.inf
    assert rows[-1]["heldout"]["loss"] < read_rows(path)[0]["heldout"]["loss"]


def test_the_card_says_which_ranks_were_trained(done: Any) -> None:
    card = (done("side")[0] / "adapter" / "README.md").read_text()
    assert "of rank 2, and at most 5 side ranks that no client trained, for" in card
    assert "| aggregation | side |" in card


def test_experts_have_no_side_ranks(source: Path, tmp_path: Path) -> None:
    folder = bases.save(bases.MIXTURES["mixtral"], tmp_path / "mixtral")
    table = runs.settings(
        folder,
        source,
        tmp_path / "run",
        adapter={"targets": ["q_proj"], "dropout": 0.0, "target_parameters": bases.STACKS},
        aggregation={"name": "side"},
    )
    with pytest.raises(SettingsError, match=r"experts.gate_up_proj of .* 4 experts, .* the 32 side ranks"):
        open_run(table)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "table",
    [
        {"aggregation": {"name": "side", "side_rank": 10**12}},
        {"aggregation": {"name": "flora", "side_rank": 10**12}},
        {"algorithm": {"name": "local_adapter", "rank": 10**12}},
    ],
)
def test_more_ranks_than_memory_has_room_for_are_refused_before_the_run(
    table: dict[str, Any], llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"1000000000000 ranks more .* GB are free; lower aggregation"):
        open_run(runs.settings(llama_folder, source, tmp_path / "run", **table))
    assert not (tmp_path / "run").exists()


def test_a_rank_of_nobody_is_refused_before_anything_is_written(
    llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    tables = {"adapter": {"ranks": {"client-9": 1}}, "aggregation": {"name": "product"}}
    with pytest.raises(SettingsError, match=r"adapter.ranks names 'client-9'.* did you mean 'client-"):
        open_run(runs.settings(llama_folder, source, tmp_path / "run", **tables))
    assert not (tmp_path / "run").exists()


def test_ranks_without_a_product_are_not_written(done: Any) -> None:
    """And alpha grows with the rank, so that the scale stays."""
    path, state = done("side")
    config = json.loads((path / "adapter" / files.CONFIG).read_text())
    assert config["r"] > RANK
    assert config["lora_alpha"] / config["r"] == pytest.approx(16 / RANK)
    base = load_base(run_settings_of(path))
    blank = {name: np.zeros_like(tensor) for name, tensor in state.adapter.items()}
    for name in blank:
        shape = (RANK, blank[name].shape[1]) if "lora_A" in name else (blank[name].shape[0], RANK)
        blank[name][tuple(map(slice, shape))] = corner(state.adapter[name], shape)
    files.write(path.parent / "cut", type(state.adapter)(blank), base)
    assert json.loads((path.parent / "cut" / files.CONFIG).read_text())["r"] == RANK
    cut = files.read(path.parent / "cut", base)
    for name, tensor in cut.items():
        np.testing.assert_array_equal(tensor, corner(state.adapter[name], tensor.shape))


def test_it_answers_chats_and_is_compared(done: Any) -> None:
    path, state = done("side")
    kept = load_run(path)
    assert isinstance(kept.generate("w5 w9", max_new_tokens=4), str)
    assert kept.adapter(3) == state.adapter
    assert isinstance(kept.generate("w5 w9", round=3, max_new_tokens=4), str)
    chat = answering.open_chat(path)
    *_, texts = chat.answer("w5 w9", arms=["base", FEDERATED], max_new_tokens=4)
    assert texts[FEDERATED] == kept.generate("w5 w9", max_new_tokens=4)
    base = load_base(run_settings_of(path))
    found = arm_adapter(path, 0, Arm(name="federated", kind="federated"), base)
    assert found is not None
    together = score.losses(base, [base.zero, found, state.adapter], run_data(path), micro_batch=64)
    np.testing.assert_allclose(together[1], together[2], rtol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_checkpoint_of_other_side_ranks_is_not_gone_on_with(
    llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    run = open_run(settings("side", llama_folder, source, tmp_path / "run"))
    next(run.rounds())
    run.close()
    for file in (tmp_path / "run").glob("*.toml"):
        file.write_text(file.read_text().replace("side_rank = 5", "side_rank = 4"))
    with pytest.raises((CheckpointError, SettingsError), match=r"side_rank|belongs to another adapter"):
        resume(tmp_path / "run")


def test_the_last_checkpoint_answers_before_the_run_is_finished(
    llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    run = open_run(settings("side", llama_folder, source, tmp_path / "run"))
    state, _ = next(run.rounds())
    run.close()
    assert adapter_of(tmp_path / "run", load_base(run_settings_of(tmp_path / "run"))) == state.adapter
