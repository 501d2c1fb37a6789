"""What a card and a log say of the trainings before a run: data, objective, rounds, and epsilon."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from shepherd.errors import FolderError
from shepherd.overrides import overridden, parse, plain
from shepherd.run import ledger, lineage
from shepherd.run.folder import planned
from shepherd.run.lineage import Training
from shepherd.run.mix import mix
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.settings import RunSettings
from shepherd.ui.chat import arms as chat
from shepherd.ui.report import collect
from shepherd.ui.report.page import html
from tests import preferences, runs
from tests.ui.report.test_page import Outline

EPSILON = "epsilon 4.054"  # one round of noise 1 over all clients, at delta 0.2


def trained(settings: RunSettings) -> Path:
    with open_run(settings) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)
    return run.folder


def one_round(base: Path, source: Path, output: Path, **tables: Any) -> RunSettings:
    usual = {
        "federation": {"rounds": 1, "weights": "equal"},
        "selection": {"share": 1.0},
        "tuning": {"max_steps": 1, "objective": {"name": "sft"}},
    }
    return preferences.settings(base, source, output, **{**usual, **tables})


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl", preferences.rows())


@pytest.fixture(scope="module")
def private(llama_folder, source, tmp_path_factory) -> Path:
    """A run that has spent privacy."""
    given = one_round(
        llama_folder, source, tmp_path_factory.mktemp("first") / "private", privacy={"delta": 0.2}
    )
    noise = {"name": "gaussian", "norm": 1.0, "noise": 1.0}
    return trained(parse({**plain(given), "transforms": [noise]}))


@pytest.fixture(scope="module")
def after(private, llama_folder, source, tmp_path_factory) -> tuple[Path, str]:
    """A run of DPO that began with it, and what its beginning logged."""
    place = tmp_path_factory.mktemp("then") / "then"
    told: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("shepherd")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        tuning = {"objective": {"name": "dpo", "beta": 0.5}}
        trained(one_round(llama_folder, source, place, adapter={"start": str(private)}, tuning=tuning))
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return place, "\n".join(told)


def card(path: Path) -> ModelCard:
    return ModelCard((path / "README.md").read_text(encoding="utf8"))


def test_a_run_from_a_private_one_says_what_that_one_spent(private, after) -> None:
    assert f"{ledger.read(private)['epsilon']:.4g}" in EPSILON  # what is asserted below is the ledger's
    path, told = after
    assert f"before this run, private spent {EPSILON} at delta 0.2 for each client" in told
    text = card(path / "adapter").text
    assert f"| `private` | `rows.jsonl` | sft | 1 | {EPSILON} at delta 0.2 for each client |" in text
    assert "| `then` | `rows.jsonl` | dpo | 1 | no claim |" in text
    assert f"Before this run, private spent {EPSILON} at delta 0.2 for each client, which adds up" in text
    assert str(private.parent) not in text


def test_a_card_names_the_objective_of_its_run_and_the_tags_of_all(after) -> None:
    found = card(after[0] / "adapter")
    assert "tuned with the objective dpo, from another adapter, by fedavg" in found.text
    assert {"instruction-tuning", "dpo"} <= set(found.data.tags)


def test_the_trainings_are_handed_on_and_outlive_their_folders(after, llama_folder, source, tmp_path) -> None:
    third = trained(one_round(llama_folder, source, tmp_path / "third", adapter={"start": str(after[0])}))
    found = lineage.of_run(third)
    assert [(each.run, each.objective, each.spent[:13]) for each in found] == [
        ("private", "sft", EPSILON),
        ("then", "dpo", ""),
        ("third", "sft", ""),
    ]
    assert lineage.of_run(third / "adapter") == found
    assert lineage.of_run(tmp_path) == ()


def test_a_merge_names_what_its_parts_were_trained_on_and_have_spent(private, after, tmp_path) -> None:
    shutil.copytree(private / "adapter", tmp_path / "alone")
    made = mix([private, after[0], tmp_path / "alone"], tmp_path / "made")
    text = card(made).text
    assert text.count(f"| `private` | `rows.jsonl` | sft | 1 | {EPSILON} at delta 0.2 for each client |") == 2
    assert "| `then` | `rows.jsonl` | dpo | 1 | no claim |" in text
    assert "What they have spent of privacy adds up where the same clients took part." in text
    assert "Of how alone was trained, nothing is known here." in text


def test_the_data_of_the_hub_are_the_union(llama_folder) -> None:
    from shepherd.run import card as cards

    settings = parse({"model": {"base": "org/model"}, "data": {"source": "org/pairs"}})
    first = lineage.training(overridden(settings, ["data.source=org/rows"]), [{"round": 3}], {}, {})
    assert (first.dataset, first.rounds) == ("org/rows", 3)
    assert lineage.training(overridden(settings, ["data.source=/a/b"]), [], {}, {}).dataset == ""
    text = cards.text(settings, rows=[], answers={}, data={}, clients={}, before=(first, first))
    assert ModelCard(text).data.datasets == ["org/rows", "org/pairs"]


def test_noise_after_a_training_without_any_is_not_said_to_hide_that_one() -> None:
    from shepherd.run import card as cards

    settings = parse({"model": {"base": "org/model"}, "data": {"source": "org/pairs"}})
    kept = {"epsilon": 1.0, "delta": 0.1, "finished": 1, "noise": 2.0, "says": []}
    given: Any = {"rows": [], "answers": {}, "data": {}, "clients": {}, "privacy": kept}
    said = "A training before it claims no privacy"
    assert said in cards.text(settings, **given, before=(Training(run="a", data="b"),))
    assert said not in cards.text(settings, **given, before=(Training(run="a", data="b", spent="epsilon 1"),))


def test_all_that_tells_an_epsilon_tells_what_it_does_not_speak_of(
    llama_folder, source, tmp_path, caplog
) -> None:
    """A training without noise, and then one with it: card, log, end of the run, page and chat."""
    first = trained(one_round(llama_folder, source, tmp_path / "plain"))
    given = one_round(
        llama_folder, source, tmp_path / "then", privacy={"delta": 0.2}, adapter={"start": str(first)}
    )
    noise = {"name": "gaussian", "norm": 1.0, "noise": 1.0}
    caplog.set_level(logging.INFO, "shepherd")
    with open_run(parse({**plain(given), "transforms": [noise]})) as run:
        told = caplog.text
        for _ in run.rounds():
            pass
        end = " ".join(run.finish(answer=False)["remarks"])
    path = run.folder
    due = lineage.caveats(lineage.source(path), lineage.before(path))
    assert [each.split(":")[0] for each in due] == [
        "The run began with an adapter that was tuned before",
        "A training before it claims no privacy",
    ]
    (arm,) = [each for each in chat.find(path, planned(path)) if each.name == "federated"]
    page = " ".join(Outline(html(collect(path))).tagged("main")[0]["text"].split())
    for sentence in due:
        for text in (told, end, card(path / "adapter").text, page, arm.says + "."):
            assert sentence in text
    caplog.clear()
    resume(path).close()
    assert all(sentence in caplog.text for sentence in due)


def test_without_noise_or_a_start_there_is_no_such_sentence(private, after) -> None:
    (arm,) = [each for each in chat.find(private, planned(private)) if each.name == "federated"]
    assert arm.says.endswith("for each client")
    assert lineage.caveats(lineage.source(private), lineage.before(private)) == []
    (arm,) = [each for each in chat.find(after[0], planned(after[0])) if each.name == "federated"]
    assert "began with" not in arm.says
    assert "The run began with" not in after[1]


def test_a_damaged_record_is_named(after, tmp_path) -> None:
    shutil.copytree(after[0], tmp_path / "run")
    file = tmp_path / "run" / "start" / "source.json"
    for wrong in ("{", '{"before": [{"name": 1}]}', "[]"):
        file.write_text(wrong)
        with pytest.raises(FolderError, match=r"source\.json is damaged"):
            lineage.before(tmp_path / "run")
