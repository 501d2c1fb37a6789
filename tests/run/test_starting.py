"""A run that begins with an adapter: the same one, a copy of it, and a refusal of any that does not fit."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from shepherd import plugins
from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.core import Adapter, seed_for
from shepherd.core.adapter import is_a
from shepherd.core.factor_gap import pairs
from shepherd.data.examples import Example, Turn
from shepherd.errors import AdapterError, FolderError, SettingsError
from shepherd.model import files, lora
from shepherd.model.answer import Answer
from shepherd.overrides import overridden, read
from shepherd.rounds import context_of, start
from shepherd.rounds.loop import rehearse
from shepherd.run import checkpoint, folder, lineage, starting
from shepherd.run import run as run_module
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.run import Run
from shepherd.settings import RunSettings
from shepherd.silos.protocol.jobspec import settings_for_site
from shepherd.ui.report import collect
from tests import runs
from tests.contracts.test_pairs import fault, settings_of
from tests.model import bases
from tests.quadratic import drawn


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def done(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round, with rank 2."""
    return runs.finished(llama_folder, tmp_path_factory.mktemp("before"))


@pytest.fixture
def table(llama_folder: Path, source: Path, tmp_path: Path, done: Path) -> Any:
    def settings(place: Path = done, **tables: Any) -> RunSettings:
        adapter = {"start": str(place), **tables.pop("adapter", {})}
        return runs.settings(llama_folder, source, tmp_path / "run", adapter=adapter, **tables)

    return settings


def finish(run: Run) -> Path:
    with run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)
    return run.folder


def weights(place: Path) -> dict[str, Any]:
    return load_file(place / files.WEIGHTS)


def same(one: Any, two: Any) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def products(adapter: Adapter) -> dict[str, Any]:
    return {
        pair.a: adapter[pair.b].astype(np.float64) @ adapter[pair.a].astype(np.float64)
        for pair in pairs(adapter)
    }


def logits(base: Path, adapter: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        whole = peft.PeftModel.from_pretrained(model, adapter).eval()
        return whole(input_ids=torch.arange(1, 13)[None], use_cache=False).logits


# --- what a run begins with


@pytest.mark.parametrize("part", ["", "adapter"], ids=["a run", "a PEFT folder"])
def test_the_first_state_is_the_adapter_and_a_copy_is_kept(
    table: Any, done: Path, part: str, llama_folder: Path
) -> None:
    with open_run(table(done / part)) as run:
        assert run.state.round == 0
        assert same(run.state.adapter, weights(done / "adapter"))
        loss = read_rows(run.folder)[0]["heldout"]["loss"]
        copy = run.folder / "start"
        assert torch.equal(logits(llama_folder, copy), logits(llama_folder, done / "adapter"))
    assert loss == read_rows(done)[-1]["heldout"]["loss"]  # of the same examples, by the same adapter
    assert json.loads((copy / "source.json").read_text())["file"] == str(done / "adapter" / files.WEIGHTS)


def test_a_run_that_has_no_final_adapter_gives_its_last_checkpoint(
    table: Any, llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    with open_run(runs.settings(llama_folder, source, tmp_path / "stopped")) as other:
        for state, _ in itertools.islice(other.rounds(), 2):
            last = state.adapter
    with open_run(table(tmp_path / "stopped")) as run:
        assert same(run.state.adapter, last)


def test_a_second_adapter_in_the_folder_of_one_is_not_taken(table: Any, done: Path, tmp_path: Path) -> None:
    """PEFT saves an adapter named "adapter" beside the first one, in a folder of that name."""
    place = Path(shutil.copytree(done / "adapter", tmp_path / "made"))
    shutil.copytree(done / "adapter", place / "adapter")
    other = place / "adapter" / files.WEIGHTS
    save_file({name: tensor + 7 for name, tensor in load_file(other).items()}, other)
    with open_run(table(place)) as run:
        first = {name: np.abs(tensor).max() for name, tensor in run.state.adapter.items()}
    assert max(first.values()) < 5


def test_an_adapter_that_peft_made_is_trained_on(table: Any, llama_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(3)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
    own = {"alpha": 4.0, "rank_stabilised": True, "targets": ["v_proj", "q_proj"], "dropout": 0.0}
    path = finish(open_run(table(tmp_path / "theirs", adapter=own, federation={"rounds": 1})))
    assert same(weights(path / "start"), weights(tmp_path / "theirs"))
    torch.testing.assert_close(
        logits(llama_folder, path / "start"), logits(llama_folder, tmp_path / "theirs")
    )
    moved = weights(path / "adapter")
    assert not same(moved, weights(path / "start"))
    assert read_rows(path)[-1]["heldout"]["loss"] < read_rows(path)[0]["heldout"]["loss"]


def test_the_path_is_relative_to_the_run_file(
    llama_folder: Path, source: Path, done: Path, tmp_path: Path
) -> None:
    shutil.copytree(done / "adapter", tmp_path / "files" / "first")
    (tmp_path / "files" / "run.toml").write_text(
        f'[model]\nbase = "{llama_folder}"\n[data]\nsource = "{source}"\n[adapter]\nstart = "first"\n'
    )
    assert read(tmp_path / "files" / "run.toml").adapter.start == str(tmp_path / "files" / "first")


def test_what_it_began_with_is_in_the_card_by_name_and_digest(table: Any, done: Path) -> None:
    path = finish(open_run(table(federation={"rounds": 1})))
    card = (path / "adapter" / "README.md").read_text()
    assert f"| started from | `run`, whose weights have SHA-256 `{lineage.source(path)['sha256']}` |" in card
    assert str(done) not in card
    assert "started from" not in (done / "adapter" / "README.md").read_text()


# --- resume


def test_it_resumes_to_the_same_bits_when_the_original_is_gone(
    table: Any, done: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(done / "adapter", tmp_path / "moved")
    whole = finish(open_run(table(moved)))
    ends = weights(whole / "adapter")
    shutil.move(whole, tmp_path / "whole")
    with open_run(table(moved)) as run:
        next(run.rounds())
    shutil.rmtree(moved)
    assert same(weights(finish(resume(run.folder)) / "adapter"), ends)


def test_a_run_killed_before_its_first_round_takes_its_copy(
    table: Any, done: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = shutil.copytree(done / "adapter", tmp_path / "place")
    with open_run(table(place)) as run:
        began = run.state.adapter
    save_file({name: 2 * tensor for name, tensor in weights(place).items()}, place / files.WEIGHTS)
    with caplog.at_level("INFO"), resume(run.folder) as again:
        assert same(again.state.adapter, began)
    assert "holds another adapter now than the one that" in caplog.text


def test_a_run_killed_before_its_copy_was_whole_takes_it_anew(table: Any) -> None:
    with open_run(table()) as run:
        began = run.state.adapter
    (run.folder / "start" / files.WEIGHTS).unlink()
    with resume(run.folder) as again:
        assert same(again.state.adapter, began)
    assert (run.folder / "start" / files.WEIGHTS).is_file()


def test_a_copy_that_is_lost_later_is_named(table: Any) -> None:
    with open_run(table()) as run:
        next(run.rounds())
    (run.folder / "start" / files.WEIGHTS).unlink()
    with pytest.raises(FolderError, match=r"start/adapter_model\.safetensors is missing"):
        resume(run.folder)


def test_another_start_is_refused_on_resume(table: Any, tmp_path: Path) -> None:
    with open_run(table()) as run:
        next(run.rounds())
    with pytest.raises(SettingsError, match=r"adapter\.start=.* cannot be changed"):
        resume(run.folder, overrides=[f"adapter.start={tmp_path}"])


# --- what does not fit


def edited(place: Path, target: Path, **keys: Any) -> Path:
    """A copy of an adapter folder with other keys in its configuration."""
    shutil.copytree(place, target)
    file = target / files.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return target


def refusal(settings: RunSettings) -> str:
    with pytest.raises((AdapterError, FolderError)) as refused:
        open_run(settings)
    assert not folder.is_run(settings.output)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"rank": 3}, "has rank 2, and the run file says adapter.rank = 3; set adapter.rank = 2"),
        ({"alpha": 4.0}, "by 8, and the run file says 2; set adapter.alpha = 16 and adapter.rank_stabilised"),
        ({"rank_stabilised": True}, "its output by 8, and the run file says 11.3137; set adapter.alpha = 16"),
        ({"targets": ["q_proj"]}, 'which the run file leaves out; set adapter.targets = ["down_proj", "ga'),
    ],
)
def test_another_rank_scale_or_target_is_refused_with_what_to_write(
    table: Any, adapter: dict[str, Any], said: str
) -> None:
    assert said in refusal(table(adapter=adapter))


def test_fewer_targets_than_the_run_files_are_refused(table: Any, llama_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    config = peft.LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "few")
    said = refusal(table(tmp_path / "few"))
    assert (
        "lacks tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight; set adapter.targets"
        in said
    )
    assert said.endswith('= ["q_proj"]')


def test_ranks_that_differ_between_modules_are_refused(
    table: Any, llama_folder: Path, tmp_path: Path
) -> None:
    base = bases.load(llama_folder, rank=2)
    adapter = bases.random_adapter(base, 0)
    one = base.targets[0]
    adapter = lora.at_ranks(base.targets, adapter, {**lora.ranks(base.targets, adapter), one.name_a: 4})
    adapter = Adapter({name: tensor + (name in (one.name_a, one.name_b)) for name, tensor in adapter.items()})
    files.write(tmp_path / "pattern", adapter, base)
    said = refusal(table(tmp_path / "pattern", adapter={"alpha": base.adapter.alpha}))
    assert f"has rank 4 in tensor {one.name_a}, and a run has one rank for all, adapter.rank = 2" in said
    assert f"shepherd merge {tmp_path / 'pattern'} -o FOLDER --rank 2" in said


def test_another_base_is_refused(table: Any, llama_folder: Path, tmp_path: Path, source: Path) -> None:
    other = bases.save(bases.CONFIGS["llama"], tmp_path / "other", seed=1)
    said = refusal(table(model={"base": str(other)}))
    assert "was made for another base" in said
    gpt = bases.save(bases.CONFIGS["gpt2"], tmp_path / "gpt2")
    said = refusal(table(model={"base": str(gpt)}))
    assert (
        "has no module model.layers.0.mlp.down_proj; set model.base to the base that it was made for" in said
    )


def test_a_pickle_is_refused_and_never_opened(table: Any, done: Path, tmp_path: Path) -> None:
    place = edited(done / "adapter", tmp_path / "pickled")
    (place / files.WEIGHTS).unlink()
    (place / "adapter_model.bin").write_bytes(
        b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    )
    assert "holds its weights as a pickle, adapter_model.bin, which can run code" in refusal(table(place))
    assert not (tmp_path / "ran").exists()


def test_what_holds_no_adapter_is_named(
    table: Any, done: Path, tmp_path: Path, llama_folder: Path, source: Path
) -> None:
    assert "there is no such folder; write the folder of a run" in refusal(table(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "holds no adapter: adapter_model.safetensors is missing" in refusal(table(tmp_path / "empty"))
    open_run(runs.settings(llama_folder, source, tmp_path / "begun")).close()
    assert "which has finished no round yet" in refusal(table(tmp_path / "begun"))
    place = edited(done / "adapter", tmp_path / "dora", use_dora=True)
    assert "use_dora = true" in refusal(table(place))


def test_a_number_that_is_not_finite_is_refused(table: Any, done: Path, tmp_path: Path) -> None:
    place = edited(done / "adapter", tmp_path / "nan")
    tensors = weights(place)
    first = next(iter(tensors))
    tensors[first][0, 0] = np.nan
    save_file(tensors, place / files.WEIGHTS)
    assert f"tensor {first} of adapter.start {place} is not finite" in refusal(table(place))


def test_a_run_whose_clients_keep_a_part_has_no_adapter_to_begin_with(
    table: Any, llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    own = runs.settings(llama_folder, source, tmp_path / "own", algorithm={"name": "fedsa_lora"})
    finish(open_run(own))
    assert "--client NAME -o FOLDER` and use that folder" in refusal(table(tmp_path / "own"))


# --- methods

COMBINED = [
    ((plugins.ALGORITHM, algorithm), (plugins.AGGREGATION, aggregation))
    for algorithm in plugins.names(plugins.ALGORITHM.folder)
    for aggregation in plugins.names(plugins.AGGREGATION.folder)
] + [
    ((plugins.SERVER, server), (plugins.ALGORITHM, algorithm))
    for server in plugins.names(plugins.SERVER.folder)
    for algorithm in ("fedavg", "ffa_lora", "fed_sb")
]


@pytest.mark.parametrize("pair", COMBINED, ids=lambda pair: "+".join(name for _, name in pair))
def test_a_round_that_changes_nothing_keeps_the_product_that_a_run_began_with(pair: Any) -> None:
    """Whatever a method does to the factors, it goes on from the model that it was given."""
    settings = settings_of(*pair)
    if fault(settings):
        pytest.skip("the two are refused together, whatever they begin with")
    if settings.aggregation.name == "florist":  # at less energy it cuts any product, as it is meant to
        settings = overridden(settings, ["aggregation.energy=1.0"])
    method, selection = plugins.method(settings), plugins.selection(settings)
    began = drawn(0)
    state = start(method, began, context_of(settings, selection, began, 4))
    after = rehearse(method, state, context_of(settings, selection, state.adapter, 4))
    for name, product in products(began).items():
        np.testing.assert_allclose(products(after.adapter)[name], product, atol=1e-5, err_msg=name)


def test_clients_of_a_smaller_rank_are_sent_the_largest_part_of_the_product(
    table: Any, llama_folder: Path, tmp_path: Path
) -> None:
    base = bases.load(llama_folder, rank=3)
    before = bases.random_adapter(base, 4)
    files.write(tmp_path / "random", before, base)
    asked = table(
        tmp_path / "random",
        adapter={"rank": 3, "ranks": [1, 3], "alpha": base.adapter.alpha, "dropout": 0.0},
        aggregation={"name": "zero_padding"},
    )
    with open_run(asked) as run:
        first = run.state.adapter
    for pair in pairs(before):
        whole = before[pair.b].astype(float) @ before[pair.a]
        np.testing.assert_allclose(first[pair.b] @ first[pair.a], whole, atol=1e-5)
        sent = first[pair.b][:, :1] @ first[pair.a][:1]
        u, s, v = np.linalg.svd(whole)
        np.testing.assert_allclose(sent, s[0] * np.outer(u[:, 0], v[0]), atol=1e-5)


@pytest.mark.parametrize("algorithm", ["ffa_lora", "fedsa_lora", "local_adapter"])
def test_a_method_that_fixes_or_keeps_a_factor_begins_with_it(table: Any, algorithm: str) -> None:
    with open_run(table(algorithm={"name": algorithm}, federation={"rounds": 1})) as run:
        began = run.state.adapter
        own = run.simulation.own_adapter(starting_broadcast(run), "client-1")
        *_, (state, _) = run.rounds()
    for name, tensor in began.items():
        assert np.array_equal(own[name][: len(tensor), : tensor.shape[1]], tensor)
        if algorithm == "ffa_lora" and is_a(name):
            assert np.array_equal(state.adapter[name], tensor)


def starting_broadcast(run: Run) -> Any:
    from shepherd.rounds.loop import next_broadcast

    return next_broadcast(run.method, run.state, 0)


# --- comparisons and sites


def test_the_arms_of_a_comparison_begin_with_it_and_a_new_one_is_noticed(
    table: Any, done: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(done / "adapter", tmp_path / "place")
    asked = table(
        place, tuning={"max_steps": 1, "learning_rate": 1e-9, "optimiser": {"name": "sgd"}},
        federation={"rounds": 1}, evaluation={"answers": 0},
    )  # fmt: skip
    spec = CompareSpec(locals=("client-1",), match="steps", seeds=2)
    found = compare(asked, spec)
    base = load_base(asked)
    began = files.read(place, base)
    run = Path(asked.output)
    for arm in (
        "compare/seed-0/local-client-1",
        "compare/seed-1/centralised",
        "compare/seed-1/federated/adapter",
    ):
        trained = files.read(run / arm, base)
        assert all(np.allclose(trained[name], began[name], atol=1e-5) for name in began)
    losses = {arm["name"]: arm["measures"]["loss"]["value"] for arm in found["arms"]}
    assert losses["local-client-1"] == pytest.approx(losses["federated"], abs=1e-4)
    assert losses["base"] != pytest.approx(losses["federated"], abs=1e-3)
    save_file({name: 2 * tensor for name, tensor in began.items()}, place / files.WEIGHTS)
    with pytest.raises(FolderError, match=r"holds another adapter now than the one .*; give output=ANOTHER"):
        compare(asked, spec)


def test_without_it_a_run_begins_as_before(llama_folder: Path, source: Path, tmp_path: Path) -> None:
    with open_run(runs.settings(llama_folder, source, tmp_path / "run")) as run:
        new = lora.fresh(run.base.targets, 2, seed_for(0, "adapter"))
        assert same(run.state.adapter, new)
        assert not (run.folder / "start").exists()
        assert lineage.source(run.folder) == {}
        assert starting.change(run.folder, run.settings) == ""
    assert checkpoint.latest(run.folder / "checkpoints") is None


def test_sites_are_not_told_of_it(table: Any) -> None:
    assert "start" not in settings_for_site(table())["adapter"]


def test_before_is_what_it_began_with_in_answers_and_report(
    table: Any, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answered(base: Any, data: Any, adapters: Any, prompts: Any, **options: Any) -> Any:
        asked.append(adapters)
        return [[Answer(text="w5", cut=False)] * len(prompts)] * 2

    checked = Example(
        turns=(Turn(role="user", text="w5"), Turn(role="assistant", text="w5")),
        check={"kind": "exact", "answer": "w5"},
    )
    monkeypatch.setattr(run_module.answer, "answers", answered)
    with open_run(table(evaluation={"answers": 1}, federation={"rounds": 1})) as run:
        began = run.state.adapter
        *_, (state, _) = run.rounds()
        run_module.answer_heldout(
            run.holder, run.planned, run.base,
            (starting.before(run.folder, run.settings, run.base), state.adapter), [checked],
        )  # fmt: skip
        run.finish(answer=False)
    assert list(asked[0]) == [began, state.adapter]
    report = collect(run.folder)
    assert [arm["name"] for arm in report["arms"]] == ["start", "federated"]
    assert "with a checker, the start answers 1 correctly" in " ".join(report["says"])
    assert [arm["name"] for arm in collect(done)["arms"]] == ["base", "federated"]
