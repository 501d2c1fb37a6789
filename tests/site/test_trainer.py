"""A trainer's replies: law 2, what is refused, and what goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.site import trained
from tests.site.trained import NAME, RUN, ask, broadcast, reason, request

from shepherd import plugins, prepare
from shepherd.core import Update
from shepherd.federation import wire
from shepherd.federation.simulation import Simulation
from shepherd.federation.wire import Joined, Scores
from shepherd.loading import load_base
from shepherd.site import audit
from shepherd.site.settings import own
from shepherd.site.trainer import Trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return trained.written(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def shaped(llama_folder, source) -> Any:
    """The base as the trainer loads it, for its shapes and for the reference."""
    return load_base(own(trained.settings(llama_folder, source), trained.TABLES, str(llama_folder)))


@pytest.fixture
def trainer(llama_folder, source, tmp_path) -> Trainer:
    return Trainer(trained.settings(llama_folder, source), NAME, tmp_path / "home")


def test_two_rounds_give_the_bits_of_a_simulation(llama_folder, source, shaped, trainer) -> None:
    """Law 2."""
    run = own(trained.settings(llama_folder, source), trained.TABLES, str(llama_folder))
    simulation = Simulation(
        base=shaped,
        datasets=prepare.one_client(run, NAME, shaped.tokenizer).clients,
        algorithm=plugins.algorithm(run.algorithm),
        transform=plugins.transform(run.transforms),
        tuning=run.tuning,
        federation=run.federation,
        seed=run.seed,
        cohort_size=1,
    )
    for round in range(2):
        sent = broadcast(shaped, round)
        (expected,) = simulation.run(sent, [NAME])
        assert ask(trainer, request(llama_folder, sent=sent)) == expected
