"""A tiny random base, saved once for all the tests that need one; no deadline on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # before they are imported

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.model import bases  # torch, for those who ask for it

    return bases.save(bases.CONFIGS["llama"], tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> Any:
    """A loaded base with rank 3 at every linear module."""
    from tests.model import bases

    return bases.load(llama_folder)


@pytest.fixture(scope="session")
def dropping(llama_folder: Path) -> Any:
    """The same base with LoRA dropout."""
    from tests.model import bases

    return bases.load(llama_folder, dropout=0.3)
