"""What a run is expected to take, against a run: the same plan, bytes and disk, from headers alone."""

from __future__ import annotations

import io
import json
import shutil

import pytest

from shepherd.data import pipeline
from shepherd.errors import ShepherdError
from shepherd.machine import memory
from shepherd.model import outline
from shepherd.overrides import parse
from shepherd.run import measured
from shepherd.run.forecast import _scored_examples, _Trial, forecast
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.training import score
from shepherd.ui.terminal.forecast_table import print_forecast
from tests import runs

UNEQUAL = {
    "aggregation": {"name": "product"},
    "adapter": {"rank": 4, "ranks": [2, 4]},
    "transforms": [{"name": "quantise", "bits": 8}],
    "selection": {"share": 1.0},
}


@pytest.fixture(scope="module")
def pair(llama_folder, tmp_path_factory):
    """A forecast over a base without weights, and the run itself, finished."""
    place = tmp_path_factory.mktemp("forecast")
    headers = place / "headers"
    shutil.copytree(llama_folder, headers, ignore=shutil.ignore_patterns("*.safetensors"))
    source = runs.written(place / "rows.jsonl")
    tables = {name: table for name, table in UNEQUAL.items() if name != "transforms"}
    given = runs.settings(llama_folder, source, place / "run", **tables)
    given = given.model_copy(update={"transforms": _transforms(given)})
    found = forecast(
        given.model_copy(update={"model": given.model.model_copy(update={"base": str(headers)})})
    )
    with open_run(given) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)
        plan, prepared = run.plan, run.prepared
    return found, plan, prepared, place / "run"


def _transforms(given):
    table = given.model_dump(exclude_defaults=True)
    return parse({**table, "transforms": UNEQUAL["transforms"]}).transforms


def test_the_plan_is_the_one_that_the_run_makes(pair) -> None:
    found, plan, _, _ = pair
    assert found.plan == plan


def test_amounts_are_those_of_the_data(pair) -> None:
    found, _, prepared, _ = pair
    tokens = sum(len(data.ids) for data in prepared.clients.values())
    assert found.examples == sum(len(data) for data in prepared.clients.values())
    assert found.tokens == tokens  # so few that all are in the sample
    assert (found.clients, found.cohort) == (4, 4)


def test_bytes_are_those_of_each_round_with_unequal_ranks_and_a_code(pair) -> None:
    found, _, _, folder = pair
    for row in read_rows(folder)[1:]:
        assert (found.bytes_down, found.bytes_up) == (row["bytes_down"], row["bytes_up"])


def test_the_run_folder_is_about_as_large_as_expected(pair) -> None:
    found, _, _, folder = pair
    tensors = sum(path.stat().st_size for path in folder.glob("checkpoints/*/tensors.safetensors"))
    assert found.disk.checkpoints == pytest.approx(tensors, rel=0.25)  # names and places besides
    tokens = sum(path.stat().st_size for path in folder.glob("data/**/*.npy"))
    assert found.disk.data == pytest.approx(tokens, rel=0.6)  # headers of 128 bytes, and JSON


def test_what_was_planned_is_kept_beside_what_was_measured(pair) -> None:
    found, _, _, folder = pair
    figures = {figure.name: figure for figure in measured.figures(folder, read_rows(folder))}
    sent = figures["received from clients, a round"]
    assert sent.planned == sent.measured == found.bytes_up
    assert sent.off == 0
    assert figures["tuning, a round"].measured > 0
    assert figures["peak memory"].planned > 0


def test_what_does_not_fit_says_what_to_change(pair, tmp_path) -> None:
    found, _, _, folder = pair
    assert found.fits
    assert not found.advice
    given = runs.settings(folder.parent / "headers", folder.parent / "rows.jsonl", tmp_path / "run")
    tight = forecast(given, available=1000)
    assert not tight.fits
    assert "smaller base" in tight.advice[-1]
    assert tight.plain()["fits"] is False


def test_a_base_of_which_not_even_a_trial_fits_is_not_made(pair, tmp_path, monkeypatch) -> None:
    _, _, _, folder = pair
    given = runs.settings(folder.parent / "headers", folder.parent / "rows.jsonl", tmp_path / "run")
    made = []
    monkeypatch.setattr(
        outline,
        "cut",
        lambda *args, device=None, real=outline.cut: (made.append(device), real(*args, device=device))[1],
    )
    found = forecast(given, available=memory.resident_bytes() + 1000)
    assert made == [outline.META]
    assert (found.tuning_seconds, found.scoring_seconds, found.seconds_a_round) == (None, None, None)
    assert not found.fits
    assert "the time is not known" in found.advice[0]
    assert json.loads(found.text())["tuning_seconds"] is None
    out = io.StringIO()
    print_forecast(found, out)
    assert "It does not fit." in out.getvalue()
    assert " down and " in out.getvalue()


def test_trials_that_do_not_fit_together_are_made_one_after_another(llama) -> None:
    made = []
    trial = _Trial(counts=(1, 2), whole=2, cut=lambda count: made.append(count) or llama, largest_bytes=10)
    assert trial.made(20).kept == [llama, llama]
    made.clear()
    assert trial.made(19).measured(lambda base: float(made[-1])) == 2.0
    assert made == [1, 2]


@pytest.mark.parametrize("bits", [32, 64])
def test_bytes_of_a_secure_sum_are_those_of_its_ring(llama_folder, tmp_path, bits) -> None:
    given = runs.settings(
        llama_folder,
        runs.written(tmp_path / "rows.jsonl"),
        tmp_path / "run",
        federation={"rounds": 1, "weights": "equal"},
        selection={"share": 1.0},
        tuning={"max_steps": 1},
    )
    coded = [{"name": "clip", "norm": 1.0}, {"name": "fixed_point"}]
    table = given.model_dump(exclude_defaults=True)
    given = parse({**table, "transforms": coded, "secure": {"ring_bits": bits}})
    found = forecast(given)
    with open_run(given) as run:
        for _ in run.rounds():
            pass
    row = read_rows(tmp_path / "run")[-1]
    assert (found.bytes_down, found.bytes_up) == (row["bytes_down"], row["bytes_up"])
    kept = json.loads((tmp_path / "run" / measured.EXPECTED).read_text())
    assert (kept["bytes_down"], kept["bytes_up"]) == (row["bytes_down"], row["bytes_up"])


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"evaluation": {"examples": 2}},
        {"evaluation": {"contribution": True}, "selection": {"share": 1.0}},
        {"algorithm": {"name": "fedsa_lora"}, "evaluation": {"clients": 3}},
        {"algorithm": {"name": "local_adapter"}},
    ],
)
def test_an_example_counts_as_often_as_it_is_scored(llama_folder, tmp_path, monkeypatch, tables) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    given = runs.settings(llama_folder, source, tmp_path / "run", **{"federation": {"rounds": 1}, **tables})
    scored, losses = [], score.losses

    def counted(base, adapters, data, **how):
        scored.append(len(data) * len(adapters))
        return losses(base, adapters, data, **how)

    with open_run(given) as run:
        monkeypatch.setattr(score, "losses", counted)
        for _ in run.rounds():
            pass
        method, cohort = run.method, run.selection.expected(len(run.prepared.clients))
    assert _scored_examples(given, method, pipeline.divide(given), cohort) == sum(scored)


def test_of_actors_on_many_nodes_each_node_holds_its_own(pair, tmp_path) -> None:
    """Eight actors with the only thread of a machine each are on eight; this one has one and the server."""
    _, _, _, folder = pair
    place = (folder.parent / "headers", folder.parent / "rows.jsonl", tmp_path / "run")
    alone = forecast(runs.settings(*place))
    spread = {"split": {"clients": 8}, "selection": {"share": 1.0}}
    given = runs.settings(*place, machine={"ray": {"actors": 8}, "stack_size": 1}, **spread)
    found = forecast(given)
    assert (found.plan.workers, found.nodes) == (8, 8)
    assert found.memory.process - alone.memory.process == pytest.approx(memory.PROCESS_BYTES, rel=0.2)
    assert found.memory.base == 2 * alone.memory.base
    tight = forecast(
        runs.settings(*place, machine={"ray": {"actors": 8}, "stack_size": 1}, **spread), available=1000
    )
    assert "machine.workers" not in " ".join(tight.advice)
    assert forecast(runs.settings(*place)).nodes == 0


def test_actors_that_share_a_node_are_told_to_take_one_each(pair, tmp_path) -> None:
    _, _, _, folder = pair
    spread = {"split": {"clients": 8}, "selection": {"share": 1.0}}
    given = runs.settings(
        folder.parent / "headers",
        folder.parent / "rows.jsonl",
        tmp_path / "run",
        machine={"ray": {"actors": 8}, "threads": 2, "stack_size": 1},
        **spread,
    )
    found = forecast(given)
    assert found.nodes == 4
    needed = found.memory.total - memory.PROCESS_BYTES // 2  # one actor a node fits
    tight = forecast(given, available=needed)
    assert tight.advice[0].startswith("set machine.ray.cpus = 2, which takes")
    cpus = given.machine.ray.model_copy(update={"cpus": 2})
    wider = given.model_copy(update={"machine": given.machine.model_copy(update={"ray": cpus})})
    assert forecast(wider, available=needed).fits


def test_the_run_counts_its_memory_as_the_plan_does(llama_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "process_bytes", lambda base: 0)
    given = runs.settings(llama_folder, runs.written(tmp_path / "rows.jsonl"), tmp_path / "run")
    found = forecast(given).memory
    with open_run(given):
        kept = json.loads((tmp_path / "run" / measured.EXPECTED).read_text())
    assert found.server > 0
    assert kept["memory_bytes"] == found.total - found.process


def test_an_algorithm_that_a_run_refuses_is_refused(llama_folder, tmp_path) -> None:
    given = runs.settings(
        llama_folder,
        runs.written(tmp_path / "rows.jsonl"),
        tmp_path / "run",
        algorithm={"name": "scaffold"},
        federation={"weights": "equal"},
    )
    with pytest.raises(ShepherdError, match=r"plain SGD"):
        forecast(given)


@pytest.mark.parametrize(
    "tables",
    [
        {"privacy": {"epsilon": 1.0}, "transforms": [{"name": "gaussian", "noise": 0.3}]},
        {"privacy": {"epsilon": 1.0, "examples": {"norm": 1.0, "noise": 0.3}}},
    ],
    ids=["clients", "examples"],
)
def test_a_run_that_would_spend_too_much_privacy_is_refused(llama_folder, tmp_path, tables) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    poisson = {"federation": {"weights": "equal"}, "selection": {"name": "poisson", "share": 0.5}}
    plain = runs.settings(llama_folder, source, tmp_path / "run", **poisson)
    given = parse({**plain.model_dump(), **tables})
    with pytest.raises(ShepherdError, match=r"would spend epsilon .* privacy\.epsilon"):
        forecast(given)


def test_noise_on_pairs_of_answers_is_refused_as_by_the_run(llama_folder, tmp_path) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    plain = runs.settings(llama_folder, source, tmp_path / "run", federation={"weights": "equal"})
    asked = {"privacy": {"examples": {"norm": 1.0, "noise": 1.0}}, "tuning": {"objective": {"name": "dpo"}}}
    with pytest.raises(ShepherdError, match="protects single examples"):
        forecast(parse({**plain.model_dump(), **asked}))


def test_a_mistake_is_reported_as_by_a_run(llama_folder, tmp_path) -> None:
    given = runs.settings(llama_folder, tmp_path / "none.jsonl", tmp_path / "run")
    with pytest.raises(ShepherdError, match=r"none\.jsonl"):
        forecast(given)
    assert not (tmp_path / "run").exists()


def test_a_value_of_few_layers_is_drawn_out_to_all() -> None:
    """5 for what is outside the layers and 2 for each: 5 + 2 * 30."""
    assert _Trial(cut=None, largest_bytes=0, counts=(2, 6), whole=30).extrapolated([9.0, 17.0]) == 65.0
    assert _Trial(cut=None, largest_bytes=0, counts=(2, 6), whole=30).extrapolated([9.0, 8.0]) == 8.0  # noise
    assert _Trial(cut=None, largest_bytes=0, counts=(4,), whole=4).extrapolated([3.0]) == 3.0
