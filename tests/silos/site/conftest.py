"""A site's trainer on a tiny base and a few rows, for the tests of what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shepherd.run.loading import load_base
from shepherd.settings import RunSettings
from shepherd.silos.site import data_cache
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


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """The bases that trainers of these tests have loaded, by what they were asked for."""
    return {}


@pytest.fixture(autouse=True)
def loaded_once(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each trainer the base that an earlier one has loaded: only one works at a time."""
    plain = data_cache.load_base

    def load(settings: RunSettings) -> Any:
        key = settings.model_dump_json(include={"model", "adapter", "data", "machine"})
        if key not in loaded:
            loaded[key] = plain(settings)
        return loaded[key]

    monkeypatch.setattr(data_cache, "load_base", load)


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
