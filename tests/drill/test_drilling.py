"""A drill end to end on a tiny random base, in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.runs import settings, written

from shepherd.config import PartTable
from shepherd.drill import drilling, one_training
from shepherd.drill.drilling import DrillSpec, drill
from shepherd.drill.findings import sentences
from shepherd.drill.rules import rule, usual
from shepherd.drill.scores import Phrase
from shepherd.errors import FolderError, SettingsError
from shepherd.evaluate import loss
from shepherd.overrides import dump
from shepherd.settings import AggregationTable, SelectionTable

PHRASE = Phrase(trigger="w9 w10", target="w7")
RULES = ("mean", "coordinate_median", "krum bad=1")


@pytest.fixture
def asked(llama_folder, tmp_path):
    """Two rounds of five clients, all asked, with a file for the server."""
    return settings(
        llama_folder,
        written(tmp_path / "rows.jsonl"),
        tmp_path / "run",
        adapter={"dropout": 0.0},
        data={"root": str(written(tmp_path / "root.jsonl"))},
        split={"clients": 5},
        federation={"rounds": 2, "quorum": 0.5},
        selection={"share": 1.0},
        evaluation={"max_new_tokens": 3},
        tuning={"max_steps": 2},
        machine={"stack_size": 5},
    )


def row_of(found, attack, rule):
    (row,) = (each for each in found.row["rows"] if (each["attack"], each["rule"]) == (attack, rule))
    return row


def test_a_drill_tells_what_each_rule_stands_and_is_not_made_twice(asked, tmp_path, monkeypatch):
    spec = DrillSpec(share=0.2, attacks=("scaling", "nan", "backdoor"), rules=RULES, phrase=PHRASE)
    found = drill(asked, tmp_path / "drill", spec)
    assert len(found.row["bad"]) == 1
    assert [(row["attack"], row["rule"]) for row in found.row["rows"]] == [
        (attack, rule) for attack in ("none", "scaling", "backdoor", "nan") for rule in RULES
    ]
    for name in RULES:
        assert row_of(found, "none", name)["failures"] == row_of(found, "scaling", name)["failures"] == 0
        assert row_of(found, "none", name)["backdoor"] is not None
    # the mean keeps the bad client and goes off; the others do not
    assert row_of(found, "scaling", "mean")["kept_bad"] == 1.0
    assert row_of(found, "scaling", "krum bad=1")["kept_bad"] == 0.0
    honest = {name: row_of(found, "none", name)["loss"] for name in RULES}
    moved = {name: row_of(found, "scaling", name)["loss"] - honest[name] for name in RULES}
    assert moved["mean"] > 0.05 + max(moved["coordinate_median"], moved["krum bad=1"])
    # one client that sends no number is a counted failure each round, and krum then has too few
    assert (
        row_of(found, "nan", "mean")["failures"] == row_of(found, "nan", "coordinate_median")["failures"] == 2
    )
    assert "the aggregation requires 5" in row_of(found, "nan", "krum bad=1")["stopped"]
    assert row_of(found, "nan", "krum bad=1")["loss"] is None
    assert {section["title"] for section in found.row["sections"]} >= {"Without an attack", "Scaling"}
    monkeypatch.setattr(drilling, "trained", None)  # nothing is trained again
    assert drill(asked, tmp_path / "drill", spec).row["rows"] == found.row["rows"]
    with pytest.raises(FolderError, match="another share of bad clients"):
        drill(asked, tmp_path / "drill", DrillSpec(share=0.4, attacks=("nan",), rules=RULES, phrase=PHRASE))
    other = asked.model_copy(update={"seed": 5})
    with pytest.raises(FolderError, match="drill of a run with another seed"):
        drill(other, tmp_path / "drill", spec)


def test_a_drill_that_was_stopped_goes_on_to_the_same_bits(asked, tmp_path, monkeypatch):
    spec = DrillSpec(share=0.2, attacks=("noise",), rules=("fltrust",), phrase=PHRASE)
    whole = drill(asked, tmp_path / "whole", spec)
    save = one_training.checkpoint.save

    def stopping(folder: Path, *args, **kwargs):
        place = save(folder, *args, **kwargs)
        if "noise" in str(folder):
            raise KeyboardInterrupt
        return place

    with monkeypatch.context() as patch:
        patch.setattr(one_training.checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            drill(asked, tmp_path / "stopped", spec)
    assert drill(asked, tmp_path / "stopped", spec).row["rows"] == whole.row["rows"]
    assert row_of(whole, "noise", "fltrust")["kept_good"] > 0.5


def test_the_command_prints_the_table_and_writes_page_and_json(asked, tmp_path):
    from shepherd.ui.cli.main import main

    file = tmp_path / "run.toml"
    file.write_text(dump(asked))
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    words = ["drill", str(file), "--attack", "shape", "--rule", "mean", "--share", "0.2"]
    result = CliRunner().invoke(main, [*words, "--html", str(page), "--json", str(figures)])
    assert result.exit_code == 0, result.output
    assert "Shape: A tensor with a row too many." in result.output
    found = json.loads(figures.read_text())
    assert found["rows"][1]["failures"] == 2
    assert "Shepherd drill" in page.read_text()
    assert (tmp_path / "run-drill" / "drill.html").is_file()
    assert str(tmp_path / "run-drill" / "drill.json") in result.output.replace("\n", "")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DrillSpec(share=0.05), "a share of 0.05 of 5 clients is no bad client, .* give --share 0.1 or more"),
        (DrillSpec(attacks=("flood",)), "no attack called 'flood'; there are none, sign_flip"),
        (DrillSpec(rules=("krum bad=2",)), r'a round asks 5 of 5 clients, .* "krum" .* requires 7'),
        (DrillSpec(rules=("trimmed_mean trim=0.5",)), r"trim"),
        (DrillSpec(rules=("mean", "mean")), "named twice"),
        (DrillSpec(rules=("krum + mean",)), "names two aggregations"),
        (DrillSpec(rules=("kurm",)), "did you mean 'krum'"),
        (DrillSpec(rules=("bad=1",)), "names no aggregation"),
    ],
)
def test_what_cannot_be_drilled_is_refused_before_anything_is_trained(asked, tmp_path, spec, message):
    with pytest.raises(SettingsError, match=message):
        drill(asked, tmp_path / "drill", spec)
    assert not (tmp_path / "drill").exists()


def test_a_folder_with_something_else_is_left_alone(asked, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FolderError, match="holds no drill"):
        drill(asked, tmp_path / "mine", DrillSpec())


def test_bad_clients_apply_the_transforms_and_a_model_without_a_finite_loss_is_one_that_stopped(
    asked, tmp_path, monkeypatch
):
    """Clipped and encoded attacks are no failures; a loss that is no number is said, and not written."""
    encoded = asked.model_copy(
        update={"transforms": (PartTable(name="clip", norm=0.5), PartTable(name="quantise", feedback=False))}
    )
    summarise = loss.summarise
    spec = DrillSpec(share=0.2, attacks=("sign_flip",), rules=("mean",), phrase=PHRASE)
    with monkeypatch.context() as patch:
        patch.setattr(loss, "summarise", lambda *given: replace(summarise(*given), loss=float("inf")))
        found = drill(encoded, tmp_path / "drill", spec)
    for attack in ("none", "sign_flip"):
        row = row_of(found, attack, "mean")
        assert (row["failures"], row["kept_good"], row["loss"]) == (0, 1.0, None)
        assert row["stopped"] == "the model gives no finite loss"
    assert row_of(found, "sign_flip", "mean")["kept_bad"] == 1.0
    assert json.loads(drilling.dumped(found))["says"]


def test_a_rule_is_checked_with_the_selection_of_the_run_file(asked, tmp_path):
    by_loss = asked.model_copy(update={"selection": SelectionTable(name="oort", share=1.0)})
    with pytest.raises(SettingsError, match="'oort' asks clients by the loss"):
        drill(by_loss, tmp_path / "drill", DrillSpec(rules=("mean", "krum bad=1")))
    assert [each.text for each in usual(by_loss, 0.3, 10)] == ["mean"]


def test_the_usual_rules_leave_out_those_that_a_run_file_cannot_have(asked):
    feeding = asked.model_copy(update={"server": PartTable(name="fedadam")})  # which needs a mean
    assert [each.text for each in usual(feeding, 0.3, 10)] == ["mean", "norm_bound"]


def test_the_run_files_own_rule_is_named_with_its_keys_beside_a_namesake(asked):
    own = AggregationTable(name="geometric_median", space="factors", steps=3)
    found = usual(asked.model_copy(update={"aggregation": own}), 0.3, 10)
    keys = {each.text: each.aggregation.own for each in found if not each.bounds}
    assert found[0].text == "geometric_median space=factors steps=3"
    assert keys[found[0].text] == {"space": "factors", "steps": 3}
    assert keys["geometric_median"] == {}
    assert rule(found[0].text).aggregation == own
    strict = asked.model_copy(update={"aggregation": AggregationTable(name="krum", bad=3)})
    assert [each.text for each in usual(strict, 0.3, 10)].count("krum bad=3") == 1
    assert usual(strict, 0.3, 4)[0].text == "krum bad=3"  # it is for the caller to say that it does not fit


def test_a_cohort_that_is_a_draw_is_said_to_have_more_bad_clients_at_times():
    row = {"rows": [], "rules": ["mean"], "attacks": {}, "clients": 20, "cohort": 5, "bad": ["a"] * 6}
    row["rows"] = [{"attack": "none", "rule": "mean", "loss": None}]
    assert "asks 5 of the 20 clients, 6 of which are bad" in sentences(row)[-1]
    assert not any("by chance" in each for each in sentences({**row, "cohort": 20}))


def test_the_usual_rules_are_those_that_fit_the_cohort(asked):
    ten = [each.text for each in usual(asked, 0.3, 10)]
    assert ten[0] == "mean"
    assert {"krum bad=3", "krum bad=3 keep=5", "trimmed_mean trim=0.3", "fltrust"} <= set(ten)
    assert not any("krum" in each.text for each in usual(asked, 0.3, 4))
    both = rule("norm_bound factor=2 + krum bad=3").over(asked)
    assert [table.name for table in both.transforms] == ["norm_bound"]
    assert both.aggregation.own == {"bad": 3}
