"""Whole runs on pairs of answers: what a round says, resuming with the same bits, and stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shepherd.core import Adapter
from shepherd.data import data_folder, dataset, pipeline
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.model import files
from shepherd.overrides import overridden, parse, plain, read
from shepherd.run import checkpoint, folder, stages
from shepherd.run.evaluation import evaluate_run
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.settings import RunSettings
from shepherd.training import score
from tests import preferences, runs
from tests.model import bases


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("pairs") / "rows.jsonl", preferences.rows())


def trained(settings: RunSettings) -> Adapter:
    with open_run(settings) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)
        return run.state.adapter


def ended(path: Path) -> Adapter:
    """The adapter of a run's last checkpoint."""
    last = checkpoint.latest(path / "checkpoints")
    assert last is not None
    return checkpoint.load(last).state.adapter


def margins(base: Any, adapter: Adapter, reference: Adapter, path: Path, beta: float) -> np.ndarray:
    """The implicit reward margins of the held-out pairs, one answer at a time."""
    prepared = data_folder.load(path / "data")

    def sums(data: Tokens) -> np.ndarray:
        now, then = -score.losses(base, [adapter, reference], data, micro_batch=64)
        return now - then

    return beta * (sums(prepared.heldout) - sums(prepared.heldout_rejected))


@pytest.fixture(scope="module")
def done(llama_folder, source, tmp_path_factory) -> tuple[Path, Adapter]:
    place = tmp_path_factory.mktemp("dpo") / "run"
    return place, trained(preferences.settings(llama_folder, source, place))


def test_a_round_says_what_is_preferred_and_the_loss_of_the_pairs(done, llama_folder) -> None:
    place, adapter = done
    rows = read_rows(place)
    before = rows[0]["heldout"]["preference"]
    assert (before["accuracy"], before["margin"]) == (0.5, 0.0)
    base = bases.load(llama_folder, rank=2, alpha=16)
    found = margins(base, adapter, base.zero, place, beta=0.5)
    by = np.array(dataset.categories(data_folder.load(place / "data")))
    after = rows[-1]["heldout"]["preference"]
    for name in set(by):
        own = found[by == name]
        assert after["category"][name]["margin"] == pytest.approx(own.mean(), abs=1e-4)
        assert after["category"][name]["accuracy"] == pytest.approx((own > 0).mean())
    assert after["margin"] == pytest.approx(np.mean([found[by == n].mean() for n in set(by)]), abs=1e-4)
    # the first step's pairs have the loss log 2, and later ones less on the pairs that are trained on
    assert 0 < rows[1]["loss"] < 1.2 * np.log(2)
    assert 12 < rows[1]["examples"] <= 16  # pairs: two clients, two steps of four or an epoch's rest


def test_a_stopped_run_resumes_with_the_same_bits(done, llama_folder, source, tmp_path) -> None:
    _, whole = done
    with open_run(preferences.settings(llama_folder, source, tmp_path / "run")) as run:
        next(run.rounds())
    with resume(tmp_path / "run") as run:
        for _ in run.rounds():
            pass
        assert run.state.adapter == whole


def test_a_file_of_pairs_is_scored_by_what_base_and_run_prefer(done, llama_folder, tmp_path) -> None:
    place, adapter = done
    file = runs.written(tmp_path / "test.jsonl", preferences.rows(15, seed=9))
    found = evaluate_run(place, file)
    assert [each.measure.name for each in found.scored] == ["loss", "preference", "margin"]
    _, accuracy, margin = found.scored
    assert (accuracy.base.value, margin.base.value) == (0.5, 0.0)
    base = bases.load(llama_folder, rank=2, alpha=16)
    held = pipeline.only_scored(
        pipeline.test_set(folder.planned(place).data, str(file), "--data"),
        folder.planned(place),
        base.tokenizer,
        paired=True,
    )
    sums = [
        score.losses(base, [base.zero, adapter], each, micro_batch=64)
        for each in (held.heldout, held.heldout_rejected)
    ]
    own = 0.5 * (sums[0][0] - sums[0][1] - sums[1][0] + sums[1][1])
    by = np.array(dataset.categories(held))
    assert margin.run.value == pytest.approx(np.mean([own[by == n].mean() for n in set(by)]), abs=1e-4)
    assert accuracy.run.value == pytest.approx(np.mean([(own[by == n] > 0).mean() for n in set(by)]))


def test_pairs_are_kept_as_pairs(done) -> None:
    prepared = data_folder.load(done[0] / "data")
    assert prepared.rejected.keys() == prepared.clients.keys()
    for name, data in prepared.trained_on.items():
        assert len(data) == 2 * len(prepared.clients[name])
        for i in range(len(prepared.clients[name])):
            for side, part in enumerate((prepared.clients[name], prepared.rejected[name])):
                np.testing.assert_array_equal(data.example(2 * i + side)[0], part.example(i)[0])
    assert len(prepared.heldout) == len(prepared.heldout_rejected) == len(prepared.heldout_examples)
    assert all(example.rejected for example in prepared.heldout_examples)


def test_supervised_tuning_on_pairs_trains_the_chosen_answers_and_says_so(
    llama_folder, source, tmp_path, caplog
) -> None:
    settings = runs.settings(llama_folder, source, tmp_path / "run", federation={"rounds": 1})
    with caplog.at_level("INFO", logger="shepherd"), open_run(settings) as run:
        assert not run.prepared.rejected
    assert "36 examples have a rejected answer each, which this objective does not use" in caplog.text


def test_data_without_pairs_are_refused_by_an_objective_of_pairs(llama_folder, tmp_path) -> None:
    plain_rows = runs.written(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"keeps no example.*it has no rejected answer"):
        open_run(preferences.settings(llama_folder, plain_rows, tmp_path / "run"))


# --- stages


def staged(base: Path, source: Path, output: Path) -> RunSettings:
    """One round of supervised tuning on the chosen answers, then two of DPO at another rate."""
    table = plain(preferences.settings(base, source, output))
    first = {
        "name": "sft",
        "federation": {"rounds": 1},
        "tuning": {"objective": {"name": "sft"}, "learning_rate": 0.02},
    }
    return parse({**table, "stages": [first, {"name": "dpo", "tuning": {"learning_rate": 0.003}}]})


@pytest.fixture(scope="module")
def two(llama_folder, source, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("stages") / "run"
    for run in stages.open_stages(staged(llama_folder, source, place)):
        with run:
            for _ in run.rounds():
                pass
            run.finish(answer=False)
    return place


def test_each_stage_is_a_run_from_the_adapter_of_the_one_before(two, llama_folder, source, tmp_path) -> None:
    first, last = (folder.read_settings(path) for path in (two / "stages" / "01-sft", two))
    assert (first.tuning.objective.name, first.tuning.learning_rate, first.federation.rounds) == (
        "sft",
        0.02,
        1,
    )
    assert (last.tuning.objective.own, last.tuning.learning_rate) == (
        {"beta": 0.5, "label_smoothing": 0.0},
        0.003,
    )
    base = bases.load(llama_folder, rank=2, alpha=16)
    end = ended(two / "stages" / "01-sft")
    assert files.read(two / "start", base) == end
    # the same, as two runs of which the second starts from the first one's folder
    assert last.adapter.start == str(two / "stages" / "01-sft")
    assert trained(overridden(last, [f"output={tmp_path / 'run'}"])) == ended(two)


def test_the_reference_of_a_later_stage_is_the_adapter_that_it_began_from(two, llama_folder) -> None:
    base = bases.load(llama_folder, rank=2, alpha=16)
    start, end = files.read(two / "start", base), ended(two)
    rows = read_rows(two)
    assert rows[0]["heldout"]["preference"]["margin"] == 0.0
    by = np.array(dataset.categories(data_folder.load(two / "data")))
    found = margins(base, end, start, two, beta=0.5)
    expected = np.mean([found[by == name].mean() for name in set(by)])
    assert rows[-1]["heldout"]["preference"]["margin"] == pytest.approx(expected, abs=1e-4)


def test_stages_that_were_stopped_continue_with_the_same_bits(two, llama_folder, source, tmp_path) -> None:
    settings = staged(llama_folder, source, tmp_path / "run")
    first = next(stages.open_stages(settings))
    with first:
        for _ in first.rounds():
            pass  # killed before it finished
    shutil.rmtree(first.folder / "adapter", ignore_errors=True)
    opened = 0
    for run in stages.open_stages(stages.of_folder(tmp_path / "run")):
        with run:
            opened += 1
            for _ in run.rounds():
                if opened == 2:
                    break
            else:
                run.finish(answer=False)
        if opened == 2:
            break
    for run in stages.open_stages(settings):
        with run:
            for _ in run.rounds():
                pass
            run.finish(answer=False)
    assert ended(tmp_path / "run") == ended(two)
    assert list(stages.open_stages(settings)) == []


def test_what_all_stages_share_cannot_differ(llama_folder, source, tmp_path) -> None:
    table = plain(preferences.settings(llama_folder, source, tmp_path / "run"))

    def of(*given: dict[str, Any]) -> tuple[RunSettings, ...]:
        return stages.settings_of(parse({**table, "stages": list(given)}))

    with pytest.raises(SettingsError, match="stage 2 of 2 sets adapter, which all stages share"):
        of({}, {"adapter": {"rank": 4}})
    with pytest.raises(SettingsError, match=r"stage 1 of 1: unknown key tuning\.rate"):
        of({"tuning": {"rate": 1.0}})
    assert of({})[0].output == str(tmp_path / "run")
    with pytest.raises(SettingsError, match=r"\[\[stages\]\], which are one run each"):
        open_run(parse({**table, "stages": [{}]}))


def test_other_stages_do_not_begin_where_stages_have_begun(two, llama_folder, source) -> None:
    other = staged(llama_folder, source, two)
    with pytest.raises(FolderError, match="holds a run with other stages"):
        stages.begin(overridden(other, ["seed=7"]))


def test_a_path_in_a_stage_is_relative_to_the_run_file(tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "run.toml").write_text(
        '[model]\nbase = "tiny"\n[data]\nsource = "world"\n[[stages]]\n'
        '[[stages]]\ndata.source = "pairs.jsonl"\n'
    )
    first, second = stages.settings_of(read(tmp_path / "run.toml"))
    assert first.data.source == "world"
    assert second.data.source == str(tmp_path / "pairs.jsonl")
    assert json.loads(json.dumps(plain(second)))["stages"] == []
