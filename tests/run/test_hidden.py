"""What noise hides of a run stays hidden where its ledger is missing: no door of its folder opens by that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import shepherd
from shepherd import plots
from shepherd.compare.privacy import spent
from shepherd.errors import DataError, FolderError
from shepherd.io.phrases import epsilon_text
from shepherd.overrides import overridden, parse
from shepherd.run import card, evaluation, hidden, ledger, lineage
from shepherd.run.export import export
from shepherd.run.folder import planned
from shepherd.run.hidden import Hidden
from shepherd.run.log import LOG, read_rows
from shepherd.settings import RunSettings
from shepherd.ui.chat import arms as chat
from shepherd.ui.report import collect
from tests import runs

EXAMPLES = "privacy.examples.norm=1.0 privacy.examples.noise=2.0"
CLIENTS = 'privacy.delta=1e-3 selection.name="poisson" transforms=[{name="gaussian",norm=0.1,noise=2.0}]'
HIDING = {"clients": CLIENTS, "examples": EXAMPLES}
LEDGERS = {"clients": ledger.LEDGER, "examples": ledger.OF_EXAMPLES}


def table(*given: dict[str, Any]) -> RunSettings:
    tables = {"model": {"base": "tiny"}, "data": {"source": "world"}, "federation": {"weights": "equal"}}
    return parse({**tables, **({"transforms": list(given)} if given else {})})


NOISY, CLIPPED = table({"name": "gaussian"}), table({"name": "clip", "norm": 1.0})
OUTSIDE = table({"name": "elsewhere.noise"})
FIRST, SECOND = {"round": 0}, {"round": 1}


@pytest.mark.parametrize(
    ("settings", "rows", "kept", "clients"),
    [
        (NOISY, [], {}, True),
        (CLIPPED, [], {}, False),
        (CLIPPED, [FIRST, SECOND], {}, False),
        (CLIPPED, [], {"epsilon": 1.0}, True),
        (CLIPPED, [FIRST, {**SECOND, "privacy": {}}], {}, True),
        (OUTSIDE, [FIRST], {}, True),  # its code is not run to find out
        (OUTSIDE, [FIRST, SECOND], {}, False),
        (OUTSIDE, [FIRST, {**SECOND, "privacy": {}}], {}, True),
    ],
)
def test_what_hides_clients_is_known_by_run_file_log_and_ledger(settings, rows, kept, clients) -> None:
    assert hidden.of_run(settings, rows, kept) == Hidden(clients=clients, examples=False)


def test_what_hides_examples_is_known_by_run_file_and_log() -> None:
    asked = overridden(table(), EXAMPLES.split())
    assert hidden.of_run(asked, [], {}) == Hidden(clients=False, examples=True)
    assert hidden.of_run(table(), [{**SECOND, "example_privacy": {}}], {}).examples
    assert not hidden.of_run(table(), [FIRST, SECOND], {})


# --- the doors of a run folder


@pytest.fixture(scope="module")
def trained(llama_folder, tmp_path_factory) -> dict[str, Path]:
    source = runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")
    place = tmp_path_factory.mktemp("runs")
    tables = {
        "federation": {"rounds": 2, "weights": "equal", "max_share": 1.0},
        "tuning": {"max_steps": 1},
        "evaluation": {"answers": 0},
    }
    for name, overrides in HIDING.items():
        asked = runs.settings(llama_folder, source, place / name, **tables)
        with shepherd.open_run(overridden(asked, overrides.split())) as run:
            for _ in run.rounds():
                pass
            run.finish(answer=False)
    return {name: place / name for name in HIDING}


@pytest.fixture(params=[*HIDING])
def lost(request, trained, tmp_path) -> tuple[str, Path]:
    """A run whose ledger is gone."""
    path = tmp_path / "run"
    shutil.copytree(trained[request.param], path)
    (path / LEDGERS[request.param]).unlink()
    return request.param, path


def test_without_its_ledger_a_run_has_no_report_and_no_new_card(lost, tmp_path) -> None:
    name, path = lost
    sentence = f"{LEDGERS[name]} is missing, .* restore it from a copy"
    with pytest.raises(FolderError, match=sentence):
        collect(path)
    with pytest.raises(FolderError, match=sentence):
        export(path, tmp_path / "out", round=1)
    (path / LOG).unlink()  # the checkpoints say that rounds were released
    with pytest.raises(FolderError, match=sentence):
        collect(path)
    with pytest.raises(FolderError, match=sentence):
        export(path, tmp_path / "other", round=1)


@pytest.mark.parametrize("name", HIDING)
def test_a_ledger_that_says_less_than_the_log_takes_nothing_back(trained, tmp_path, name) -> None:
    path = Path(shutil.copytree(trained[name], tmp_path / "run"))
    file, level = path / LEDGERS[name], {"clients": "privacy", "examples": "example_privacy"}[name]
    due = read_rows(path)[-1][level]["epsilon"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "epsilon": 0.001}))
    assert collect(path)[level]["epsilon"] == due
    assert lineage.of_run(path)[-1].guarantees[level]["epsilon"] == due
    assert spent(path)[level].epsilon == due
    export(path, tmp_path / "out", round=1)
    assert f"Spent: epsilon {epsilon_text(due)} at" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("kept", ["{}", '{"epsilon": 0.001}'])
def test_an_empty_ledger_is_as_good_as_none(lost, tmp_path, kept) -> None:
    name, path = lost
    (path / LEDGERS[name]).write_text(kept)
    doors = (collect, lineage.of_run, spent, lambda run: export(run, tmp_path / "out", round=1))
    for door in doors:
        with pytest.raises(FolderError, match=f"{LEDGERS[name]} is damaged.*restore it from a copy"):
            door(path)


def test_a_run_does_not_begin_from_one_whose_ledger_is_gone(lost) -> None:
    name, path = lost
    with pytest.raises(FolderError, match=f"{LEDGERS[name]} is missing"):
        lineage.of_run(path)


def test_before_the_first_round_there_is_no_ledger_and_nothing_to_see(lost) -> None:
    name, path = lost
    rows = read_rows(path)
    (path / LOG).write_text(json.dumps(rows[0]) + "\n")
    shutil.rmtree(path / "checkpoints")
    found = collect(path)
    assert found["hides"] == {"clients": name == "clients", "examples": name == "examples"}
    assert found["holdings"] == found["held"] == {}
    assert set(found["data"]) == ({"kept"} if name == "examples" else set())
    with pytest.raises(DataError, match=r"noise hides its clients" + "' examples" * (name == "examples")):
        plots.clients(path)


def test_the_chat_and_an_evaluation_tell_nothing_without_it(lost, tmp_path) -> None:
    name, path = lost
    (arm,) = [each for each in chat.find(path, planned(path)) if each.name == "federated"]
    assert not [kind for kind in runs.CATEGORIES if f"of {kind}" in arm.says or f", {kind}" in arm.says]
    assert ("clients, " in arm.says) == (name == "examples")
    found = evaluation.evaluate_run(path, runs.written(tmp_path / "rows.jsonl"))
    assert any("noise hides what the run was trained on" in each for each in found.remarks)


def test_a_card_counts_nothing_that_the_run_file_hides(trained) -> None:
    for name, path in trained.items():
        settings = planned(path)
        text = card.text(
            settings, rows=[], answers={}, data={"cut": 3, "heldout": 5}, clients={"a": 7, "b": 9}
        )
        assert "| cut | 3 |" not in text
        assert "tokens trained" not in text
        assert ("16, from 7 to 9 a client" in text) == (name == "examples")
        assert ("bytes sent down" in text) == (name == "examples")
