"""What the benchmarks run on: the demo's world, which comes with the project, or real data beside it.

`../shared`, or the folder that SHEPHERD_SHARED names, holds `data/dolly/ten_clients` (Dolly as ten
ready-made clients) and `models/novella-8m` (a small real base). SmolLM2-135M-Instruct, a pretrained base,
is fetched by `tools/get_smollm2.py`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Missing
from shepherd import world
from shepherd.overrides import parse
from shepherd.settings import TINY, RunSettings

Tables = Mapping[str, Any]
SETTINGS = ("dolly", "world", "smollm2")


def settings(on: str, *changes: Tables) -> RunSettings:
    """A run on one of `SETTINGS`, with the keys of `changes` put over it, last wins.

    Raises:
        Missing: the data or the base are not on this machine.
    """
    table = tables(on)
    for change in changes:
        table = merged(table, change)
    return parsed(table)


def tables(on: str) -> dict[str, Any]:
    """The tables of one of `SETTINGS`.

    Raises:
        Missing: the data or the base are not on this machine.
    """
    return {"dolly": _dolly, "world": _world, "smollm2": _smollm2}[on]()


def parsed(table: Tables) -> RunSettings:
    """Raises SettingsError, in the benchmark's name."""
    return parse(table, "the benchmark's setting")


def placed(settings: RunSettings) -> RunSettings:
    """The embedded base by its folder, for what reads a base without a run."""
    if settings.model.base != TINY:
        return settings
    model = settings.model.model_copy(update={"base": str(world.base_path())})
    return settings.model_copy(update={"model": model})


def merged(table: Tables, change: Tables) -> dict[str, Any]:
    """`table` with the keys of `change`, table by table.

    >>> merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}, "b": 4})
    {'a': {'x': 1, 'y': 3}, 'b': 4}
    """
    inner = {
        key: merged(table[key], value) if isinstance(value, Mapping) and key in table else value
        for key, value in change.items()
    }
    return {**table, **inner}


def available() -> str:
    """The setting that needs nothing more, else the one on real data."""
    return "world" if (world.base_path() / "config.json").is_file() else "dolly"


def _world() -> dict[str, Any]:
    _needed(world.base_path() / "config.json")
    return tomllib.loads(_needed(ROOT / "examples" / "demo.toml").read_text(encoding="utf8"))


def _dolly() -> dict[str, Any]:
    """The setting whose arms `models/README.md` there reports for a plain padded loop."""
    return {
        "model": {"base": str(_needed(shared() / "models" / "novella-8m"))},
        "adapter": {"rank": 8, "alpha": 16, "targets": "all-linear"},
        "data": {
            "source": str(_needed(shared() / "data" / "dolly" / "ten_clients")),
            "template": "alpaca",
            "holdout": 0.1,
            "max_tokens": 384,
        },
        "split": {"by": "ready-made"},
        "federation": {"rounds": 10},
        "selection": {"share": 1.0},
        "tuning": {"batch_size": 16, "learning_rate": 1e-3, "max_steps": 8},
        "evaluation": {"examples": 400},
    }


def _smollm2() -> dict[str, Any]:
    """examples/smollm2.toml on the same ten clients as "dolly"."""
    table = tomllib.loads((ROOT / "examples" / "smollm2.toml").read_text(encoding="utf8"))
    here = {
        "model": {"base": str(pretrained())},
        "data": {"source": str(_needed(shared() / "data" / "dolly" / "ten_clients"))},
    }
    return {**merged(table, here), "split": {"by": "ready-made"}}


def pretrained() -> Path:
    """The folder of SmolLM2-135M, which `tools/get_smollm2.py` fetches.

    Raises:
        Missing: it is not on this machine.
    """
    home = Path.home() / ".cache" / "shepherd" / "SmolLM2-135M-Instruct"
    return _needed(Path(os.environ.get("SHEPHERD_SMOLLM2", home)) / "config.json").parent


def shared() -> Path:
    """Folder of the shared data and models: SHEPHERD_SHARED, or `shared` next to this checkout."""
    return Path(os.environ.get("SHEPHERD_SHARED", ROOT.parent / "shared"))


def _needed(path: Path) -> Path:
    if not path.exists():
        raise Missing(str(path))
    return path
