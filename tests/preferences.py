"""Pairs of answers in the words of the tiny bases' tokenizer, and runs on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.settings import RunSettings
from tests import runs


def rows(count: int = 36, seed: int = 0) -> list[dict[str, str]]:
    """The rows of `runs.rows`, whose response is chosen; what is rejected ends in other words."""
    rng = np.random.default_rng(seed + 1)
    found = []
    for row in runs.rows(count, seed):
        worse = " ".join(f"w{n}" for n in rng.integers(4, 61, rng.integers(2, 8)))
        found.append({**row, "chosen": row["response"], "rejected": worse})
        del found[-1]["response"]
    return found


def settings(base: Path, source: Path, output: Path, **tables: Mapping[str, Any]) -> RunSettings:
    """Two rounds of two of four clients by DPO, without dropout."""
    tuning = {"objective": {"name": "dpo", "beta": 0.5}, "max_steps": 2, **tables.pop("tuning", {})}
    given = {"adapter": {"dropout": 0.0}, "federation": {"rounds": 2}, **tables}
    return runs.settings(base, source, output, **given, tuning=tuning)
