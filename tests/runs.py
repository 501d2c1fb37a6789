"""A small federation on a tiny random base, for tests of whole runs."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from benchmarks import gguf_bases
from shepherd.overrides import parse
from shepherd.run import folder
from shepherd.run.opening import open_run
from shepherd.settings import RunSettings

CATEGORIES = ("qa", "poem", "list")
TIMES = ("seconds",)  # the one part of a row that two equal runs do not share


def rows(count: int = 36, seed: int = 0) -> list[dict[str, str]]:
    """Instructions in the words of the tiny bases' tokenizer."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{n}" for n in rng.integers(4, 61, rng.integers(low, high)))

    return [
        {
            "instruction": f"w{4 + i % 57} {words(1, 5)}",
            "context": words(1, 4) if i % 2 else "",
            "response": words(2, 8),
            "category": CATEGORIES[i % 3],
        }
        for i in range(count)
    ]


def written(path: Path, examples: list[dict[str, str]] | None = None) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in (examples or rows())))
    return path


def settings(base: Path, source: Path, output: Path, **tables: Mapping[str, Any]) -> RunSettings:
    """Three rounds of two of four clients, with dropout, in a couple of seconds."""
    given: dict[str, dict[str, Any]] = {
        "model": {"base": str(base), "dtype": "float32"},
        "adapter": {"rank": 2, "dropout": 0.1},
        "data": {"source": str(source), "template": "plain", "max_tokens": 48, "holdout": 0.17},
        "split": {"clients": 4},
        "federation": {"rounds": 3},
        "selection": {"share": 0.5},
        "tuning": {"batch_size": 4, "learning_rate": 0.01},
        "machine": {"device": "cpu", "threads": 1, "stack_size": 2},
    }
    for name, table in tables.items():
        given[name] = {**given.get(name, {}), **table}
    return parse({**given, "output": str(output)})


def finished(base: Path, place: Path) -> Path:
    """The folder of a run of one round, which lies in `place` with its data."""
    given = settings(base, written(place / "rows.jsonl"), place / "run", federation={"rounds": 1})
    with open_run(given) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)
    return place / "run"


def readable(place: Path) -> Path:
    """The folder of a run of one round over a base that llama.cpp reads, and whose folder has a licence."""
    base = gguf_bases.save(gguf_bases.CONFIGS["llama"], place / "base")
    (base / "LICENSE").write_text("Do what you like.\n")
    tables = {"federation": {"rounds": 1}, "adapter": {"rank": 9}, "data": {"max_tokens": 120}}
    with open_run(settings(base, written(place / "rows.jsonl"), place / "run", **tables)) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)
    return place / "run"


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}


def as_before_plans(path: Path) -> None:
    """The folder as an earlier version wrote it: what was chosen stands in the run file, by the old keys."""
    file = path / folder.RUN_FILE
    tables = tomllib.loads(folder.dump(folder.planned(path)))
    machine, silos = tables.pop("machine"), tables.pop("silos")
    tables["model"]["device"] = machine["device"]
    tables["tuning"] |= {
        "threads": machine["threads"],
        "workers": machine["workers"],
        "cohort_size": machine["stack_size"],
        "micro_batch_tokens": machine["micro_batch_tokens"],
    }
    tables["federation"] |= {"sites": [], "deadline": silos["deadline_s"], "wave": silos["max_in_flight"]}
    file.write_text(tomli_w.dumps(tables))
    (path / folder.PLAN).unlink()
