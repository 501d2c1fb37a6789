"""A tiny random base, saved once for all the tests that need one; no deadline on a busy machine."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # before they are imported
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes compiles as PEFT imports it, which takes seconds

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


LOADED: OrderedDict[str, Any] = OrderedDict()
MOST_LOADED = 8
"""Bases that stay in memory for later tests; loading and proving a tiny one takes half a second."""


@pytest.fixture(autouse=True)
def loaded_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test the base that an earlier one has loaded, except in the tests of `model`."""
    if "torch" not in sys.modules or "model" in request.path.parts:
        return
    from shepherd.model import base

    plain = base.load

    def load(model: Any, adapter: Any, name: str = "", **more: Any) -> Any:
        files = sorted(Path(model.base).glob("*"))
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        if not stats or more.get("proof") is not None:
            return plain(model, adapter, name, **more)
        key = repr((model, adapter, name, sorted(more.items()), stats))
        if key not in LOADED:
            LOADED[key] = plain(model, adapter, name, **more)
            if len(LOADED) > MOST_LOADED:
                LOADED.popitem(last=False)
        LOADED.move_to_end(key)
        return LOADED[key]

    monkeypatch.setattr(base, "load", load)


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
