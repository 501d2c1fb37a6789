"""A comparison on a tiny base: each arm as it would be alone, nothing made twice, numbers recomputed."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shepherd.algorithms import fedavg
from shepherd.compare import comparison, scoring, training
from shepherd.compare.arms import CompareSpec, arms
from shepherd.compare.comparison import compare
from shepherd.config import PartTable
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Broadcast, seed_for
from shepherd.data import cursor, data_folder, dataset, pipeline
from shepherd.errors import DataError, FolderError, PluginError, SettingsError, ShepherdError
from shepherd.evaluate import text
from shepherd.io.lock import is_held
from shepherd.machine import plan as plans
from shepherd.machine.executors import Inline
from shepherd.model import files, lora
from shepherd.overrides import overridden
from shepherd.run import folder
from shepherd.run.answerer import adapter_of
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.settings import CompareTable, RunSettings, SplitTable
from shepherd.training import score, tune
from shepherd.training.tune import Visit
from shepherd.ui import report
from shepherd.ui.report import collect
from shepherd.ui.terminal.comparison_table import print_comparison
from tests import runs
from tests.model import bases

ASKED = CompareSpec(
    locals=("client-1", "client-2"), variants=("ffa: algorithm.name=ffa_lora",), match="steps", seeds=2
)
ARMS = ["base", "local-client-1", "local-client-2", "centralised", "federated", "ffa"]
STEPS = 4  # two rounds of two steps


def table(base: Path, source: Path, output: Path) -> RunSettings:
    return runs.settings(
        base,
        source,
        output,
        adapter={"dropout": 0.0, "alpha": 4},
        federation={"rounds": 2},
        tuning={"max_steps": 2, "round_schedule": "linear"},
        evaluation={"answers": 6, "max_new_tokens": 4},
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def made(llama_folder, source, tmp_path_factory) -> tuple[RunSettings, dict[str, Any]]:
    settings = table(llama_folder, source, tmp_path_factory.mktemp("compared") / "run")
    return settings, compare(settings, ASKED)


@pytest.fixture
def copied(made, tmp_path) -> RunSettings:
    shutil.copytree(made[0].output, tmp_path / "run")
    return made[0].model_copy(update={"output": str(tmp_path / "run")})


def base_of(settings: RunSettings) -> Any:
    return bases.load(Path(settings.model.base), rank=2, alpha=4)


def arm(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["arms"] if each["name"] == name)


def test_all_arms_are_there_with_an_interval_beside_every_number(made) -> None:
    settings, found = made
    assert [each["name"] for each in found["arms"]] == ARMS
    assert found == json.loads((Path(settings.output) / "compare" / "comparison.json").read_text())
    assert found["seeds"] == [0, 1]
    for each in found["arms"]:
        assert set(each["measures"]) == {"loss", "exact", "f1", "rouge_l"}  # these data have no checks
        for interval in each["measures"].values():
            assert interval["low"] <= interval["value"] <= interval["high"]
        assert set(each["category"]["loss"]) == set(runs.CATEGORIES)
    assert {row["arm"] for row in found["differences"]} == set(ARMS) - {"federated"}
    assert len(found["samples"]) == 6
    assert set(found["samples"][0]["answers"]) == set(ARMS)


def test_every_tuned_arm_took_as_many_steps(made) -> None:
    _, found = made
    assert arm(found, "base")["trained"] is None
    for name in ARMS[1:]:
        assert arm(found, name)["trained"]["steps"] == STEPS
    assert arm(found, "local-client-1")["trained"]["examples"] <= STEPS * 4
    assert arm(found, "federated")["trained"]["examples"] > STEPS * 4


def test_the_first_sentence_says_how_many_examples_each_arm_saw(made) -> None:
    _, found = made
    saw = {name: arm(found, name)["trained"]["examples"] for name in ARMS[1:]}
    locals_ = sorted(saw[name] for name in ("local-client-1", "local-client-2"))
    assert found["says"][0] == (
        f"federated saw {saw['federated']} examples, those of its clients side by side, in 4 optimiser steps"
        f" one after another; local-client-1 and local-client-2 {locals_[0]} to {locals_[1]} each in 4 steps;"
        f" centralised {saw['centralised']} in 4 steps; ffa {saw['ffa']} in 4 steps."
    )


def test_the_headline_says_how_few_questions_there_are_and_who_saw_another_amount(made) -> None:
    _, found = made
    headline = next(sentence for sentence in found["says"] if sentence.startswith("By "))
    assert f"By held-out loss, on only {found['loss_examples']} examples, federated" in headline
    assert f"they saw unequal amounts: federated {arm(found, 'federated')['trained']['examples']}" in headline
    assert "centralised" in headline.partition("unequal amounts")[2]


def test_by_default_the_centralised_arm_is_trained_both_ways(llama_folder, source, tmp_path) -> None:
    found = compare(table(llama_folder, source, tmp_path / "run"), CompareSpec(locals=("client-1",)))
    assert found["match"] == "both"
    assert [each["name"] for each in found["arms"]] == [
        "base", "local-client-1", "centralised", "centralised-steps", "federated",
    ]  # fmt: skip
    trained = {each["name"]: each["trained"] for each in found["arms"]}
    assert trained["centralised"]["examples"] == trained["federated"]["examples"]
    assert trained["centralised-steps"]["steps"] == trained["local-client-1"]["steps"] == STEPS
    assert trained["centralised"]["steps"] > STEPS
    said = [sentence for sentence in found["says"] if "comes to" in sentence]
    for name in ("centralised", "centralised-steps"):
        assert any(f" of {name} (" in sentence for sentence in said)
    assert set(arm(found, "centralised-steps")["categories"]) == set(runs.CATEGORIES)


def test_arms_matched_by_examples_have_the_batches_and_the_rate_of_compare(
    llama_folder, source, tmp_path
) -> None:
    asked = table(llama_folder, source, tmp_path / "run")
    spec = CompareSpec(locals=("client-1",))
    own = asked.model_copy(update={"compare": CompareTable(batch_size=2, learning_rate=1e-3)})
    found = compare(own, spec)
    trained = {each["name"]: each["trained"] for each in found["arms"]}
    central = trained["centralised"]
    assert central["examples"] == trained["federated"]["examples"]
    assert central["steps"] == central["examples"] / 2
    assert trained["local-client-1"]["examples"] <= STEPS * 4  # matched by steps: batches of 4 as before
    assert found["says"][1] == (
        "As [compare] says, centralised took 2 examples a step at a learning rate of 0.001, the others 4 at"
        f" {asked.tuning.learning_rate:g}."
    )
    with pytest.raises(FolderError, match=r"another \[compare\] in the run file"):
        compare(asked, spec)


def test_a_local_arm_is_what_its_client_would_tune_alone(made) -> None:
    """Against model.tune itself, one client and no cohort; its rate falls over the whole visit."""
    settings, _ = made
    run, base = Path(settings.output), base_of(settings)
    data = data_folder.load(run / "data").clients["client-1"]
    order = seed_for(settings.seed, "order", "local-client-1")
    steps, _ = cursor.visit(len(data), 0, max_steps=STEPS, batch_size=4, seed=order)
    first = lora.fresh(base.targets, 2, seed_for(settings.seed, "adapter"))
    once = settings.tuning.model_copy(update={"schedule": "linear"})
    (alone,) = bases.tuned(
        base,
        Broadcast(round=0, adapter=first, seed=0),
        fedavg.ALGORITHM,
        [Visit(client="alone", data=data, batches=steps)],
        once,
        learning_rate=once.learning_rate,
        micro_batch_tokens=2048,
    )
    kept = files.read(run / "compare" / "seed-0" / "local-client-1", base)
    for name, tensor in kept.items():
        np.testing.assert_allclose(tensor - first[name], alone.delta[name], atol=2e-4, err_msg=name)


def test_the_centralised_arm_saw_everybodys_data(made) -> None:
    settings, found = made
    prepared = data_folder.load(Path(settings.output) / "data")
    together = training._dataset(_arm("centralised"), prepared.trained_on)
    assert len(together) == sum(len(data) for data in prepared.clients.values())
    every = [tuple(data.example(i)[0]) for data in prepared.clients.values() for i in range(len(data))]
    assert [tuple(together.example(i)[0]) for i in range(len(together))] == every
    total = sum(arm(found, "centralised")["categories"].values())
    assert total == len(together)


def _arm(kind: Any) -> Any:
    return comparison.Arm(name=kind, kind=kind)


def test_the_losses_are_those_of_the_adapters_on_the_held_out_examples(made) -> None:
    settings, found = made
    run, base = Path(settings.output), base_of(settings)
    held = data_folder.load(run / "data")
    named = dataset.categories(held)
    adapters = {
        "base": Adapter({name: np.zeros(shape) for name, shape in base.shapes.items()}),
        "federated": adapter_of(run, base),
        "centralised": files.read(run / "compare" / "seed-0" / "centralised", base),
    }
    counts = tune.predictions(held.heldout)
    for name, adapter in adapters.items():
        scores = json.loads((run / "compare" / "seed-0" / "scores" / f"{name}.json").read_text())
        (sums,) = score.losses(base, [adapter], held.heldout, micro_batch=512)
        np.testing.assert_allclose(scores["losses"], sums, rtol=1e-4)
        if name == "base":  # the same for every seed: the table's number by hand
            means = [
                sums[[n == c for n in named]].sum() / counts[[n == c for n in named]].sum()
                for c in runs.CATEGORIES
            ]
            assert arm(found, name)["measures"]["loss"]["value"] == pytest.approx(np.mean(means), rel=1e-4)


def test_answers_are_scored_against_the_reference(made) -> None:
    settings, _ = made
    run = Path(settings.output)
    held = data_folder.load(run / "data").heldout_examples
    scores = json.loads((run / "compare" / "seed-0" / "scores" / "centralised.json").read_text())
    for place, answer in zip(scores["questions"]["answers"], scores["answers"], strict=True):
        assert answer["right"] is None
        given = answer["text"], held[place].response
        expected = {name: getattr(text, name)(*given) for name in ("exact", "f1", "rouge_l")}
        assert {name: answer[name] for name in expected} == expected


def test_seeds_share_data_and_questions_and_nothing_else(made) -> None:
    run = Path(made[0].output)
    again = run / "compare" / "seed-1" / "federated"
    assert folder.read_settings(again).seed == 1
    ours, theirs = data_folder.load(run / "data"), data_folder.load(again / "data")
    assert {n: d.ids.tolist() for n, d in ours.clients.items()} == {
        n: d.ids.tolist() for n, d in theirs.clients.items()
    }
    assert ours.heldout_examples == theirs.heldout_examples
    base = base_of(made[0])
    for name in ("federated", "ffa", "local-client-1", "centralised"):
        one = run if name == "federated" else run / "compare" / "seed-0" / name
        other = run / "compare" / "seed-1" / name
        read = adapter_of if folder.is_run(other) else files.read
        assert read(one, base) != read(other, base)


def test_a_variant_is_a_run_with_its_override(made) -> None:
    path = Path(made[0].output) / "compare" / "seed-0" / "ffa"
    assert folder.read_settings(path).algorithm.name == "ffa_lora"
    assert folder.read_settings(path).seed == made[0].seed


def test_what_is_there_is_not_made_again(copied, made, monkeypatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(training, "open_run", never)
    monkeypatch.setattr(training, "resume", never)
    monkeypatch.setattr(training.Simulation, "run_groups", never)
    monkeypatch.setattr("shepherd.compare.scoring.score_one", never)
    found = compare(copied, ASKED)
    assert {**found, "seconds": 0} == {**made[1], "seconds": 0}


def test_a_comparison_of_an_earlier_version_is_gone_on_with(copied, made, monkeypatch) -> None:
    """Its runs have no plan: what they chose stands in their run files."""
    run = Path(copied.output)
    before = plans.read(run)
    for path in (run, *(path.parent for path in run.glob("compare/seed-*/*/run.toml"))):
        runs.as_before_plans(path)
    shutil.rmtree(run / "compare" / "seed-1" / "centralised")
    compared = compare(copied, ASKED)
    ours, theirs = (arm(each, "centralised")["measures"]["loss"] for each in (compared, made[1]))
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)
    assert before.stack_size == copied.machine.stack_size
    monkeypatch.setattr(training, "open_run", lambda *_, **__: pytest.fail("it is trained again"))
    assert {**compare(copied, ASKED), "seconds": 0} == {**compared, "seconds": 0}


def test_a_stopped_comparison_goes_on_with_what_is_missing(copied, made, monkeypatch) -> None:
    run = Path(copied.output)
    shutil.rmtree(run / "compare" / "seed-1" / "local-client-2")
    (run / "compare" / "seed-1" / "scores" / "local-client-2.json").unlink()
    (run / "compare" / "seed-0" / "centralised" / "tuned.json").unlink()  # killed before it was whole
    visited: list[str] = []
    honest = tune.tune

    def spy(base: Any, job: Any, *rest: Any) -> Any:
        visited.extend(visit.client for visit in job.visits)
        return honest(base, job, *rest)

    monkeypatch.setattr(tune, "tune", spy)
    found = compare(copied, ASKED)
    assert visited == ["centralised", "local-client-2"]
    ours, theirs = (arm(each, "local-client-2")["measures"]["loss"] for each in (found, made[1]))
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)


@pytest.mark.parametrize("written", [0, 1])
def test_arms_of_one_pass_are_kept_together_or_not_at_all(copied, made, monkeypatch, written) -> None:
    """Stopped before or after the first of a pass is said to be whole: same bits, and no kept arm tuned."""
    run = Path(copied.output)
    names = ("local-client-1", "local-client-2")
    for name in names:
        shutil.rmtree(run / "compare" / "seed-0" / name)
    honest, said = training.write_json, 0

    def stopped(path: Path, value: Any) -> Path:
        nonlocal said
        if said == written:
            raise KeyboardInterrupt
        said += 1
        return honest(path, value)

    monkeypatch.setattr(training, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(copied, ASKED)
    monkeypatch.undo()
    assert [(run / "compare" / "seed-0" / name / "tuned.json").exists() for name in names] == [
        written > 0,
        False,
    ]
    if written:
        monkeypatch.setattr(training.Simulation, "run_groups", None)
    compare(copied, ASKED)
    for name in names:
        ours, theirs = (
            Path(settings.output) / "compare" / "seed-0" / name / files.WEIGHTS
            for settings in (copied, made[0])
        )
        assert ours.read_bytes() == theirs.read_bytes()


def test_an_adapter_that_was_written_later_is_not_taken_for_the_one_beside(copied, monkeypatch) -> None:
    """Its folder was removed, and training it again was killed before it was said to be whole."""
    kept = Path(copied.output) / "compare" / "seed-0" / "local-client-2"
    (kept / "tuned.json").unlink()
    shutil.copy(kept.with_name("local-client-1") / files.WEIGHTS, kept / files.WEIGHTS)
    tuned: list[str] = []
    honest = training.Simulation.run_groups

    def spy(self: Any, sent: Any, groups: Any) -> Any:
        tuned.extend(name for group in groups for name in group)
        return honest(self, sent, groups)

    monkeypatch.setattr(training.Simulation, "run_groups", spy)
    compare(copied, ASKED)
    assert tuned == ["local-client-2"]


def untimed(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**each, "trained": {**(each["trained"] or {}), "seconds": 0}} for each in found["arms"]]


@pytest.mark.slow
def test_an_arm_tuned_and_scored_beside_others_has_the_bits_that_it_has_alone(
    llama_folder, source, tmp_path
) -> None:
    """Two workers with a thread each; this process, with one thread; and there each arm by itself."""
    asked = CompareSpec(locals=("client-1",))
    made = {}
    for name, machine in (("two", {"workers": 2, "threads": 2}), ("one", {"threads": 1})):
        settings = table(llama_folder, source, tmp_path / name)
        alike = settings.machine.model_copy(update={**machine, "stack_size": 1})
        made[name] = compare(settings.model_copy(update={"machine": alike}), asked)
    assert untimed(made["one"]) == untimed(made["two"])
    assert made["one"]["samples"] == made["two"]["samples"]
    kept, prepared = folder.planned(tmp_path / "one"), data_folder.load(tmp_path / "one" / "data")
    base, done = load_base(kept), training.totals(tmp_path / "one")
    for each in arms(asked, sorted(prepared.clients)):
        if each.kind in ("local", "centralised"):
            training.train_references(
                base,
                kept,
                plans.read(tmp_path / "one"),
                prepared,
                arms=[each],
                run=tmp_path / each.name,
                number=0,
                done=done,
                seed=0,
                executor=Inline(base),
                consent=NOTHING,
            )
            one, two, alone = (
                (training.arm_folder(tmp_path / run, 0, each) / files.WEIGHTS).read_bytes()
                for run in ("one", "two", each.name)
            )
            assert one == two == alone, each.name


@pytest.mark.parametrize("named", [(), ("client-1",)])
@pytest.mark.parametrize("match", ["both", "steps", "examples"])
def test_the_first_sentence_is_true_however_arms_are_matched(copied, monkeypatch, match, named) -> None:
    """Against the visits that are really tuned, and the federated run's own log."""
    run = Path(copied.output)
    shutil.rmtree(run / "compare")
    saw: dict[str, tuple[int, int]] = {}
    honest = tune.tune

    def spy(base: Any, job: Any, watch: Any) -> Any:
        saw.update({v.client: (sum(map(len, v.batches)), len(v.batches)) for v in job.visits})
        return honest(base, job, watch)

    monkeypatch.setattr(tune, "tune", spy)
    found = compare(copied, CompareSpec(locals=named, match=match))
    federated = sum(row["examples"] for row in read_rows(run) if row["round"])
    others = [*(f"local-{name}" for name in named), "centralised", *["centralised-steps"] * (match == "both")]
    assert set(saw) == set(others)
    said = "; ".join(f"{name} {saw[name][0]:,} in {saw[name][1]:,} steps" for name in others)
    assert found["says"][0] == (
        f"federated saw {federated:,} examples, those of its clients side by side, in 4 optimiser steps"
        f" one after another; {said}."
    )
    if match != "steps":
        assert saw["centralised"][0] == federated


def test_an_older_comparison_by_steps_is_not_mixed_with_the_default_of_both(copied, monkeypatch) -> None:
    """Its centralised arm was trained by steps, under the name that the one by examples has now."""
    run = Path(copied.output)
    (run / "compare" / "plan.json").write_text('{"match": "steps", "variants": {}}\n')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(comparison, "train_references", None)
    monkeypatch.setattr(comparison, "score_arms", None)
    with pytest.raises(FolderError, match=r"matched by steps; give --match steps, or move that folder away"):
        compare(copied, CompareSpec(locals=("client-1", "client-2"), seeds=2))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    asked = CompareSpec(locals=("client-1", "client-2"), match="steps", seeds=2)
    assert compare(copied, asked)["match"] == "steps"


def test_a_run_that_was_stopped_is_finished_first(llama_folder, source, tmp_path) -> None:
    settings = table(llama_folder, source, tmp_path / "run")
    run = open_run(settings)
    next(run.rounds())
    run.close()
    found = compare(settings, CompareSpec(locals=(), match="steps"))
    assert [row["round"] for row in read_rows(tmp_path / "run")] == [0, 1, 2]
    assert len(found["arms"]) == 3


def test_matched_by_examples_every_arm_sees_as_many(llama_folder, source, tmp_path) -> None:
    settings = table(llama_folder, source, tmp_path / "run")
    found = compare(settings, CompareSpec(locals=(), match="examples"))
    federated, central = (arm(found, name)["trained"] for name in ("federated", "centralised"))
    assert central["examples"] == federated["examples"]
    assert central["steps"] >= federated["examples"] / 4
    with pytest.raises(FolderError, match="holds a comparison matched by examples; give --match examples"):
        compare(settings, CompareSpec(locals=(), match="steps"))


@pytest.fixture
def lonely(llama_folder, tmp_path) -> RunSettings:
    """Clients with one example each, of which none can be held out."""
    rows = [{**row, "who": f"c{k}"} for k, row in enumerate(runs.rows(4))]
    asked = table(llama_folder, runs.written(tmp_path / "rows.jsonl", rows), tmp_path / "run")
    return asked.model_copy(update={"split": SplitTable(by="natural", field="who")})


def test_where_nothing_can_be_scored_nothing_is_trained(lonely, monkeypatch) -> None:
    monkeypatch.setattr(training, "open_run", None)
    with pytest.raises(DataError, match=r"nothing of .*rows\.jsonl is held out to compare on"):
        compare(lonely, CompareSpec(locals=()))
    assert not Path(lonely.output).exists()


def test_where_tokenising_leaves_nothing_to_score_nothing_is_trained(llama_folder, tmp_path) -> None:
    rows = runs.rows(6)
    rows[0]["instruction"] = 300 * "word "
    settings = table(llama_folder, runs.written(tmp_path / "rows.jsonl", rows), tmp_path / "run")
    data = settings.data.model_copy(update={"max_tokens": 64, "holdout": 0.1})
    split = settings.split.model_copy(update={"clients": 1})
    for seed in range(50):
        asked = settings.model_copy(update={"data": data.model_copy(update={"seed": seed}), "split": split})
        if pipeline.divide(asked).held.heldout.tolist() == [0]:
            break
    with pytest.raises(DataError, match=r"no held-out example of .* is left to compare on \(1 dropped: "):
        compare(asked, CompareSpec(locals=()))
    assert [row["round"] for row in read_rows(tmp_path / "run")] in ([], [0])
    with pytest.raises(DataError, match="is held out to compare on"):  # nor does a second call train
        compare(asked, CompareSpec(locals=()))


def test_nor_is_a_run_gone_on_with_that_has_nothing_to_score(lonely, monkeypatch) -> None:
    open_run(lonely).close()
    monkeypatch.setattr(training, "resume", None)
    with pytest.raises(DataError, match="is held out to compare on"):
        compare(lonely, CompareSpec(locals=()))


def test_a_folder_with_another_run_is_refused_by_the_key(copied) -> None:
    other = copied.tuning.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(FolderError, match=r"holds a run with tuning\.learning_rate = 0\.01, not 0\.5"):
        compare(copied.model_copy(update={"tuning": other}), ASKED)


def test_an_arm_of_the_same_name_but_another_meaning_is_refused(copied) -> None:
    other = CompareSpec(locals=(), variants=("ffa: algorithm.name=fedprox",), match="steps", seeds=2)
    with pytest.raises(FolderError, match=r"holds an arm 'ffa' with algorithm\.name=ffa_lora"):
        compare(copied, other)


def test_small_clients_see_as_many_examples_too(llama_folder, source, tmp_path) -> None:
    """A batch never straddles two passes over the data, so a small client needs more steps."""
    settings = table(llama_folder, source, tmp_path / "run")
    found = compare(settings, CompareSpec(match="examples"))
    seen = {each["trained"]["examples"] for each in found["arms"] if each["trained"]}
    assert seen == {arm(found, "federated")["trained"]["examples"]}


def test_another_adapter_never_stands_under_old_scores(copied, made) -> None:
    path = Path(copied.output) / "compare" / "seed-0" / "centralised"
    base = base_of(copied)
    files.write(path, files.read(path, base).times(3.0), base)
    found = compare(copied, ASKED)
    assert arm(found, "centralised")["measures"] != arm(made[1], "centralised")["measures"]
    assert arm(found, "federated")["measures"]["loss"]["value"] == pytest.approx(
        arm(made[1], "federated")["measures"]["loss"]["value"]
    )


def test_variants_train_on_the_runs_own_data_whatever_became_of_the_source(
    llama_folder, tmp_path, source
) -> None:
    own = tmp_path / "rows.jsonl"
    shutil.copy(source, own)
    settings = table(llama_folder, own, tmp_path / "run")
    compare(settings, CompareSpec(locals=()))
    own.write_text("".join(reversed(own.read_text().splitlines(keepends=True))))
    compare(settings, CompareSpec(locals=(), variants=ASKED.variants))
    ours, theirs = (
        data_folder.load(path / "data")
        for path in (tmp_path / "run", tmp_path / "run" / "compare" / "seed-0" / "ffa")
    )
    assert ours.heldout_examples == theirs.heldout_examples
    assert {n: d.ids.tolist() for n, d in ours.clients.items()} == {
        n: d.ids.tolist() for n, d in theirs.clients.items()
    }


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [("x: algorithm.name=nonexistent", "nonexistent"), ("x: tuning.rate=1", r"unknown key tuning\.rate")],
)
def test_a_mistake_in_a_variant_costs_no_training_and_no_name(copied, variant, sentence) -> None:
    with pytest.raises(ShepherdError, match=sentence):
        compare(copied, CompareSpec(variants=(variant,), match="steps", seeds=2))
    plan = json.loads((Path(copied.output) / "compare" / "plan.json").read_text())
    assert set(plan["variants"]) == {"ffa"}


def test_nothing_held_out_is_nothing_to_compare_on(llama_folder, source, tmp_path) -> None:
    settings = runs.settings(llama_folder, source, tmp_path / "run", data={"holdout": 0.0})
    with pytest.raises(SettingsError, match=r"set data\.holdout"):
        compare(settings, CompareSpec())
    assert not (tmp_path / "run").exists()


def test_a_longer_variant_is_said_to_be_longer(copied) -> None:
    asked = CompareSpec(locals=(), variants=("long: tuning.max_steps=3",), match="steps")
    found = compare(copied, asked)
    assert f"long {arm(found, 'long')['trained']['examples']} in 6 steps" in found["says"][0]


def test_what_the_run_chose_itself_is_no_difference(copied) -> None:
    machine = copied.machine.model_copy(update={"workers": 8, "micro_batch_tokens": 9999})
    compare(copied.model_copy(update={"machine": machine}), ASKED)
    unset = copied.tuning.model_copy(update={"max_steps": None})
    with pytest.raises(FolderError, match=r"holds a run with tuning\.max_steps = 2, not None"):
        compare(copied.model_copy(update={"tuning": unset}), ASKED)


def test_a_client_that_is_none_is_refused(copied, llama_folder, source, tmp_path) -> None:
    new = table(llama_folder, source, tmp_path / "new")
    for settings in (copied, new):
        with pytest.raises(SettingsError, match="local arm 'nobody' is not a client of this run"):
            compare(settings, CompareSpec(locals=("nobody",), match="steps"))
    assert not (tmp_path / "new").exists()  # before any training


def test_what_is_going_on_can_be_seen(llama_folder, source, tmp_path, monkeypatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "train_references", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(table(llama_folder, source, tmp_path / "run"), CompareSpec())
    found = collect(tmp_path / "run")
    text = (tmp_path / "run" / "compare" / "comparison.json").read_text()
    assert json.loads(text)["finished"] is False
    assert {"base", "centralised", "federated"} <= {each["name"] for each in found["arms"]}


def test_a_client_may_be_called_anything(llama_folder, tmp_path) -> None:
    rows = [{**row, "hospital": ["St. Mary/East", "../north"][i % 2]} for i, row in enumerate(runs.rows())]
    source = runs.written(tmp_path / "rows.jsonl", rows)
    settings = runs.settings(
        llama_folder,
        source,
        tmp_path / "run",
        split={"by": "natural", "field": "hospital"},
        federation={"rounds": 1},
        tuning={"max_steps": 1},
    )
    found = compare(settings, CompareSpec())
    assert {each["client"] for each in found["arms"] if each["kind"] == "local"} == {
        "St. Mary/East",
        "../north",
    }
    inside = {path.name for path in (tmp_path / "run" / "compare" / "seed-0").iterdir()}
    assert inside == {
        "local-St. Mary%2FEast", "local-..%2Fnorth", "centralised", "centralised-steps", "scores",
    }  # fmt: skip


def test_nobody_else_can_read_a_comparison(llama_folder, source, tmp_path) -> None:
    before = os.umask(0o022)
    try:
        settings = table(llama_folder, source, tmp_path / "run")
        compare(settings, CompareSpec(locals=("client-1",), variants=("ffa: algorithm.name=ffa_lora",)))
        report.write(tmp_path / "run")
    finally:
        os.umask(before)
    made = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len(made) > 40
    assert [str(path) for path in made if path.stat().st_mode & 0o077] == []


def test_two_comparisons_of_one_folder_exclude_each_other(copied, monkeypatch) -> None:
    """While one trains an arm, another gets no hold of the folder; one that comes then changes nothing."""
    shutil.rmtree(Path(copied.output) / "compare" / "seed-0" / "centralised")
    seen: list[bool | None] = []
    honest = tune.tune

    def meanwhile(*given: Any, **options: Any) -> Any:
        seen.append(is_held(Path(copied.output, folder.LOCK)))
        return honest(*given, **options)

    monkeypatch.setattr(tune, "tune", meanwhile)
    compare(copied, ASKED)
    assert seen
    assert all(seen)
    assert is_held(Path(copied.output, folder.LOCK)) is False  # it was given back
    shutil.rmtree(Path(copied.output) / "compare" / "seed-0" / "centralised")
    taken = pytest.raises(FolderError, match="this process already holds the run")
    with closing(folder.reopen(copied.output)), taken:
        compare(copied, ASKED)
    assert not (Path(copied.output) / "compare" / "seed-0" / "centralised").exists()


LENGTH = """
from shepherd.config import PositiveInt, Table
from shepherd.evaluate.metric import Metric
from shepherd.evaluate.sentences import Measure

class Config(Table):
    letters: PositiveInt = 8

def build(config):
    return Metric(
        measure=Measure(name="short", label="brevity", lower_is_better=True),
        score=lambda answer, example: min(1.0, len(answer) / config.letters),
    )
"""


def test_other_metrics_measure_the_answers_that_are_there(copied, monkeypatch, tmp_path) -> None:
    (tmp_path / "their_metrics").mkdir()
    (tmp_path / "their_metrics" / "length.py").write_text(LENGTH)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(scoring, "score_one", None)  # nothing is generated
    metrics = (PartTable(name="f1"), PartTable(name="their_metrics.length", letters=6))
    evaluation = copied.evaluation.model_copy(update={"metrics": metrics})
    asked = copied.model_copy(update={"evaluation": evaluation})
    with pytest.raises(PluginError, match=r"--allow-plugin their_metrics\.length"):
        compare(asked, ASKED)
    found = compare(asked, ASKED, consent=Consent(plugins=frozenset({"their_metrics.length"})))
    assert [measure["name"] for measure in found["measures"]] == ["loss", "f1", "short"]
    assert found["measures"][-1]["lower_is_better"]
    run = Path(copied.output)
    for name in ("base", "federated"):
        scores = json.loads((run / "compare" / "seed-0" / "scores" / f"{name}.json").read_text())
        assert all(answer.keys() == {"text", "f1", "short"} for answer in scores["answers"])
        values = [min(1.0, len(answer["text"]) / 6) for answer in scores["answers"]]
        assert all(answer["short"] == value for answer, value in zip(scores["answers"], values, strict=True))
    told = report.collect(run)
    assert told["measures"] == ["f1", "loss", "short"]
    page = report.write(run).read_text()
    assert "brevity" in page
    stream = io.StringIO()
    print_comparison(found, stream)
    assert "brevity %" in stream.getvalue()
    assert set(found["verdicts"]) < set(found["says"])
    assert any(sentence.startswith("By held-out loss") for sentence in found["verdicts"])
    assert not any("comes to" in each or "intervals cover" in each for each in found["verdicts"])


def test_a_run_that_hides_how_much_it_trains_on_is_not_compared(llama_folder, source, tmp_path) -> None:
    settings = overridden(
        table(llama_folder, source, tmp_path / "run"),
        ["federation.weights=equal", "privacy.examples={norm=1.0, noise=1.0}"],
    )
    with pytest.raises(SettingsError, match="no other arm could train on as many; compare a run without it"):
        compare(settings, CompareSpec(locals=()))
    assert not (tmp_path / "run").exists()
