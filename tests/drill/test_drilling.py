"""A drill end to end on a tiny random base, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.runs import settings, written

from shepherd.drill import drilling, one_training
from shepherd.drill.drilling import DrillSpec, drill
from shepherd.drill.rules import rule, usual
from shepherd.drill.scores import Phrase
from shepherd.errors import FolderError, SettingsError
from shepherd.overrides import dump

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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
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


def test_the_usual_rules_are_those_that_fit_the_cohort(asked):
    ten = [each.text for each in usual(asked, 0.3, 10)]
    assert ten[0] == "mean"
    assert {"krum bad=3", "krum bad=3 keep=5", "trimmed_mean trim=0.3", "fltrust"} <= set(ten)
    assert not any("krum" in each.text for each in usual(asked, 0.3, 4))
    both = rule("norm_bound factor=2 + krum bad=3").over(asked)
    assert [table.name for table in both.transforms] == ["norm_bound"]
    assert both.aggregation.own == {"bad": 3}
