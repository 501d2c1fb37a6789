"""One federation for the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from tests.silos.flare import federations


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federations.made(tmp_path_factory.mktemp("federations") / "one")


@pytest.fixture(scope="session")
def other_federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federations.made(tmp_path_factory.mktemp("federations") / "other", sites=1)
