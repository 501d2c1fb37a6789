"""The section on one client's update: what a plain step gives away, and what noise for each example does."""

from __future__ import annotations

import pytest
from tests import runs

from shepherd.audit import one_update
from shepherd.data import pipeline
from shepherd.model import lora
from shepherd.run.loading import load_base
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.optimisers import sgd

SGD = LocalTraining(sgd.build(sgd.Config()), DEFAULT_TRAINING.objective)


@pytest.fixture(scope="module")
def rows(llama_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("one")
    runs.written(place / "rows.jsonl", runs.rows(100))

    def measured(**tables):
        usual = {
            "adapter": {"rank": 16, "dropout": 0.0},
            "tuning": {"learning_rate": 0.4, "clip_norm": 0.0},
            "federation": {"weights": "equal"},
        }
        settings = runs.settings(llama_folder, place / "rows.jsonl", place / "run", **{**usual, **tables})
        base = load_base(settings)
        prepared = pipeline.prepare(settings, base.tokenizer)
        fresh = lora.fresh(base.targets, 16, 0)
        found = one_update.section(
            base, settings, prepared, {"first round": fresh}, training=SGD, micro_batch=512
        )
        assert found is not None
        return found.rows

    return measured


def test_a_plain_step_of_one_example_is_read_and_one_under_noise_is_not(rows) -> None:
    plain, noisy = rows(), rows(privacy={"examples": {"norm": 1.0, "noise": 5.0}})
    assert [row[:2] for row in plain] == [["first round", 1], ["first round", 4]]
    assert plain[0][2] > 0.8
    assert noisy[0][2] < 0.3


def test_a_vocabulary_that_would_take_long_is_not_attacked(rows, monkeypatch) -> None:
    monkeypatch.setattr(one_update, "MAX_VALUES", 10)
    with pytest.raises(AssertionError):
        rows()
