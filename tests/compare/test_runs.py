"""Finished runs side by side: of another rank, base or seed, on the examples that all held out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from shepherd.compare.runs import PER_CHARACTER, compare_runs
from shepherd.data import data_folder, dataset
from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.run import folder
from shepherd.run.answerer import adapter_of
from shepherd.run.loading import load_base
from shepherd.run.opening import open_run
from shepherd.training import score, tune
from shepherd.ui.cli import main as cli
from shepherd.ui.report import gather, page
from tests import runs
from tests.model import bases
from tests.ui.report.test_page import Outline


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def trained(llama_folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four runs on the same data: plain, of another rank and method, over another base, of another split."""
    place = tmp_path_factory.mktemp("runs")
    gpt2 = bases.save(bases.CONFIGS["gpt2"], place / "base")
    asked: dict[str, tuple[Path, dict[str, Any]]] = {
        "plain": (llama_folder, {"evaluation": {"answers": 3, "max_new_tokens": 3}}),
        "wide": (llama_folder, {"adapter": {"rank": 3}, "algorithm": {"name": "fedprox"}}),
        "gpt2": (gpt2, {"tuning": {"max_steps": 1}}),
        "other": (llama_folder, {"data": {"seed": 3}}),
    }
    for name, (base, tables) in asked.items():
        with open_run(
            runs.settings(base, source, place / name, **{"federation": {"rounds": 1}, **tables})
        ) as run:
            for _ in run.rounds():
                pass
            run.finish(answer=False)
    return {name: place / name for name in asked}


def test_runs_of_another_rank_method_and_base_are_compared(trained: dict[str, Path]) -> None:
    found = compare_runs([trained[name] for name in ("plain", "wide", "gpt2")])
    assert [arm["name"] for arm in found["arms"]] == ["plain", "wide", "gpt2"]
    assert {row["arm"] for row in found["differences"] if row["measure"] == "loss"} == {"wide", "gpt2"}
    prepared = data_folder.load(trained["wide"] / "data")
    assert found["loss_examples"] == len(prepared.heldout)
    assert found["questions"] == 3
    assert {"exact", "f1", "rouge_l", "loss"} <= set(found["arms"][0]["measures"])
    headline = found["says"][0]
    assert headline.startswith("By held-out loss")
    assert ", in this one training and on only " in headline
    assert "they saw unequal amounts: plain" in headline
    assert any("wide differs from plain in adapter.rank = 3 (not 2)" in said for said in found["says"])


def test_the_loss_is_that_of_each_runs_adapter_over_its_own_base(trained: dict[str, Path]) -> None:
    found = compare_runs([trained["plain"], trained["wide"]])
    for arm in found["arms"]:
        path = trained[arm["name"]]
        base, prepared = load_base(folder.planned(path)), data_folder.load(path / "data")
        sums = np.array(score.losses(base, [adapter_of(path, base)], prepared.heldout, micro_batch=99)[0])
        counts, named = tune.predictions(prepared.heldout), np.array(dataset.categories(prepared))
        means = [sums[named == name].sum() / counts[named == name].sum() for name in set(named)]
        assert arm["measures"]["loss"]["value"] == pytest.approx(np.mean(means), rel=1e-4)


def test_examples_that_one_run_may_have_trained_on_are_left_out_and_counted(trained: dict[str, Path]) -> None:
    held = {
        name: {example.instruction for example in data_folder.load(trained[name] / "data").heldout_examples}
        for name in ("plain", "other")
    }
    shared = held["plain"] & held["other"]
    pair = [trained["plain"], trained["other"]]
    if not shared:
        with pytest.raises(DataError, match="have no held-out example in common"):
            compare_runs(pair)
        return
    found = compare_runs(pair, ["evaluation.answers=0"])
    assert found["loss_examples"] == len(shared)
    left = len(held["plain"] | held["other"]) - len(shared)
    assert any(said.startswith(f"{left} example") for said in found["says"])


def test_what_cannot_be_compared_is_named(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="two finished runs or more"):
        compare_runs([trained["plain"]])
    with pytest.raises(SettingsError, match="named twice"):
        compare_runs([trained["plain"], trained["plain"]])
    with pytest.raises(FolderError, match="holds no run"):
        compare_runs([trained["plain"], tmp_path])
    with pytest.raises(SettingsError, match=r"'tuning.epochs=3' is not of \[evaluation\]"):
        compare_runs([trained["plain"], trained["wide"]], ["tuning.epochs=3"])
    begun = Path(shutil.copytree(trained["wide"], tmp_path / "begun"))
    shutil.rmtree(begun / "adapter")
    with pytest.raises(FolderError, match=r"begun is not finished; finish it with `shepherd resume"):
        compare_runs([trained["plain"], begun])
    (begun / folder.SILOS).write_text("{}")
    with pytest.raises(FolderError, match="is over silos"):
        compare_runs([trained["plain"], begun])


def test_the_page_of_runs_says_what_they_differ_in_and_nothing_of_arms(trained: dict[str, Path]) -> None:
    paths = [trained[name] for name in ("plain", "wide", "gpt2")]
    found = compare_runs(paths, ["evaluation.answers=2"])
    report = gather.collect_runs(paths, found)
    differing = {row["key"]: row["values"] for row in report["differing"]}
    assert differing["adapter.rank"] == ["2", "3", "2"]
    assert differing["algorithm.name"] == ['"fedavg"', '"fedprox"', '"fedavg"']
    assert "output" not in differing
    html = page.html(report)
    outline = Outline(html)
    assert outline.wrong == []
    text = next(each["text"] for each in outline.tagged("main"))
    for said in found["says"]:
        assert " ".join(said.replace("`", "").split()) in " ".join(text.split())
    assert "Which run does better?" in text
    assert "federated arm" not in text
    assert "Each was trained as its own run file says." in text
    by_character = page.measures_of({**report, "labels": {"loss": PER_CHARACTER.label}})["loss"]
    assert (by_character.label, by_character.unit.split(" of")[0]) == (
        "Held-out loss per character",
        "nats a character",
    )
    shown = [each for each in outline.all if "data-path" in each]
    assert len(shown) > 30
    for each in shown:
        value = report
        for key in each["data-path"].split("/")[1:]:
            value = value[int(key)] if isinstance(value, list) else value[key.replace("~1", "/")]
        assert json.loads(each["data-value"]) == value


def test_a_hostile_name_of_a_run_is_inert(trained: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained["wide"], tmp_path / "<img src=x onerror=alert(1)>\x1b[2J"))
    paths = [trained["plain"], other]
    html = page.html(gather.collect_runs(paths, compare_runs(paths, ["evaluation.answers=0"])))
    assert Outline(html).tagged("img", "script") == []
    assert "\x1b" not in html


def test_the_command_prints_a_table_and_writes_where_it_is_asked(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    before = sorted(path for path in trained["plain"].rglob("*"))
    words = ["compare", str(trained["plain"]), str(trained["wide"]), "evaluation.answers=0"]
    done = CliRunner().invoke(cli.main, [*words, "--output", str(tmp_path / "both.json")])
    assert done.exit_code == 0, done.output
    assert "plain" in done.stdout
    assert "/ arm, loss" in done.stdout
    assert (tmp_path / "both.json").is_file()
    assert sorted(path for path in trained["plain"].rglob("*")) == before
    html = tmp_path / "new" / "both.html"
    done = CliRunner().invoke(cli.main, [*words, "--html", str(html)])
    assert done.exit_code == 0, done.output
    assert f"wrote {html}" in done.stdout
    assert "2 finished runs, compared on the held-out examples that all of them have" in html.read_text()
    assert sorted(path for path in trained["plain"].rglob("*")) == before
    (tmp_path / "file").write_text("")
    for option, place in (("--html", "file/x.html"), ("--output", "file/x.json"), ("--output", "new")):
        refused = CliRunner().invoke(cli.main, [*words, option, str(tmp_path / place)])
        assert refused.exit_code == 2
        assert "scoring" not in refused.output  # it is refused before anything is scored
        assert f"{place} cannot be written (" in refused.output.replace("\n", "")
    refused = CliRunner().invoke(cli.main, [*words, "--seeds", "3"])
    assert refused.exit_code == 2
    assert "--seeds is for a run file" in refused.output
