"""`shepherd merge`: what is read, what is written, and what takes the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from shepherd.compare.runs import compare_runs
from shepherd.core.factor_gap import pairs
from shepherd.errors import AdapterError, BaseError, DataError, FolderError, SettingsError
from shepherd.model import files, mixing
from shepherd.run import starting
from shepherd.run.evaluation import evaluate_run
from shepherd.run.mix import mix
from shepherd.run.opening import open_run
from shepherd.ui.chat.answering import open_chat
from shepherd.ui.cli import export_commands
from shepherd.ui.cli.main import main
from shepherd.ui.report.writing import write_runs
from tests import runs
from tests.model import bases


@pytest.fixture(scope="module")
def two(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs on the same data, of other seeds."""
    place = tmp_path_factory.mktemp("two")
    source = runs.written(place / "rows.jsonl")
    made = []
    for seed in (0, 1):
        given = runs.settings(
            llama_folder, source, place / f"run-{seed}", federation={"rounds": 1}, data={"seed": 0}
        )
        with open_run(given.model_copy(update={"seed": seed})) as run:
            for _ in run.rounds():
                pass
            run.finish(answer=False)
        made.append(run.folder)
    return made[0], made[1]


@pytest.fixture(scope="module")
def merged(two: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mix(two, tmp_path_factory.mktemp("merged") / "both", weights=[0.75, 0.25])


def products(place: Path, base: Any) -> dict[str, Any]:
    adapter = files.read(place, base)
    return {pair.a: adapter[pair.b].astype(float) @ adapter[pair.a] for pair in pairs(adapter)}


def test_the_result_is_a_peft_folder_with_the_sum(two: Any, merged: Path, llama_folder: Path) -> None:
    base = bases.load(llama_folder, rank=2, alpha=16.0, rank_stabilised=False)
    first, second, both = (
        products(place, base) for place in (two[0] / "adapter", two[1] / "adapter", merged)
    )
    for name, product in both.items():
        np.testing.assert_allclose(product, 0.75 * first[name] + 0.25 * second[name], atol=1e-6)
    assert files.read_config(merged).rank == 4
    card = ModelCard((merged / "README.md").read_text())
    assert card.data.tags == ["lora", "merge"]
    digest = starting.source_of(two[0])["sha256"]
    assert f"| `run-0` | 0.75 | `{digest}` |" in card.text
    assert str(two[0].parent) not in card.content


def test_the_command_merges_and_cuts(two: Any, tmp_path: Path) -> None:
    words = ["merge", *map(str, two), "-o", str(tmp_path / "out"), "--rank", "2", "--weight", "1"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "there are 2 adapters and 1 weights" in done.output
    done = CliRunner().invoke(main, [*words, "--weight", "-0.5"])
    assert (done.exit_code, done.output) == (0, f"wrote {tmp_path / 'out'}\n")
    assert files.read_config(tmp_path / "out").rank == 2


def test_the_command_offers_the_ways_that_there_are() -> None:
    (how,) = (each for each in export_commands.merge.params if each.name == "how")
    assert list(how.type.choices) == list(mixing.WAYS)  # type: ignore[attr-defined]


def test_the_result_stands_as_an_arm_of_compare_evaluate_and_chat(
    two: Any, merged: Path, tmp_path: Path
) -> None:
    found = compare_runs([two[0], merged, two[1]], ["evaluation.answers=3", "evaluation.max_new_tokens=4"])
    assert [arm["name"] for arm in found["arms"]] == ["run-0", "both", "run-1"]
    assert found["arms"][1]["trained"] is None
    assert any("both is an adapter without a run" in sentence for sentence in found["says"])
    page = write_runs(tmp_path / "page.html", [two[0], merged, two[1]], found).read_text()
    assert "both" in page

    test = runs.written(tmp_path / "test.jsonl", runs.rows(9, seed=5))
    row = evaluate_run(two[0], test, adapter=merged).row()
    own = evaluate_run(two[0], test).row()
    assert (row["run"], own["run"]) == (str(merged), str(two[0]))
    loss, base = (row["measures"][0][of]["value"] for of in ("run", "base"))
    assert loss != own["measures"][0]["run"]["value"]
    assert base == own["measures"][0]["base"]["value"]

    linear = mix(two, tmp_path / "linear", "linear")
    chat = open_chat(two[0], adapters=[linear, merged])
    (*_, texts) = chat.answer("w5 w6", arms=["federated", "linear", "both"], max_new_tokens=3)
    assert set(texts) == {"federated", "linear", "both"}
    with pytest.raises(DataError, match="two arms are called 'linear'"):
        open_chat(two[0], adapters=[linear, shutil.copytree(linear, tmp_path / "other" / "linear")])


def test_a_run_can_begin_with_the_result(two: Any, llama_folder: Path, tmp_path: Path) -> None:
    cut = mix(two, tmp_path / "cut", rank=2)
    source = two[0].parent / "rows.jsonl"
    given = runs.settings(llama_folder, source, tmp_path / "run", adapter={"start": str(cut)})
    with open_run(given) as run:
        assert run.state.adapter == files.read(cut, run.base)


def test_folders_alone_are_of_the_base_that_they_name(two: Any, tmp_path: Path, llama_folder: Path) -> None:
    places = [shutil.copytree(run / "adapter", tmp_path / run.name) for run in two]
    assert files.read_config(mix(places, tmp_path / "out", "ties", density=0.5)).rank == 2
    config = json.loads((places[0] / files.CONFIG).read_text())
    (places[0] / files.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "them/theirs"}))
    with pytest.raises(BaseError, match=r"base 'them/theirs', which is no folder here; .* --base"):
        mix(places, tmp_path / "no")
    mix(places, tmp_path / "said", base=str(llama_folder))
    assert (tmp_path / "said" / "README.md").is_file()


def test_what_cannot_be_merged_is_refused_before_anything_is_written(
    two: Any, tmp_path: Path, llama_folder: Path
) -> None:
    out = tmp_path / "out"
    for places, how, keys, error, said in (
        (two, "mean", {}, SettingsError, "no way called 'mean' to merge; there are product, linear, ties"),
        (two, "ties", {"density": 0.0}, SettingsError, "density is 0; give a share above 0"),
        (two, "product", {"weights": [1.0, 0.0]}, SettingsError, "a weight is 0 or not finite"),
        (two, "product", {"base": "tiny"}, SettingsError, "says which base it is of; leave out the base"),
        ([tmp_path], "product", {}, AdapterError, "holds no adapter"),
        (two, "linear", {"rank": 2}, AdapterError, 'rank is for "product" alone'),
    ):
        with pytest.raises(error, match=said):
            mix(places, out, how, **keys)  # type: ignore[arg-type]
        assert not out.exists()
    other = bases.save(bases.CONFIGS["llama"], tmp_path / "base", seed=1)
    strange = bases.load(other, rank=2)
    files.write(tmp_path / "strange", bases.random_adapter(strange, 0), strange)
    with pytest.raises(AdapterError, match="was made for another base"):
        mix([two[0], tmp_path / "strange"], out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(FolderError, match="is not empty"):
        mix(two, tmp_path / "full")
