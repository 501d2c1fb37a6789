"""Whole runs on a tiny base: what is written, and that a run goes on with the same bits (law 3)."""

from __future__ import annotations

import datetime
import errno
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import shepherd
from shepherd import plugins
from shepherd.config import PartTable
from shepherd.consent import Consent
from shepherd.core import (
    IN_PYTHON,
    Adapter,
    Algorithm,
    ClientInfo,
    Draws,
    Parts,
    Payload,
    Selection,
    Transform,
    Update,
)
from shepherd.data import data_folder, dataset, pipeline
from shepherd.data.examples import Turn
from shepherd.data.template import Template, prompt
from shepherd.errors import (
    AdapterError,
    BaseError,
    CheckpointError,
    DataError,
    FederationError,
    FolderError,
    QuorumNotMet,
    SettingsError,
    UpdateRefused,
)
from shepherd.federation.client_store import StoredMemory
from shepherd.federation.simulation import Simulation
from shepherd.io import private
from shepherd.io.progress import Progress
from shepherd.machine import memory, plan
from shepherd.machine.plan import PLAN
from shepherd.model import base as bases_
from shepherd.model import files, lora, pass_plan
from shepherd.model.base import Base
from shepherd.model.coverage import coverage
from shepherd.overrides import dump, overridden, parse, read
from shepherd.run import answerer, checkpoint, folder
from shepherd.run import log as run_log
from shepherd.run import run as run_module
from shepherd.run.inspection import inspect_data
from shepherd.run.log import LOG, read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.run import Run
from shepherd.settings import MachineTable, RunSettings
from shepherd.training import score
from shepherd.training.local import OBJECTIVE, OPTIMISER, completed
from tests import runs
from tests.model import bases
from tests.run.test_checkpoint import as_first_format

ROW = {
    "round", "cohort", "weights", "capped", "loss", "losses", "failures", "bytes_down", "bytes_up", "gap",
    "energy_kept", "spread", "cosine", "cosines", "examples", "steps", "tokens", "heldout", "coverage",
    "learning_rate", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def whole(llama_folder, source, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """An undisturbed run's folder, and the rows it yielded."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run = open_run(runs.settings(llama_folder, source, output))
    rows = [row for _, row in run.rounds()]
    run.finish()
    return output, rows


@pytest.fixture
def table(llama_folder, source, tmp_path) -> RunSettings:
    return runs.settings(llama_folder, source, tmp_path / "run")


def weights(path: Path) -> bytes:
    return (path / "adapter" / files.WEIGHTS).read_bytes()


def finish(run: Run) -> Path:
    for _ in run.rounds():
        pass
    run.finish()
    return run.folder


def stopped(table: RunSettings, after: int) -> Path:
    """A run that ended after so many rounds, as if its process had."""
    run = open_run(table)
    for _ in itertools.islice(run.rounds(), after):
        pass
    run.close()
    return run.folder


def assert_same_end(path: Path, whole: tuple[Path, list[dict[str, Any]]]) -> None:
    assert weights(path) == weights(whole[0])
    ours, theirs = read_rows(path), read_rows(whole[0])
    assert [runs.without_times(row) for row in ours] == [runs.without_times(row) for row in theirs]


# --- what a run writes


def test_the_log_holds_what_was_yielded(whole) -> None:
    path, rows = whole
    first, *others = read_rows(path)
    assert set(first) == {"round", "heldout"}
    assert first["round"] == 0
    assert others == json.loads(json.dumps(rows))
    assert [row["round"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert set(row) == ROW
        assert sum(row["weights"].values()) == pytest.approx(1)
        assert list(row["weights"]) == row["cohort"]
        assert len(row["cohort"]) == 2
        assert set(row["coverage"]) == {f"client-{k}" for k in range(4)}
        assert 0 < row["gap"] < 1
        assert row["energy_kept"] == pytest.approx(1 - row["gap"] ** 2, abs=1e-2)
        assert row["spread"] > 0
        assert set(row["cosines"]) == set(row["cohort"])
        assert row["cosine"] == pytest.approx(sum(row["cosines"].values()) / 2, abs=1e-5)
        assert row["failures"] == {}
        assert set(row["heldout"]["category"]) == set(runs.CATEGORIES)
        assert row["seconds"]["round"] >= row["seconds"]["tuning"] > 0
    assert rows[0]["bytes_down"] == rows[0]["bytes_up"] > 0


def test_the_rows_loss_is_the_mean_over_the_cohorts_trained_tokens(whole) -> None:
    _, (row, *_) = whole
    losses = list(row["losses"].values())
    assert min(losses) < row["loss"] < max(losses)
    assert row["tokens"]["trained"] < row["tokens"]["seen"]


def test_it_learns_something(whole) -> None:
    path, rows = whole
    before = read_rows(path)[0]["heldout"]["loss"]
    assert rows[-1]["heldout"]["loss"] < before
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_adapter_loads_in_peft_with_the_same_logits(whole, llama_folder) -> None:
    path, _ = whole
    ids = torch.arange(4, 20).unsqueeze(0)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    untuned = plain(ids).logits.detach()
    theirs = peft.PeftModel.from_pretrained(plain, path / "adapter").eval()(ids).logits.detach()
    base = bases.load(llama_folder, rank=2, alpha=16, dropout=0.1)
    last = checkpoint.load(checkpoint.latest(path / "checkpoints")).state.adapter
    lora.bind_adapters(base.model, base.targets, lora.stacked([last], base.device))
    with torch.no_grad(), pass_plan.use_plan(pass_plan.sequences([1])):
        torch.testing.assert_close(base.model(ids).logits, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs, untuned, atol=0.05)
    assert (path / "adapter" / "README.md").is_file()
    ends = GenerationConfig.from_pretrained(path / "adapter")
    assert ends.eos_token_id == [base.tokenizer.eos_token_id]
    read = AutoTokenizer.from_pretrained(path / "adapter")
    assert read("w4 w5").input_ids == base.tokenizer("w4 w5").input_ids


def test_an_adapter_that_peft_would_not_load_is_said_before_anything_is_trained(
    table, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(files, "rehearse", lambda base: "it will be so")
    open_run(table).close()
    assert "it will be so" in caplog.messages

    def refuses(base: object) -> str:
        raise AdapterError("PEFT would not load it")

    monkeypatch.setattr(files, "rehearse", refuses)
    other = table.model_copy(update={"output": f"{table.output}-2"})
    with pytest.raises(AdapterError):
        open_run(other)
    assert not Path(other.output).exists()


def test_the_held_out_loss_is_that_of_the_adapter_on_the_held_out_examples(whole, llama_folder) -> None:
    path, rows = whole
    base = bases.load(llama_folder, rank=2, alpha=16)
    prepared = data_folder.load(path / "data")
    sums = score.losses(base, [files.read(path / "adapter", base)], prepared.heldout, micro_batch=50)[0]
    names = np.array(dataset.categories(prepared))
    counts = np.array([prepared.heldout.example(i)[1][1:].sum() for i in range(len(names))])
    by_category = {name: sums[names == name].sum() / counts[names == name].sum() for name in set(names)}
    scored = rows[-1]["heldout"]
    assert scored["category"] == pytest.approx(by_category, rel=1e-5)
    assert scored["loss"] == pytest.approx(np.mean(list(by_category.values())), rel=1e-5)


def test_what_was_chosen_by_measuring_is_written_out(llama_folder, source, tmp_path) -> None:
    auto = {"stack_size": "auto", "micro_batch_tokens": "auto"}
    table = runs.settings(llama_folder, source, tmp_path / "run", machine=auto)
    run = open_run(table)
    run.close()
    assert folder.read_settings(run.folder) == run.settings == completed(table)  # as it was given
    kept = plan.read(run.folder)
    assert kept == run.plan
    assert kept.stack_size <= 2  # no more than a cohort
    assert kept.micro_batch_tokens == memory.micro_batch(run.base)
    assert (kept.dtype, kept.device, kept.threads, kept.workers) == ("float32", "cpu", 1, 1)
    assert (kept.commit, kept.date) == (None, "")
    assert kept.over(table).machine == MachineTable(
        device="cpu",
        threads=1,
        workers=1,
        stack_size=kept.stack_size,
        micro_batch_tokens=kept.micro_batch_tokens,
    )


@pytest.mark.slow
def test_a_run_in_worker_processes_has_the_same_bits_and_goes_on_with_them(
    llama_folder, source, tmp_path, whole
) -> None:
    pair = {"workers": 2, "threads": 2, "stack_size": 1}
    alone = finish(
        open_run(runs.settings(llama_folder, source, tmp_path / "alone", machine={"stack_size": 1}))
    )
    path = stopped(runs.settings(llama_folder, source, tmp_path / "run", machine=pair), after=1)
    finish(resume(path))
    assert weights(path) == weights(alone)
    kept = plan.read(path)
    assert (kept.workers, kept.threads) == (2, 2)
    assert not [child for child in psutil.Process().children() if "popen_loky" in " ".join(child.cmdline())]


def test_evaluating_every_so_often_ends_with_the_last_round(llama_folder, source, tmp_path) -> None:
    table = runs.settings(llama_folder, source, tmp_path / "run", evaluation={"every": 2})
    finish(open_run(table))
    scored = [row["round"] for row in read_rows(tmp_path / "run") if "heldout" in row]
    assert scored == [0, 2, 3]


def test_without_held_out_examples_nothing_is_scored(llama_folder, source, tmp_path) -> None:
    table = runs.settings(llama_folder, source, tmp_path / "run", data={"holdout": 0.0})
    finish(open_run(table))
    assert not any("heldout" in row for row in read_rows(tmp_path / "run"))


def test_old_checkpoints_go(whole) -> None:
    assert sorted(p.name for p in (whole[0] / "checkpoints").iterdir()) == ["round-00002", "round-00003"]


# --- what is refused


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_loaded(whole, llama_folder, source) -> None:
    path, _ = whole
    before = sorted(path.rglob("*"))
    with pytest.raises(FolderError, match="holds another run"):
        open_run(runs.settings(llama_folder / "gone", source, path))
    assert sorted(path.rglob("*")) == before


def test_a_run_that_cannot_begin_writes_nothing(llama_folder, source, tmp_path) -> None:
    def open_(**tables: Any) -> None:
        open_run(runs.settings(llama_folder, tables.pop("source", source), tmp_path / "run", **tables))

    for error, tables in (
        (BaseError, {"model": {"base": str(tmp_path)}}),
        (BaseError, {"adapter": {"targets": ["query"]}}),
        (DataError, {"source": tmp_path / "no.jsonl"}),
        (DataError, {"split": {"clients": 1000}}),
        (SettingsError, {"algorithm": {"name": "fedsomething"}}),
        (SettingsError, {"algorithm": {"name": "fedavg", "mu": 1}}),
        (SettingsError, {"algorithm": {"name": "fednova"}}),  # under AdamW
        (SettingsError, {"data": {"holdout": 0}, "evaluation": {"contribution": True}}),
    ):
        with pytest.raises(error):
            open_(**tables)
        assert not (tmp_path / "run").exists()


def test_contributions_are_of_scored_rounds_and_add_up_to_the_fall(llama_folder, source, tmp_path) -> None:
    asked = {"evaluation": {"contribution": True, "every": 2}, "selection": {"share": 0.75}}
    plain = {**asked, "evaluation": {"every": 2}}
    rows, without = [], []
    for kept, name, tables in ((rows, "run", asked), (without, "plain", plain)):
        with open_run(runs.settings(llama_folder, source, tmp_path / name, **tables)) as run:
            kept += [row for _, row in run.rounds()]
    assert [("contribution" in row, "heldout" in row) for row in rows] == [
        (False, False),
        *2 * [(True, True)],
    ]
    for row, other in zip(rows, without, strict=True):
        found = row.pop("contribution", {"projection": {}, "leave_one_out": {}})
        assert runs.without_times(row) == runs.without_times(other)  # watching changes nothing
        for shares in found.values():
            assert set(shares) == (set(row["cohort"]) if "heldout" in row else set())
    with open_run(
        runs.settings(llama_folder, source, tmp_path / "each", evaluation={"contribution": True})
    ) as run:
        losses = [read_rows(run.folder)[0]["heldout"]["loss"]]
        for _, row in run.rounds():
            losses.append(row["heldout"]["loss"])
            fall = sum(row["contribution"]["projection"].values())
            assert fall == pytest.approx(losses[-2] - losses[-1], abs=1e-9)


def test_a_token_or_a_place_that_the_base_lacks_is_refused_before_training(llama_folder, tmp_path) -> None:
    rows = [{**row, "response": "w5 " * 90} for row in runs.rows()]
    long = runs.written(tmp_path / "long.jsonl", rows)
    with pytest.raises(DataError, match=r"client-0: .* reads at most 64; set data\.max_tokens = 64"):
        open_run(runs.settings(llama_folder, long, tmp_path / "run", data={"max_tokens": 80}))
    other = shutil.copytree(llama_folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["new"] = bases.VOCABULARY
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    new = runs.written(tmp_path / "new.jsonl", [{**row, "response": "new"} for row in runs.rows()])
    with pytest.raises(DataError, match=r"client-0: token 61 is not among the 61 of base .*other"):
        open_run(runs.settings(other, new, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_never_writes_into_the_folder_that_replaced_its_own(table) -> None:
    run = open_run(table)
    rounds = run.rounds()
    next(rounds)
    shutil.rmtree(run.folder)
    with pytest.raises(FolderError, match="was removed or replaced while its run was going"):
        next(rounds)
    assert not run.folder.exists()
    other = open_run(table)
    with pytest.raises(FolderError, match="was removed or replaced"):
        run.finish()
    run.close()
    assert not other.holder.adapter.exists()
    finish(other)


def test_a_base_may_be_named_from_ones_home(whole, source, llama_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(llama_folder.parent))
    settings = runs.settings(Path("~") / llama_folder.name, source, tmp_path / "run")
    open_run(settings).close()
    assert inspect_data(settings).report.counts.kept


def test_two_processes_cannot_hold_one_run(table) -> None:
    run = open_run(table)
    code = f"from shepherd.run import folder; folder.reopen({str(run.folder)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "FolderError: another process is running" in other.stderr
    run.close()
    resume(run.folder).close()


def test_a_run_file_that_no_run_has_written_is_no_run(table, tmp_path) -> None:
    text = dump(table).replace("stack_size = 2", 'stack_size = "auto"')
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(FolderError, match=r"has no plan\.json, so its run never began"):
        resume(tmp_path)
    assert not (tmp_path / "data").exists()


def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would plan otherwise, whatever is left open."""
    monkeypatch.setattr(memory, "sizes", lambda *_, **__: pytest.fail("it is planned again"))
    monkeypatch.setattr(memory, "micro_batch", lambda base: 16)
    monkeypatch.setattr(pipeline, "dated", lambda *_: pytest.fail("the day is chosen again"))
    monkeypatch.setattr(bases_, "pick_dtype", lambda name, device: getattr(torch, name))  # no "auto"


AUTO = {"stack_size": "auto", "micro_batch_tokens": "auto", "workers": "auto", "device": "auto"}


def test_a_run_goes_on_as_planned_on_a_machine_that_would_plan_otherwise(
    llama_folder, source, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**33)
    monkeypatch.setattr(bases_, "_cpu_has_bfloat16", lambda: False)
    open_ = {"machine": AUTO, "model": {"dtype": "auto"}}
    undisturbed = finish(open_run(runs.settings(llama_folder, source, tmp_path / "whole", **open_)))
    path = stopped(runs.settings(llama_folder, source, tmp_path / "run", **open_), after=1)
    kept = plan.read(path)
    another_machine(monkeypatch)
    run = resume(path)
    assert run.plan == kept
    assert run.settings.machine.stack_size == "auto"
    finish(run)
    assert weights(path) == weights(undisturbed)
    assert plan.read(path) == kept == plan.read(undisturbed)


@pytest.mark.parametrize("after", [0, 2])
def test_a_folder_of_an_earlier_version_goes_on_with_the_same_bits(table, whole, monkeypatch, after) -> None:
    path = stopped(table, after=after)
    kept = plan.read(path)
    runs.as_before_plans(path)
    another_machine(monkeypatch)
    run = resume(path)
    assert run.plan == kept == plan.read(path)  # it has one from now on
    assert_same_end(finish(run), whole)
    monkeypatch.undo()
    assert answerer.generate(path, "w4 w5") == answerer.generate(whole[0], "w4 w5")


def test_a_damaged_plan_is_named_and_the_folder_given_back(table, whole) -> None:
    path = stopped(table, after=1)
    kept = (path / PLAN).read_text()
    (path / PLAN).write_text(kept[:20])
    for _ in range(2):
        with pytest.raises(FolderError, match=r"plan\.json is damaged .*; restore it from a copy"):
            resume(path)
    (path / PLAN).write_text(kept)
    assert_same_end(finish(resume(path)), whole)


def test_a_plan_that_was_lost_is_not_made_again(llama_folder, source, tmp_path) -> None:
    path = stopped(runs.settings(llama_folder, source, tmp_path / "run", machine=AUTO), after=1)
    (path / PLAN).unlink()
    with pytest.raises(FolderError, match=r"has no plan\.json"):
        resume(path)


def test_what_is_no_run_cannot_be_resumed(tmp_path) -> None:
    with pytest.raises(FolderError, match="holds no run"):
        resume(tmp_path)


# --- going on


def test_a_run_of_the_first_format_goes_on_with_what_its_clients_remembered(
    llama_folder, source, tmp_path
) -> None:
    """Its checkpoints held the memories, which now lie beside them."""
    name = "fedsa_lora"
    consent = Consent(plugins=frozenset({name}))
    new, old = (
        open_run(
            runs.settings(llama_folder, source, tmp_path / which, algorithm={"name": name}), consent=consent
        )
        for which in ("new", "old")
    )
    finish(new)
    rounds = old.rounds()
    next(rounds)
    next(rounds)
    old.close()
    last = checkpoint.latest(old.holder.checkpoints)
    store = old.simulation.store
    memories = {
        client: store.get(client, StoredMemory(*kept))
        for client, kept in checkpoint.load(last).notes["memories"].items()
    }
    assert memories
    as_first_format(last, memories)
    shutil.rmtree(old.holder.clients)
    finish(resume(old.folder, consent))
    ends = [checkpoint.load(checkpoint.latest(run.holder.checkpoints)) for run in (old, new)]
    assert ends[0].state.adapter == ends[1].state.adapter
    kept = [
        {c: run.simulation.store.get(c, StoredMemory(*k)) for c, k in end.notes["memories"].items()}
        for run, end in zip((old, new), ends, strict=True)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_a_run_stopped_after_any_round_ends_with_the_same_bits(table, whole, rounds, caplog) -> None:
    path = stopped(table, rounds)
    caplog.set_level(logging.INFO)
    run = resume(path)
    assert run.state.round == rounds
    assert f"continuing after round {rounds} of 3" in caplog.messages
    assert_same_end(finish(run), whole)


def test_a_run_that_was_stopped_after_every_round_ends_with_the_same_bits(table, whole) -> None:
    path = stopped(table, 1)
    for _ in range(2):
        run = resume(path)
        next(run.rounds())
        run.close()
    assert_same_end(finish(resume(path)), whole)


def test_a_run_goes_on_in_the_same_process_where_its_loop_was_left(table, whole) -> None:
    run = open_run(table)
    next(run.rounds())
    assert_same_end(finish(run), whole)


@pytest.mark.parametrize("name", ["fedprox", "ffa_lora"])
def test_other_algorithms_go_on_with_the_same_bits(llama_folder, source, tmp_path, name) -> None:
    tables: dict[str, Any] = {"algorithm": {"name": name}, "federation": {"rounds": 2}}
    undisturbed = finish(open_run(runs.settings(llama_folder, source, tmp_path / "a", **tables)))
    disturbed = stopped(runs.settings(llama_folder, source, tmp_path / "b", **tables), 1)
    assert weights(finish(resume(disturbed))) == weights(undisturbed)


def test_a_run_that_tunes_stacked_experts_goes_on_with_the_same_bits(source, tmp_path) -> None:
    base = bases.save(bases.MIXTURES["mixtral"], tmp_path / "base")
    tables: dict[str, Any] = {
        "adapter": {"dropout": 0.0, "target_parameters": list(bases.STACKS)},
        "federation": {"rounds": 2},
    }
    undisturbed = finish(open_run(runs.settings(base, source, tmp_path / "a", **tables)))
    disturbed = finish(resume(stopped(runs.settings(base, source, tmp_path / "b", **tables), 1)))
    assert weights(disturbed) == weights(undisturbed)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), disturbed / "adapter")
    moved = [p for name, p in theirs.named_parameters() if ".experts." in name and "lora_B" in name]
    assert len(moved) == 4
    assert all(parameter.any() for parameter in moved)


def test_the_gap_is_told_the_rank(table, monkeypatch) -> None:
    """Without it, the experts of a stack would count as one matrix."""
    told: list[int] = []
    rounds = run_module.rounds
    monkeypatch.setattr(
        run_module, "rounds", lambda *a, **k: told.append(k["context"].rank) or rounds(*a, **k)
    )
    run = open_run(table)
    next(run.rounds())
    run.close()
    assert told == [table.adapter.rank]


def test_a_run_goes_on_when_its_source_has_gone(llama_folder, tmp_path, whole) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    path = stopped(runs.settings(llama_folder, source, tmp_path / "run"), 1)
    source.unlink()
    assert_same_end(finish(resume(path)), whole)


def test_a_torn_last_line_of_the_log_is_repaired(table, whole) -> None:
    path = stopped(table, 2)
    log = path / LOG
    log.write_bytes(log.read_bytes()[:-20])
    assert_same_end(finish(resume(path)), whole)


def test_data_that_were_not_all_written_are_prepared_again(table, whole) -> None:
    path = stopped(table, 0)
    (path / "data" / "index.json").unlink()
    shutil.rmtree(path / "data" / "clients")
    (path / LOG).unlink()
    assert_same_end(finish(resume(path)), whole)


def test_finishing_twice_writes_the_same_adapter(table, whole) -> None:
    path = finish(open_run(table))
    assert_same_end(finish(resume(path)), whole)


def test_a_damaged_checkpoint_is_named_with_what_to_do(table, whole) -> None:
    path = stopped(table, 2)
    last = path / "checkpoints" / "round-00002"
    tensors = last / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=f"delete {last} to continue from round-00001"):
        resume(path)
    shutil.rmtree(last)  # the remedy
    assert_same_end(finish(resume(path)), whole)


def test_damaged_data_are_named(table) -> None:
    path = stopped(table, 1)
    shutil.rmtree(path / "data" / "heldout")
    with pytest.raises(FolderError, match="the data of the run"):
        resume(path)
    with pytest.raises(FolderError, match="the data of the run"):  # the folder was given back
        resume(path)


def changed(path: Path, **model: str) -> None:
    settings = folder.read_settings(path)
    table = settings.model.model_copy(update=model)
    text = folder.dump(settings.model_copy(update={"model": table}))
    (path / folder.RUN_FILE).write_text(text)


def test_a_run_whose_base_no_longer_reads_its_examples_is_not_gone_on_with(table, monkeypatch) -> None:
    path = stopped(table, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Base, "max_length", 6)
        with pytest.raises(DataError, match=r"reads at most 6.*; set data\.max_tokens = 6"):
            resume(path)
    resume(path).close()  # the folder was given back


def test_data_that_vanished_after_the_first_round_are_not_prepared_anew(table) -> None:
    path = stopped(table, 1)
    (path / "data" / "index.json").unlink()
    with pytest.raises(FolderError, match="the data of the run"):
        resume(path)


def test_a_checkpoint_of_another_rank_is_refused(table) -> None:
    path = stopped(table, 1)
    settings = folder.read_settings(path)
    wider = settings.adapter.model_copy(update={"rank": 3})
    (path / folder.RUN_FILE).write_text(folder.dump(settings.model_copy(update={"adapter": wider})))
    (path / folder.TRAINED_WITH).unlink()  # as in a folder of an earlier version
    with pytest.raises(
        CheckpointError, match=r"another adapter: tensor .* has rank 2, and adapter.rank is 3"
    ):
        resume(path)


def test_a_checkpoint_of_a_base_with_other_shapes_is_refused(table, tmp_path) -> None:
    path = stopped(table, 1)
    changed(path, base=str(bases.save(bases.CONFIGS["gpt2"], tmp_path / "gpt2")))
    with pytest.raises(CheckpointError, match="another base"):
        resume(path)


def test_a_run_does_not_go_on_over_other_weights_of_the_same_shapes(table, tmp_path) -> None:
    path = stopped(table, 1)
    changed(path, base=str(bases.save(bases.CONFIGS["llama"], tmp_path / "other", seed=1)))
    with pytest.raises(CheckpointError, match="another base"):
        resume(path)


# --- what goes wrong on the way


def full_disk(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_while_saving_keeps_the_round_before(table, whole, monkeypatch) -> None:
    run = open_run(table)
    rounds = run.rounds()
    next(rounds)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_files", full_disk)
        with pytest.raises(FolderError, match="No space left"):
            next(rounds)
    run.close()
    assert [p.name for p in (run.folder / "checkpoints").iterdir()] == ["round-00001"]
    assert [row["round"] for row in read_rows(run.folder)] == [0, 1]
    assert_same_end(finish(resume(run.folder)), whole)


def test_a_disk_that_fills_up_while_logging_loses_no_round(table, whole, monkeypatch) -> None:
    run = open_run(table)
    with monkeypatch.context() as patch:
        patch.setattr(run_log, "_write_all", full_disk)
        with pytest.raises(FolderError, match="is full"):
            next(run.rounds())
    run.close()
    again = resume(run.folder)
    assert again.state.round == 1
    assert_same_end(finish(again), whole)


def test_a_disk_that_fills_up_while_the_data_are_written_gives_the_folder_back(
    table, whole, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        with pytest.raises(FolderError, match="is full"):
            open_run(table)
    assert_same_end(finish(resume(table.output)), whole)


def test_a_disk_that_fills_up_at_the_end_can_be_finished_later(table, whole, monkeypatch) -> None:
    run = open_run(table)
    for _ in run.rounds():
        pass
    with monkeypatch.context() as patch:
        patch.setattr(files, "bytes_of", full_disk)
        with pytest.raises(FolderError):
            run.finish()
    run.close()
    assert_same_end(finish(resume(run.folder)), whole)


def test_clients_that_are_not_finite_do_not_make_a_quorum(llama_folder, source, tmp_path) -> None:
    wild = {"learning_rate": 1e38, "max_steps": 4, "clip_norm": False}
    run = open_run(runs.settings(llama_folder, source, tmp_path / "run", tuning=wild))
    with pytest.raises(QuorumNotMet, match=r"round 1: 0 of 2 .*(not finite|metric loss is nan)"):
        next(run.rounds())
    run.close()
    assert [row["round"] for row in read_rows(tmp_path / "run")] == [0]
    assert resume(tmp_path / "run").state.round == 0


def test_one_client_that_is_not_finite_is_counted_and_left_out(table) -> None:
    run = open_run(table)
    poisoned = []

    def correct(name, grad, param, broadcast, memory, step):
        poisoned.append(name)
        grad = grad.clone()
        grad[0] = float("nan")
        return grad

    run.method = replace(run.method, algorithm=replace(run.method.algorithm, correct=correct))
    run.__post_init__()
    state, row = next(run.rounds())
    run.close()
    assert poisoned
    assert list(row["failures"]) == sorted(row["cohort"])[:1]
    assert len(row["weights"]) == 1
    assert all(np.isfinite(tensor).all() for tensor in state.adapter.values())
    assert state.adapter != Adapter()


def test_progress_is_logged(table, caplog) -> None:
    caplog.set_level(logging.DEBUG, logger="shepherd.io.progress")
    run = open_run(table)
    caplog.clear()
    (state, row), *_ = _first(run.rounds())
    run.close()
    heard = [arg for record in caplog.records for arg in record.args or () if isinstance(arg, Progress)]
    assert {(p.round, p.rounds, p.clients) for p in heard} == {(1, 3, 2)}
    assert heard[-1].tokens == heard[-1].round_tokens == row["tokens"]["seen"]
    assert state.round == 1


def test_what_is_trained_on_what_and_how_is_said_at_the_start(table, caplog) -> None:
    caplog.set_level(logging.INFO)
    with open_run(table) as run:
        said = "\n".join(caplog.messages)
        trained = sum(tensor.size for tensor in run.state.adapter.values())
        whole = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(table.model.base).parameters())
        loss = read_rows(run.folder)[0]["heldout"]["loss"]
        reached = coverage(run.base.model, run.base.targets).sentence
    assert reached in caplog.messages
    assert f"base {Path(table.model.base).name}: {whole:,} parameters, and {trained:,} to train" in said
    assert f"({100 * trained / whole:.2f}%), float32 on cpu" in said
    assert re.search(r"4 clients, \d+ examples to train on \(\d+ cut, 0 dropped\), \d held out", said)
    assert "tuning 2 clients at once in one process, 1 thread, up to " in said
    assert re.search(r"expecting about \d\.\d GB of memory, about .* a round", said)
    assert said.endswith(f"before training  held out {loss:.4f}")


# --- from Python


def test_no_text_of_an_example_is_in_a_repr(table) -> None:
    with open_run(table) as run:
        assert repr(run) == f"<Run {run.folder}: fedavg, round 0 of 3>"
        kept = sum(map(len, run.prepared.clients.values()))
        held = len(run.prepared.heldout)
        assert repr(run.prepared) == f"<Prepared: 4 clients, {kept} examples, {held} held out>"
    inspection = inspect_data(table)
    parts = (run, run.prepared, run.prepared.heldout, run.simulation, inspection, inspection.division)
    for part in (*parts, run.base, run.state, run.plan, answerer.Answerer.of(run), run.holder):
        assert len(repr(part)) < 300
        assert not re.search(r"\bw\d", repr(part))  # the examples' words are w4, w5, ...
    assert repr(run).endswith("closed>")


def test_settings_show_what_is_not_the_default_and_say_how_to_make_others(table) -> None:
    assert "federation.rounds=3, " in repr(table)
    assert "seed" not in repr(table)
    assert str(table) == repr(table)
    long = shepherd.overridden(table, [f"data.system={'s' * 500}"])
    assert len(repr(long)) < len(repr(table)) + 100
    for set_, key in ((table, "seed"), (table.federation, "rounds"), (table.algorithm, "mu")):
        with pytest.raises(SettingsError, match=rf'shepherd\.overridden\(settings, \["TABLE\.{key}=VALUE'):
            setattr(set_, key, 3)
    assert shepherd.overridden(table, ["federation.rounds=4"]).federation.rounds == 4
    assert table.federation.rounds == 3


def test_a_cell_that_is_run_twice_is_told_which_process_holds_the_run(table) -> None:
    with open_run(table), pytest.raises(FolderError, match=r"this process has open; .* close\(\)"):
        open_run(table)
    with pytest.raises(FolderError, match="holds another run"):
        open_run(table)


def doubled(update: Update, public: object, draws: Draws) -> Update:
    return replace(update, delta=Payload({name: 2 * change for name, change in update.delta.items()}))


def every_client(clients: Sequence[ClientInfo], round: int, seed: int) -> tuple[str, ...]:
    return tuple(each.name for each in clients)


def test_parts_may_be_values(table, whole, tmp_path) -> None:
    """A value in the place of each part changes the run as the same part by its name does."""
    given = {
        "algorithm": plugins.algorithm(PartTable(name="fedprox", mu=0.5)),
        "transform": plugins.transform([PartTable(name="clip", norm=0.1)]),
        "selection": Selection(draw=every_client),
        "server": plugins.server_optimiser(PartTable(name="sgd", learning_rate=0.5)),
    }
    named = {
        "algorithm": {"name": "fedprox", "mu": 0.5},
        "transforms": [{"name": "clip", "norm": 0.1}],
        "selection": {"name": "all"},
        "server": {"name": "sgd", "learning_rate": 0.5},
    }
    path = finish(open_run(table, **given))
    assert weights(path) != weights(whole[0])
    other = {**table.model_dump(exclude_none=True), **named, "output": str(tmp_path / "named")}
    assert weights(path) == weights(finish(open_run(parse(other))))
    kept = folder.read_settings(path)
    assert {kept.algorithm.name, kept.selection.name, kept.transforms[0].name} == {IN_PYTHON}
    assert kept.aggregation.name == "mean"
    assert f"instruction-tuned by {IN_PYTHON}" in (path / "adapter" / "README.md").read_text()


def test_the_parts_of_local_training_may_be_values(table, tmp_path) -> None:
    given = {
        "optimiser": plugins.built(OPTIMISER, PartTable(name="sgd", momentum=0.5)),
        "objective": plugins.built(OBJECTIVE, PartTable(name="sft")),
    }
    path = finish(open_run(table, **given))
    named = {**table.tuning.model_dump(exclude_none=True), "optimiser": {"name": "sgd", "momentum": 0.5}}
    other = {**table.model_dump(exclude_none=True), "tuning": named, "output": str(tmp_path / "named")}
    assert weights(path) == weights(finish(open_run(parse(other))))
    kept = folder.read_settings(path)
    assert {kept.tuning.optimiser.name, kept.tuning.objective.name} == {IN_PYTHON}
    with pytest.raises(SettingsError, match=r"optimiser and the objective of the run .* optimiser=VALUE"):
        resume(path)
    resume(path, **given).close()


@pytest.mark.parametrize("part", ["optimiser", "objective"])
def test_what_is_no_part_of_local_training_is_refused_by_name(table, part) -> None:
    with pytest.raises(SettingsError, match=rf"^{part}= got a str; give a value of shepherd\.training\."):
        open_run(table, **{part: "adamw"})
    assert not Path(table.output).exists()


@pytest.mark.parametrize("wrong", ["run.toml", {"seed": 1}, None, Path("run.toml")])
def test_what_is_no_settings_is_told_how_to_make_them(wrong: Any) -> None:
    for call in (open_run, inspect_data, lambda given: overridden(given, [])):
        with pytest.raises(SettingsError, match=r"^the settings are a \w+; read them from a run file with"):
            call(wrong)


def test_overrides_are_a_list(table) -> None:
    for wrong in ("seed=1", {"seed": 1}):
        with pytest.raises(SettingsError, match=r"^the overrides are a \w+; write a list of texts"):
            overridden(table, wrong)


@pytest.mark.parametrize("wrong", [3, None])
def test_prompts_that_are_none_are_named(tmp_path, wrong: Any) -> None:
    with pytest.raises(DataError, match=r"^the prompts are a \w+; give a text"):
        answerer.generate(tmp_path, wrong)


def test_a_resumed_run_needs_its_values_again(table) -> None:
    given = {"transform": Transform(on_client=doubled)}
    run = open_run(table, **given)
    rounds = [row for _, row in run.rounds()]
    run.finish()
    path = run.folder
    other = table.model_copy(update={"output": f"{table.output}-2"})
    run = open_run(other, **given)
    next(run.rounds())
    run.close()
    with pytest.raises(
        SettingsError, match=r"transform of the run .* shepherd\.resume\(.*, transform=VALUE\)"
    ):
        resume(run.folder)
    with pytest.raises(
        SettingsError, match=r"began with the algorithm that its run file names; .*algorithm="
    ):
        resume(run.folder, algorithm=Algorithm(), **given)
    again = resume(run.folder, **given)
    assert runs.without_times([row for _, row in again.rounds()][-1]) == runs.without_times(rounds[-1])
    again.finish()
    assert weights(run.folder) == weights(path)
    with pytest.raises(SettingsError, match=r"transform of this run was given as a value in Python"):
        plugins.require(folder.read_settings(path))


@pytest.mark.parametrize("part", list(Parts().__slots__))
def test_what_is_not_a_part_is_refused_by_name(table, part) -> None:
    with pytest.raises(
        SettingsError, match=rf"^{part}= got a str; give a value of shepherd\.core\.\w+, such"
    ):
        open_run(table, **{part: "fedprox"})
    with pytest.raises(TypeError, match="strategy"):
        open_run(table, strategy=None)
    assert not Path(table.output).exists()


def test_a_value_is_used_in_worker_processes_too(table) -> None:
    pair = shepherd.overridden(table, ["machine.workers=2", "machine.threads=2", "machine.stack_size=1"])
    alone = shepherd.overridden(table, ["machine.stack_size=1", f"output={table.output}-alone"])
    given = {"algorithm": Algorithm(correct=lambda name, grad, *_: 0.5 * grad, observe=None)}
    assert weights(finish(open_run(pair, **given))) == weights(finish(open_run(alone, **given)))


def test_an_open_run_is_asked_without_loading_its_base_again(table, whole, monkeypatch) -> None:
    run = open_run(table)
    prompt = "w5 w6"
    monkeypatch.setattr(answerer, "load_base", lambda *_: pytest.fail("it is loaded already"))
    untuned = shepherd.generate(run, prompt, base=True)
    assert shepherd.generate(run, prompt) == untuned  # B is zero
    for _ in run.rounds():
        assert shepherd.generate(run, [prompt, {"instruction": "w7"}])[1]
    run.finish()
    assert weights(run.folder) == weights(whole[0])  # to ask changes no bit
    last = shepherd.generate(run, prompt)
    assert last == shepherd.generate(run, prompt, round=3)
    monkeypatch.undo()
    loaded = shepherd.load_run(run.folder)
    assert shepherd.generate(loaded, prompt) == shepherd.generate(str(run.folder), prompt) == last


def test_a_run_is_closed_at_the_end_of_its_with(table) -> None:
    with open_run(table) as run:
        next(run.rounds())
        with pytest.raises(FolderError, match=r"this process already holds the run in .*; call close\(\)"):
            resume(run.folder)
    with pytest.raises(FolderError, match=r"is closed; continue it with shepherd\.resume"):
        next(run.rounds())
    with pytest.raises(FolderError, match="is closed"):
        run.finish()
    resume(run.folder).close()


def test_finish_a_second_time_gives_the_same(table) -> None:
    run = open_run(table)
    for _ in run.rounds():
        pass
    assert not folder.is_finished(run.folder)
    once = run.finish()
    assert folder.is_finished(run.folder)
    assert run.finish() is once


def test_a_finished_run_with_more_rounds_to_go_is_not_finished(whole, tmp_path) -> None:
    path = shutil.copytree(whole[0], tmp_path / "run")
    assert folder.is_finished(path)
    text = (path / folder.RUN_FILE).read_text()
    (path / folder.RUN_FILE).write_text(text.replace("rounds = 3", "rounds = 4"))
    assert not folder.is_finished(path)


def test_of_two_loops_over_one_run_the_older_ends(table) -> None:
    with open_run(table) as run:
        older, newer = run.rounds(), run.rounds()
        next(older)
        next(run.rounds())
        with pytest.raises(FederationError, match=r"another loop over rounds\(\) advanced"):
            next(older)
        assert next(newer)[0].round == 3


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(table) -> None:
    with pytest.raises(FolderError, match=r"/proc/run cannot be used \(No such file or directory\)"):
        open_run(table.model_copy(update={"output": "/proc/run"}))


# --- paths


def test_a_run_goes_on_and_answers_from_another_folder_wherever_it_lies(
    llama_folder, tmp_path, whole, monkeypatch
) -> None:
    place = tmp_path / "place"
    shutil.copytree(llama_folder, place / "models" / "base")
    runs.written(place / "rows.jsonl")
    table = runs.settings(llama_folder, place, Path("run"))
    text = dump(table).replace(str(llama_folder), "models/base").replace(str(place), "rows.jsonl")
    (place / "run.toml").write_text(text)
    monkeypatch.chdir(place)
    path = stopped(read("run.toml"), 1)
    kept = folder.read_settings(path)
    assert (kept.model.base, kept.data.source) == (f"{place}/models/base", f"{place}/rows.jsonl")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(path, tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_same_end(finish(resume("moved")), whole)
    assert answerer.generate("moved", "w4 w5") == answerer.generate(moved, "w4 w5")


def test_a_base_that_has_gone_is_missing_and_no_question_to_a_hub(table, llama_folder, tmp_path) -> None:
    path = stopped(table, 1)
    changed(path, base=str(tmp_path / "gone"))
    with pytest.raises(BaseError, match=rf"there is no folder {tmp_path}/gone, which model.base names"):
        resume(path)
    changed(path, base="../gone")  # as an older run folder has it
    with pytest.raises(BaseError, match=rf"no folder \.\./gone \(relative to {Path.cwd()}\), which"):
        resume(path)


def _first(rounds: Iterator[Any]) -> list[Any]:
    return list(itertools.islice(rounds, 1))


# --- the day


DATED = "w{{ strftime_now('%d') }} {% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture
def on_a_day(monkeypatch):
    """Move the clocks of this package and of transformers to a day of May 2026."""
    from transformers.utils import chat_template_utils

    def move(day: int) -> None:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime.datetime:
                return datetime.datetime(2026, 5, day, 12)

        class Today(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return datetime.date(2026, 5, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        monkeypatch.setattr(pipeline, "date", Today)

    return move


def test_a_run_keeps_the_day_that_it_started_on(llama_folder, source, tmp_path, on_a_day) -> None:
    base = shutil.copytree(llama_folder, tmp_path / "base")
    (base / "chat_template.jinja").write_text(DATED)
    on_a_day(14)
    settings = runs.settings(base, source, tmp_path / "run", data={"template": "chat"})
    open_run(settings).close()
    assert folder.read_settings(tmp_path / "run").data.date == ""  # as it was given
    assert plan.read(tmp_path / "run").date == "2026-05-14"
    kept = data_folder.load(tmp_path / "run" / "data")
    data = {name: tokens.ids.tolist() for name, tokens in kept.clients.items()}
    assert all(14 in ids for ids in data.values())
    on_a_day(21)
    shutil.rmtree(tmp_path / "run" / "data")  # killed before its first round: it is prepared again
    again = resume(tmp_path / "run")
    again.close()
    assert {name: tokens.ids.tolist() for name, tokens in again.prepared.clients.items()} == data
    turns = (Turn(role="user", text="w5"),)
    template = Template.of(again.planned.data)
    assert again.base.tokenizer.decode(prompt(turns, template, again.base.tokenizer)) == "w14 w5"
    assert again.base.tokenizer.decode(prompt(turns, Template("chat"), again.base.tokenizer)) == "w21 w5"


# ---- a round that does not come to its end, in the same process (law 3)


@pytest.mark.parametrize("where", ["tuning", "scoring", "saving", "logging", "quorum"])
def test_a_round_that_fails_leaves_no_trace_in_the_same_process(table, whole, monkeypatch, where) -> None:
    """Going on with the same Run gives the bits of the run that nothing disturbed."""

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    run = open_run(table)
    rows = [next(run.rounds())[1]]
    before = dict(run.simulation.positions)
    with monkeypatch.context() as patched:
        if where == "tuning":
            patched.setattr(run_module.tune, "tune", _tuned_in_vain(run_module.tune.tune))
        elif where == "scoring":
            patched.setattr(run_module.score, "losses", fail)
        elif where == "saving":
            patched.setattr(checkpoint, "save", fail)
        elif where == "logging":
            patched.setattr(folder.RunFolder, "append", fail)
        else:
            patched.setattr("shepherd.rounds.acceptance.check_tensors", _refusing)
        expected = QuorumNotMet if where == "quorum" else KeyboardInterrupt
        with pytest.raises(expected):
            next(run.rounds())
    assert run.simulation.positions == before or where == "logging"
    rows += [row for _, row in run.rounds()]
    run.finish()
    assert weights(run.folder) == weights(whole[0])
    logged = [runs.without_times(row) for row in read_rows(run.folder)]
    assert logged == [runs.without_times(row) for row in read_rows(whole[0])]


@pytest.mark.parametrize(
    "where", ["shepherd.run.checkpoint.save", "shepherd.io.private.sync", "shepherd.run.log.append_row",
              "shepherd.federation.simulation.Simulation.commit"],
)  # fmt: skip
def test_an_interrupt_right_after_a_part_of_saving_loses_no_round_and_logs_none_twice(
    table, whole, monkeypatch, where
) -> None:
    name = where.rpartition(".")[2]
    owner = {"save": checkpoint, "sync": private, "append_row": run_log, "commit": Simulation}[name]
    honest = getattr(owner, name)

    def interrupted(*given: Any, **options: Any) -> None:
        honest(*given, **options)
        if name != "sync" or given[0].name == "checkpoints":
            raise KeyboardInterrupt

    run = open_run(table)
    next(run.rounds())
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            for _ in run.rounds():
                pass
    for _ in run.rounds():
        pass
    run.finish()
    assert weights(run.folder) == weights(whole[0])
    logged = [runs.without_times(row) for row in read_rows(run.folder)]
    assert logged == [runs.without_times(row) for row in read_rows(whole[0])]


def _refusing(*given: object) -> None:
    raise UpdateRefused("not today; ask again")


def _tuned_in_vain(honest: Any) -> Any:
    def tuned(*args: Any, **options: Any) -> None:
        honest(*args, **options)
        raise KeyboardInterrupt

    return tuned
