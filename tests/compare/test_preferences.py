"""A comparison of preference tuning: accuracy and margin by hand from the scores, with and without stages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.data import data_folder, dataset
from shepherd.evaluate import rewards
from shepherd.model import files
from shepherd.overrides import parse, plain
from shepherd.run.answerer import adapter_of
from shepherd.run.folder import planned
from shepherd.ui.report import collect
from shepherd.ui.report.page import html
from shepherd.ui.terminal.comparison_table import print_comparison
from tests import preferences, runs
from tests.model import bases

BETA = 0.5
ASKED = CompareSpec(locals=("client-1",), variants=("sft: tuning.objective={name='sft'}",), match="steps")
ARMS = ["base", "start", "local-client-1", "centralised", "federated", "sft"]


@pytest.fixture(scope="module")
def made(llama_folder, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A stage of supervised tuning, then one of DPO, whose arms begin from it."""
    place = tmp_path_factory.mktemp("compared")
    source = runs.written(place / "rows.jsonl", preferences.rows())
    table = plain(preferences.settings(llama_folder, source, place / "run", federation={"rounds": 1}))
    settings = parse({**table, "stages": [{"tuning": {"objective": {"name": "sft"}}}, {}]})
    return place / "run", compare(settings, ASKED)


def arm(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["arms"] if each["name"] == name)


def test_accuracy_and_margin_are_those_of_the_scores_by_hand(made) -> None:
    run, found = made
    assert [each["name"] for each in found["arms"]] == ARMS
    named = np.array(dataset.categories(data_folder.load(run / "data")))

    def scores(name: str) -> np.ndarray:
        kept = json.loads((run / "compare" / "seed-0" / "scores" / f"{name}.json").read_text())
        assert kept["questions"]["losses"] == list(range(len(named)))
        return np.array(kept["rejected"]) - np.array(kept["losses"])  # log-probabilities are minus the losses

    for name in ARMS:
        margins = BETA * (scores(name) - scores("start"))
        mean = np.mean([margins[named == n].mean() for n in set(named)])
        right = np.where(margins > 0, 1.0, np.where(margins < 0, 0.0, 0.5))
        share = np.mean([right[named == n].mean() for n in set(named)])
        measures = arm(found, name)["measures"]
        assert measures["margin"]["value"] == pytest.approx(mean, abs=1e-9)
        assert measures["preference"]["value"] == pytest.approx(share, abs=1e-9)
        for interval in (measures["margin"], measures["preference"]):
            assert interval["low"] is None or interval["low"] <= interval["value"]
    # of the reference they are so by definition, whatever the pairs are
    assert arm(found, "start")["measures"]["margin"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert arm(found, "start")["measures"]["preference"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert arm(found, "base")["measures"]["margin"]["low"] < arm(found, "base")["measures"]["margin"]["high"]


def test_the_federated_arm_is_compared_by_what_it_prefers(made) -> None:
    _, found = made
    assert {row["measure"] for row in found["differences"]} == {"preference", "margin"}
    for row in found["differences"]:
        if row["measure"] == "margin":  # which may be negative, so that a ratio means nothing
            assert row["relative"] == {"value": None, "low": None, "high": None}
    assert any("reward margin over start above" in sentence for sentence in found["says"])
    assert any("All arms but base began from start" in sentence for sentence in found["says"])


def test_every_arm_of_the_last_stage_began_from_the_first_ones_adapter(made) -> None:
    run, found = made
    base = bases.load(planned(run).model.base, rank=2, alpha=16)
    start = adapter_of(next((run / "stages").iterdir()), base)
    assert files.read(run / "start", base) == start
    assert files.read(run / "compare" / "seed-0" / "sft" / "start", base) == start
    assert arm(found, "local-client-1")["trained"]["steps"] == 2
    assert arm(found, "local-client-1")["trained"]["examples"] <= 2 * 4  # pairs


def test_the_table_and_the_page_show_margins_in_nats(made) -> None:
    run, found = made
    stream = io.StringIO()
    print_comparison(found, stream)
    text = stream.getvalue()
    assert "held-out pairs" in text
    assert "chosen %" in text
    margin = arm(found, "federated")["measures"]["margin"]["value"]
    assert f"{margin:.3f}" in text
    page = html(collect(run))
    assert "Mean reward margin".lower() in page.lower()


def test_a_pair_without_a_margin_counts_half() -> None:
    found = rewards.summarise(np.array([1.0, 0.0, -2.0, 4.0]), ["a", "a", "b", "b"])
    assert (found["accuracy"], found["margin"]) == (pytest.approx(0.625), pytest.approx(0.75))
    assert found["category"] == {
        "a": {"accuracy": 0.75, "margin": 0.5},
        "b": {"accuracy": 0.5, "margin": 1.0},
    }
