"""A site that trains on pairs of answers: a simulation's bits, counts in pairs, and its owner's leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shepherd import plugins
from shepherd.data import pipeline
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.machine import memory
from shepherd.machine.executors import Inline
from shepherd.silos.site.site_settings import settings_at_site
from shepherd.training.local import local_training
from tests import preferences, runs
from tests.silos.site import trained
from tests.silos.site.trained import NAME, ask, broadcast, reason, request, tables

ASKED = tables(tuning={"objective": {"name": "dpo", "beta": 0.5}})


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl", preferences.rows())


def simulated(base: Any, source: Path, folder: Path) -> Simulation:
    run = settings_at_site(trained.settings(folder, source), ASKED, str(folder))
    local = LocalClients(
        datasets=pipeline.one_client(run, NAME, base.tokenizer, paired=True).trained_on,
        algorithm=plugins.algorithm(run.algorithm),
        transform=plugins.transform(run.transforms),
        tuning=run.tuning,
        federation=run.federation,
        micro_batch_tokens=memory.micro_batch(base),
        order_seed=run.seed,
        training=local_training(run.tuning),
        min_batch=4,
    )
    return Simulation(local=local, executor=Inline(base), stack_size=1)


def test_rounds_of_pairs_give_the_bits_of_a_simulation(born, llama_folder, source, shaped) -> None:
    """Law 2; the second round by a new process."""
    here = simulated(shaped, source, llama_folder)
    for round in (0, 1):
        sent = broadcast(shaped, round)
        (expected,) = here.run(sent, [NAME])
        found = ask(born(objectives=["sft", "dpo"]), request(llama_folder, sent, settings=ASKED))
        assert found == replace(expected, metrics=found.metrics)
        assert found.metrics == {name: expected.metrics[name] for name in found.metrics}
        assert found.weight == expected.metrics["examples"] == 12  # pairs: three steps of four


def test_an_owner_who_has_not_allowed_it_is_not_asked_to_train_on_pairs(born, llama_folder, shaped) -> None:
    said = reason(ask(born(), request(llama_folder, broadcast(shaped), settings=ASKED)))
    assert "objective" in said
    assert "dpo" in said
