"""Runs whose algorithm leaves a part of each model with its client."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shepherd.data import data_folder
from shepherd.errors import FolderError, SettingsError
from shepherd.model import files
from shepherd.overrides import parse, plain
from shepherd.run import card as card_module
from shepherd.run import checkpoint, ledger
from shepherd.run.answerer import load_run
from shepherd.run.export import export, export_clients
from shepherd.run.folder import planned
from shepherd.run.lineage import Training
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.ui.cli.main import main
from tests import runs


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


def finished(base, source, output, name, **keys):
    tuning = {"batch_size": 4, "learning_rate": 0.05}
    table = runs.settings(
        base, source, output, algorithm={"name": name, **keys}, tuning=tuning, selection={"share": 1.0}
    )
    with open_run(table) as run:
        for _ in run.rounds():
            pass
        return run, run.finish()


@pytest.fixture(scope="module")
def fedsa(llama_folder, source, tmp_path_factory):
    return finished(llama_folder, source, tmp_path_factory.mktemp("fedsa") / "run", "fedsa_lora")


@pytest.fixture(scope="module")
def beside(llama_folder, source, tmp_path_factory):
    return finished(llama_folder, source, tmp_path_factory.mktemp("beside") / "run", "local_adapter", rank=1)


def test_where_the_server_has_no_model_none_is_written_or_answered_with(fedsa, tmp_path):
    run, result = fedsa
    assert result["adapter"] is None
    assert not run.holder.adapter.exists()
    assert any("export" in said and "--client" in said for said in result["remarks"])
    with pytest.raises(FolderError, match="leaves a part of each model with its client"):
        load_run(run.folder).generate("w5 w6")
    with pytest.raises(FolderError, match="--client NAME"):
        export(run.folder, tmp_path / "out")


def test_the_score_is_of_each_clients_own_model(fedsa):
    run, _ = fedsa
    first, *_, last = [row["heldout"] for row in read_rows(run.folder)]
    assert set(last["client"]) == set(run.prepared.clients)
    assert last["loss"] == pytest.approx(np.mean(list(last["client"].values())))
    assert last["loss"] < first["loss"]  # the server's adapter alone is the base, round after round


def test_where_the_server_has_a_model_both_are_scored(beside):
    run, result = beside
    last = read_rows(run.folder)[-1]
    assert {"heldout", "personal"} <= last.keys()
    assert result["adapter"] == run.holder.adapter
    assert files.read(result["adapter"], run.base) == run.state.adapter
    assert last["personal"]["loss"] != last["heldout"]["loss"]


def test_a_clients_own_model_is_exported_and_loads_in_peft(fedsa, tmp_path):
    run, _ = fedsa
    name = min(run.prepared.clients)
    export(run.folder, tmp_path / "own", client=name)
    saved = checkpoint.load(checkpoint.latest(run.holder.checkpoints))
    own = files.read(tmp_path / "own", run.base)
    kept = run.simulation.store.get(name, run.simulation.memories[name])
    assert kept
    assert all(np.array_equal(own[n], kept[n]) for n in kept)
    assert all(np.array_equal(own[n], t) for n, t in saved.state.adapter.items() if n not in kept)


def test_every_clients_own_model_is_exported_at_once(fedsa, tmp_path):
    run, _ = fedsa
    words = ["export", str(run.folder), "--all-clients", "-o", str(tmp_path / "all")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    names = sorted(run.prepared.clients)
    assert sorted(each.name for each in (tmp_path / "all").iterdir()) == names
    for name in names:
        export(run.folder, tmp_path / "one" / name, client=name)
        own, alone = (files.read(tmp_path / place / name, run.base) for place in ("all", "one"))
        assert own == alone
        assert (tmp_path / "all" / name / "README.md").is_file()
    models = [files.read(tmp_path / "all" / name, run.base) for name in names]
    assert models[0] != models[1]
    done = CliRunner().invoke(main, [*words[:-1], str(tmp_path / "none"), "--client", names[0]])
    assert "leave out --client" in done.output


def test_exporting_names_what_cannot_be(fedsa, beside, llama_folder, source, tmp_path):
    run, _ = fedsa
    with pytest.raises(FolderError, match=r"has no client 'client-9'; did you mean 'client-\d'"):
        export(run.folder, tmp_path / "none", client="client-9")
    plain, _ = finished(llama_folder, source, tmp_path / "plain", "fedavg")
    with pytest.raises(SettingsError, match=r"gives all clients of .* one model"):
        export(plain.folder, tmp_path / "one", client="client-0")
    with pytest.raises(SettingsError, match=r"gives all clients of .* one model"):
        export_clients(plain.folder, tmp_path / "one")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"adapter": {"rank": 2, "ranks": [1]}}, "adapter.ranks"),
    ],
)
def test_combinations_that_are_not_sound_are_refused(llama_folder, source, tmp_path, tables, said):
    table = runs.settings(llama_folder, source, tmp_path / "run", algorithm={"name": "fedsa_lora"}, **tables)
    with pytest.raises(SettingsError, match=said):
        open_run(table)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["fedsa_lora", "local_adapter"])
def test_it_resumes_to_the_same_bits(name, llama_folder, source, tmp_path):
    whole, _ = finished(llama_folder, source, tmp_path / "whole", name)
    table = runs.settings(
        llama_folder,
        source,
        tmp_path / "stopped",
        algorithm={"name": name},
        tuning={"batch_size": 4, "learning_rate": 0.05},
        selection={"share": 1.0},
    )
    with open_run(table) as run:
        next(run.rounds())
    with resume(run.folder) as again:
        for _ in again.rounds():
            pass
        again.finish()
    assert again.state.adapter == whole.state.adapter
    rows = [[row.get("personal", row["heldout"]) for row in read_rows(r.folder)] for r in (whole, again)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])


def test_where_no_client_held_anything_out_no_personal_score_is_claimed(fedsa, monkeypatch):
    run, _ = fedsa
    monkeypatch.setattr("shepherd.evaluate.personal.own_places", lambda *given: [])
    assert run._scored(run.state) == {}


# --- under noise


NOISE = {"transforms": [{"name": "gaussian", "norm": 1.0, "noise": 3.0}], "privacy": {"delta": 0.1}}
EXAMPLES = {"privacy": {"delta": 1e-3, "examples": {"norm": 1.0, "noise": 2.0}}}
OWN = "This is one client's own model"


@pytest.fixture(scope="module")
def noisy(llama_folder, source, tmp_path_factory):
    """A run whose noise hides clients, and one whose noise hides examples, with what each has said."""
    found = {}
    for name, tables in (("clients", NOISE), ("examples", EXAMPLES)):
        table = runs.settings(
            llama_folder,
            source,
            tmp_path_factory.mktemp("noisy") / name,
            algorithm={"name": "local_adapter", "rank": 1},
            federation={"rounds": 1, "weights": "equal", "max_share": 1.0},
            tuning={"max_steps": 1},
            evaluation={"answers": 0},
        )
        with open_run(parse({**plain(table), **tables})) as run:
            for _ in run.rounds():
                pass
            found[name] = (run.folder, " ".join(run.finish(answer=False)["remarks"]))
    return found


def test_the_card_of_an_own_model_claims_nothing_for_its_client(noisy, tmp_path):
    path, said = noisy["clients"]
    assert "does not hide a client in its own model, so give that to the client alone" in said
    shared = (path / "adapter" / "README.md").read_text()
    assert "for each client" in shared
    assert OWN not in shared
    export(path, tmp_path / "one", client=min(data_folder.load(path / "data").clients))
    export_clients(path, tmp_path / "all")
    for folder in (tmp_path / "one", *(tmp_path / "all").iterdir()):
        card = (folder / "README.md").read_text()
        assert OWN in card
        assert "epsilon" not in card.split("## The run file")[0]
        assert "Protected against" not in card
        assert "a client |" not in card  # the noise still hides what the others hold
    kept = card_module.text(
        planned(path), rows=[], answers={}, data={}, clients={}, privacy=ledger.read(path), own=True,
        before=[Training(run="first", data="rows")],
    )  # fmt: skip
    assert "| 0 | no claim |" in kept


def test_noise_on_examples_protects_those_of_an_own_model_too(noisy, tmp_path):
    path, said = noisy["examples"]
    assert "does not hide" not in said
    export(path, tmp_path / "one", client=min(data_folder.load(path / "data").clients))
    card = (tmp_path / "one" / "README.md").read_text()
    assert "for each example" in card
    assert OWN not in card
