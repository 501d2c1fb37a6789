"""What `shepherd plan` says against what runs take: peak memory, seconds of tuning a round, bytes.

Five run files: the embedded base, novella-8m and SmolLM2-135M on Dolly, unequal ranks by the exact product,
and a thousand clients. Each plan and each run is a process of its own, the plan first. The aims are 15% for
memory and 30% for time; bytes must be equal. A file whose base or data are not on this machine is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Missing, Table
from shepherd.machine import malloc
from shepherd.overrides import dump
from shepherd.run import measured
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings

MEMORY, TIME = "peak memory", "tuning, a round"
AIMS = {MEMORY: 0.15, TIME: 0.30, "sent to clients, a round": 0.0, "received from clients, a round": 0.0}
SHORT: Mapping[str, Any] = {
    "federation": {"rounds": 3},
    "evaluation": {"every": 3, "examples": 32, "answers": 0},
    "server": {"learning_rate": 1},
}
FILES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "world": ("world", {"data": {"limit": 200}, "tuning": {"max_steps": 8}}),
    "novella-8m": ("dolly", {"tuning": {"max_steps": 2}}),
    "SmolLM2-135M": (
        "smollm2",
        {"data": {"max_tokens": 128}, "tuning": {"max_steps": 1}, "selection": {"share": 0.2}},
    ),
    "product, unequal ranks": (
        "world",
        {
            "data": {"limit": 200},
            "tuning": {"max_steps": 8},
            "aggregation": {"name": "product"},
            "adapter": {"ranks": [4, 16]},
        },
    ),
    "1,000 clients": (
        "world",
        {
            "data": {"limit": 400},
            "split": {"by": "iid", "clients": 1000},
            "tuning": {"max_steps": 1},
            "selection": {"share": 0.05},
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--only", action="append", choices=tuple(FILES), help="this run file alone; repeatable"
    )
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    names = options.only or (("world",) if options.quick else tuple(FILES))
    found: dict[str, Any] = {}
    for name in names:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                found[name] = _measured(name, Path(scratch), options)
            print(name, json.dumps(found[name]), flush=True)  # what is done stays if the rest is not
        except Missing as missing:
            print(f"{name} is left out: {missing} is missing")
    return {"files": found}


def tables(figures: Figures) -> Sequence[Table]:
    rows = []
    for name, case in figures["files"].items():
        for what, figure in case.items():
            off = figure["off"]
            aim = AIMS[what]
            rows.append(
                (
                    f"{name}: {what}",
                    _shown(figure["unit"], figure["planned"]),
                    _shown(figure["unit"], figure["measured"]),
                    "" if off is None else f"{off:+.1%}",
                    "" if off is None else "yes" if abs(off) <= aim else "no",
                )
            )
    notes = ("Planned before, by `shepherd plan`; measured by the run: peak of all processes, median round.",)
    return [Table("Plan and truth", ("figure", "planned", "measured", "off by", "in the aim"), rows, notes)]


def _shown(unit: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if unit == "seconds" else f"{value / 1e6:,.1f} MB"


def _measured(name: str, scratch: Path, options: Namespace) -> dict[str, Any]:
    on, changes = FILES[name]
    machine = {"machine": {"threads": options.threads}} if options.threads else {}
    table = setting.merged(setting.tables(on), SHORT)
    if "split" in changes:
        table.pop("split")
    given: RunSettings = setting.parsed(
        setting.merged(setting.merged(table, changes), {**machine, "output": str(scratch / "run")})
    )
    file = scratch / "run.toml"
    file.write_text(dump(given), encoding="utf8")
    planned = json.loads(_shepherd("plan", str(file), "--json"))
    _shepherd("run", str(file))
    kept = measured.figures(scratch / "run", read_rows(scratch / "run"))
    said = {
        MEMORY: planned["memory"]["total"],
        TIME: planned["tuning_seconds"],
        "sent to clients, a round": planned["bytes_down"],
        "received from clients, a round": planned["bytes_up"],
    }
    return {
        figure.name: {
            "unit": figure.unit,
            "planned": said[figure.name],
            "measured": figure.measured,
            "off": said[figure.name] / figure.measured - 1 if figure.measured else None,
            "planned_by_the_run": figure.planned,
        }
        for figure in kept
    }


def _shepherd(*words: str) -> str:
    """Run the command and return what it prints; its own messages go to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "shepherd", *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=common.ROOT,
        env={**os.environ, **malloc.environment()},
        check=False,
    )
    if done.returncode not in (0, 1 if words[0] == "plan" else 0):
        raise RuntimeError(f"shepherd {words[0]} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
