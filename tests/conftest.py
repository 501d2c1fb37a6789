"""A tiny random base, saved once for all the tests that need one; no deadline on a busy machine."""

from __future__ import annotations

import gc
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # before they are imported
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes compiles as PEFT imports it, which takes seconds

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Leave modules and tests out of garbage collection: a million objects that stay to the end."""
    gc.collect()
    gc.freeze()


LOADED: OrderedDict[str, Any] = OrderedDict()
MOST_LOADED = 8
"""Bases that stay in memory for later tests; loading and proving a tiny one takes half a second."""


FOUND: dict[int, dict[str, Any]] = {}
"""By each of these bases: whether PEFT loads its adapters, and how fast it is."""


def _once(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The function, computed once for a loaded base, equal settings and as many examples."""

    def once(base: Any, *more: Any) -> Any:
        if id(base) not in FOUND:
            return plain(base, *more)
        key = repr((plain.__name__, [len(each) if hasattr(each, "loss_mask") else each for each in more]))
        if key not in FOUND[id(base)]:
            FOUND[id(base)][key] = plain(base, *more)
        return FOUND[id(base)][key]

    return once


@pytest.fixture(autouse=True)
def loaded_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test the base that an earlier one has loaded, except in the tests of `model`."""
    if "torch" not in sys.modules or "model" in request.path.parts:
        return
    from shepherd.machine import estimate
    from shepherd.model import base, files

    plain = base.load

    def load(model: Any, adapter: Any, name: str = "", **more: Any) -> Any:
        paths = sorted(Path(model.base).glob("*"))
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        if not stats or more.get("proof") is not None:
            return plain(model, adapter, name, **more)
        key = repr((model, adapter, name, sorted(more.items()), stats))
        if key not in LOADED:
            LOADED[key] = plain(model, adapter, name, **more)
            FOUND[id(LOADED[key])] = {}
            if len(LOADED) > MOST_LOADED:
                del FOUND[id(LOADED.popitem(last=False)[1])]
        LOADED.move_to_end(key)
        return LOADED[key]

    monkeypatch.setattr(base, "load", load)
    if "machine" not in request.path.parts:
        monkeypatch.setattr(files, "rehearse", _once(files.rehearse))
        monkeypatch.setattr(estimate, "_measured_speed", _once(estimate._measured_speed))


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
