"""Each benchmark that is a run, at its smallest: it ends well and its figures hang together."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    aggregating,
    common,
    compare,
    demo,
    dolly,
    drill,
    executors,
    generation,
    inversion,
    kill,
    methods,
    overhead,
    reading,
    scale,
    setting,
    stragglers,
    tasks,
    tuning,
    wire,
)
from benchmarks import bytes as of_bytes

Main = Callable[[Sequence[str]], int]


def _threads() -> list[str]:
    """Those of this process, which the other tests go on with."""
    return ["--threads", str(torch.get_num_threads())]


def _figures(main: Main, tmp_path: Path, *more: str, needs: str = "world") -> Any:
    try:
        setting.settings(needs)
    except common.Missing as missing:
        pytest.skip(f"{missing} is missing")
    file = tmp_path / "figures.json"
    assert main(["--quick", *_threads(), "--json", str(file), *more]) == 0
    return json.loads(file.read_text())["figures"]


def test_demo(tmp_path: Path) -> None:
    figures = _figures(demo.main, tmp_path)
    overall = figures["answers"].pop("all")
    assert len(figures["answers"]) == 8
    assert overall["examples"] == sum(each["examples"] for each in figures["answers"].values()) == 8
    assert figures["seconds"]["all"] > figures["seconds"]["rounds"] > 0


def test_compare(tmp_path: Path) -> None:
    figures = _figures(compare.main, tmp_path)
    names = [arm["name"] for arm in figures["arms"]]
    locals_ = [f"local-{name}" for name in compare.LOCALS["world"] or ()]
    assert names == ["base", *locals_, "centralised", "centralised-steps", "federated"]
    trained = {arm["name"]: arm["trained"] for arm in figures["arms"]}
    assert {trained[name]["steps"] for name in (*locals_, "centralised-steps", "federated")} == {2}
    assert trained["centralised"]["examples"] == trained["federated"]["examples"]
    assert figures["seconds"]["all"] > figures["seconds"]["alone"] > 0
    assert {row["arm"] for row in figures["differences"]} == {*names} - {"federated"}


def test_wire(tmp_path: Path) -> None:
    figures = _figures(wire.main, tmp_path)
    assert figures["message_bytes"] > figures["bytes"] == 2 * 8 * 16 * 4  # factors of rank 8 at (16, 16)
    assert all(each["least"] <= each["median"] <= each["most"] for each in figures["speeds"].values())


@pytest.mark.slow
def test_scale(tmp_path: Path) -> None:
    (case,) = _figures(scale.main, tmp_path)["cases"]
    assert case["visits"] == 2 * 2  # 2% of 100 clients in each of two rounds
    assert case["examples"] > 0
    assert case["overhead"] > 0
    assert case["peak"] > 1e8


@pytest.mark.slow
def test_tasks(tmp_path: Path) -> None:
    figures = _figures(tasks.main, tmp_path, "--on", "world")
    scores = {each["name"]: each for each in figures["scores"]}
    assert {"responses.acc", "responses.acc_norm", "flowertune.general"} <= scores.keys()
    assert all(each["arms"].keys() == {"base", "federated"} for each in scores.values())


def test_demo_of_no_run_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--run", str(tmp_path), *_threads()]) == 0
    assert capsys.readouterr().out.startswith(f"skipped: {tmp_path}")


@pytest.mark.slow
def test_aggregating(tmp_path: Path) -> None:
    few = ["--rules", "mean", "zero_padding", "--product-rules", "product", "florist", "side", "flora"]
    figures = _figures(aggregating.main, tmp_path, *few)
    rules = {cell["rule"] for cell in (*figures["streaming"], *figures["product"])}
    assert rules >= {"mean", "zero_padding", "product", "florist", "side", "flora"}
    assert all(cell["seconds"] > 0 for cell in (*figures["streaming"], *figures["product"]))
    assert all(cell["share_of_copy"] > 0 for cell in figures["streaming"] if cell["rule"] == "mean")


@pytest.mark.slow
def test_stragglers(tmp_path: Path) -> None:
    figures = _figures(stragglers.main, tmp_path)
    seconds = {way: each["clock_s"][-1] for way, each in figures["ways"].items()}
    assert seconds["waiting for all"] > seconds["dropping"]
    assert figures["ways"]["dropping"]["dropped"] == 2
    assert figures["ways"]["carrying"]["late"] == 1


def test_drill(tmp_path: Path) -> None:
    figures = _figures(drill.main, tmp_path)
    assert [(row["attack"], row["rule"]) for row in figures["rows"]] == [
        (attack, rule) for attack in ("none", "sign_flip") for rule in ("mean", "coordinate_median")
    ]
    assert len(figures["bad"]) == 2
    assert all(row["loss"] > 0 and row["failures"] == 0 for row in figures["rows"])


def test_overhead(tmp_path: Path) -> None:
    figures = _figures(overhead.main, tmp_path)
    seconds = figures["seconds"]
    assert (figures["rounds"], figures["clients_a_round"]) == (2, 10)
    assert seconds["wall"] == pytest.approx(seconds["tuning"] + seconds["scoring"] + seconds["overhead"])
    assert 0 < seconds["checkpoints"] < seconds["overhead"]
    assert min(seconds.values()) > 0


@pytest.mark.slow
def test_dolly(tmp_path: Path) -> None:
    figures = _figures(dolly.main, tmp_path, needs="dolly")
    assert [row["round"] for row in figures["rounds"]] == [0, 1, 2]
    assert figures["rounds"][2]["loss"] < figures["rounds"][0]["loss"]
    assert 0 < figures["rounds"][1]["coverage_min"] < figures["rounds"][2]["coverage_min"]


@pytest.mark.slow
def test_kill(tmp_path: Path) -> None:
    figures = _figures(kill.main, tmp_path)
    assert figures["kills"] == sum(figures["phases"].values()) == 4
    assert figures["rounds_lost"] == 0
    assert figures["runs_with"] == dict.fromkeys(("bits", "log", "losses"), figures["runs"])


@pytest.mark.slow
def test_tuning(tmp_path: Path) -> None:
    figures = _figures(tuning.main, tmp_path, "--llama-1b")
    assert figures["passed"]
    for side in figures["sides"].values():
        assert side["seconds"][0] * side["examples_per_second"] == pytest.approx(4)
        assert side["peak_bytes"] > 0


@pytest.mark.slow
def test_reading(tmp_path: Path) -> None:
    figures = _figures(reading.main, tmp_path, "--clients", "20")
    ours = figures["cases"]["200 clients of 5|shepherd"]
    assert ours["examples"] == figures["cases"]["200 clients of 5|json and tokenizer"]["examples"] == 1000
    assert set(ours["seconds"]) == set(reading.STEPS)
    assert all(seconds > 0 for seconds in ours["seconds"].values())


@pytest.mark.slow
def test_methods(tmp_path: Path) -> None:
    options = ["--keep", str(tmp_path / "kept"), "--methods", "central", "fedavg", "--seeds", "1"]
    figures = _figures(methods.main, tmp_path, *options, "--rates", "1", "2")
    rows = {row["method"]: row for row in figures["methods"]}
    assert rows["fedavg"]["examples"] == 1 * 6 * 1 * 2  # rounds, cohort, steps, batch
    assert rows["central"]["examples"] == 16  # whole batches of 8
    assert rows["central"]["of_central"]["value"] == 1.0 or not rows["central"]["right"]["value"]
    assert rows["fedavg"]["bytes"] > 0 == rows["central"]["bytes"]
    kept = {path.name for path in (tmp_path / "kept" / "world").iterdir()}
    assert kept == {f"{name}-{rate}-0.json" for name in ("central", "fedavg") for rate in (1, 2)}
    again = _figures(methods.main, tmp_path, *options, "--rates", "1", "2", "--table")
    assert again == figures


@pytest.mark.slow
def test_bytes(tmp_path: Path) -> None:
    names = ["fp32", "4 bits", "top 10 %"]
    options = ["--keep", str(tmp_path / "kept"), "--methods", *names, "--seeds", "1", "--budget", "0.2"]
    rows = {row["method"]: row for row in _figures(of_bytes.main, tmp_path, *options)["encodings"]}
    assert list(rows) == names
    assert rows["fp32"]["share"] == 1.0
    assert rows["fp32"]["at_budget"] is None
    assert rows["fp32"]["to_target"] == rows["fp32"]["bytes_up"]
    assert 1 / rows["4 bits"]["share"] == pytest.approx(32 / 4.25, rel=0.01)
    assert 1 / rows["top 10 %"]["share"] > 20
    assert rows["4 bits"]["at_budget"] > 0
    assert "against" in rows["top 10 %"]


@pytest.mark.slow
def test_inversion(tmp_path: Path) -> None:
    figures = _figures(inversion.main, tmp_path)
    cells = {(row["batch"], row["rank"]): row for row in figures["begun"]}
    assert cells[1, 64]["recall"] == cells[1, 64]["precision"] == 1.0
    assert cells[4, 4]["found"] == 0
    plain, noised, summed = figures["cases"]
    assert (plain["recall"], noised["recall"], noised["precision"]) == (1.0, 0.0, None)
    assert summed["batch_tokens"] > plain["batch_tokens"]
    assert summed["auc"] > noised["auc"]  # a sum is no noise


@pytest.mark.slow
def test_generation(tmp_path: Path) -> None:
    figures = _figures(generation.main, tmp_path, "--only", "16 prompts, one", needs="dolly")
    (case,) = figures["cases"].values()
    assert figures["decodes"]
    assert case["ratio"] > 0
    assert case["answer_tokens"][2] <= 8


@pytest.mark.ray
def test_executors(tmp_path: Path) -> None:
    figures = _figures(executors.main, tmp_path, "--on", "world")
    assert figures["passed"]
    assert figures["seconds"].keys() == {"worker processes", "Ray actors"}
