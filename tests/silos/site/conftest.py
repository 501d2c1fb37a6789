"""A site's trainer on a tiny base and a few rows, for the tests of what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shepherd.run.loading import load_base
from shepherd.silos.site.site_settings import settings_at_site
from shepherd.silos.site.trainer import Trainer
from tests import runs
from tests.silos.site import trained
from tests.silos.site.trained import NAME, TABLES


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def shaped(llama_folder, source) -> Any:
    """The base as the trainer loads it."""
    return load_base(settings_at_site(trained.settings(llama_folder, source), TABLES, str(llama_folder)))


@pytest.fixture
def born(llama_folder, source, tmp_path) -> Iterator[Callable[..., Trainer]]:
    """Makes a trainer; one made later at the same home is the process after the one before."""
    made: list[Trainer] = []

    def make(**policy: Any) -> Trainer:
        made.append(Trainer(trained.settings(llama_folder, source, **policy), NAME, tmp_path / "home"))
        return made[-1]

    yield make
    for trainer in made:
        trainer.stop()
        trainer._worker.shutdown()
