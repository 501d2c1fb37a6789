"""Seconds until the command answers: help, the check of 15,000 examples, and a run up to its first round.

Each is a process of its own, started `--repeats` times. Processor seconds stand beside the seconds that pass,
since other work on a machine lengthens these alone. The floor of the check is what transformers takes to be
imported and to tokenise the same texts in one batch.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.overrides import dump

AIMS = {"--help": 0.3, "data check of Dolly": 10.0}
FLOOR = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
files = sorted(Path(sys.argv[2]).glob("local_*.json"))
rows = [row for path in files for row in json.loads(path.read_text())]
texts = [" ".join(str(value) for value in row.values()) for row in rows]
for at in range(0, len(texts), 1024):
    tokenizer(texts[at : at + 1024])
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="default 3")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    repeats = 1 if options.quick else options.repeats
    shepherd = [sys.executable, "-m", "shepherd"]
    cases: dict[str, list[str]] = {"--help": [*shepherd, "--help"]}
    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch) / "tiny.toml"
        tiny.write_text(dump(_tiny(Path(scratch))), encoding="utf8")
        cases["a tiny run, whole"] = [*shepherd, "run", str(tiny)]
        if not options.quick:
            dolly = Path(scratch) / "dolly.toml"
            table = setting.tables("dolly")
            dolly.write_text(dump(setting.parsed({**table, "output": f"{scratch}/dolly"})), encoding="utf8")
            cases["data check of Dolly"] = [*shepherd, "data", "check", str(dolly)]
            cases["its floor"] = [
                sys.executable, "-c", FLOOR, table["model"]["base"], table["data"]["source"],
            ]  # fmt: skip
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for turn in range(repeats):
            for name, words in cases.items():
                turns[name].append(_timed([*words, f"output={scratch}/{turn}"] if "run" in words else words))
    return {"cases": {name: _middle(each) for name, each in turns.items()}}


def tables(figures: Figures) -> Sequence[Table]:
    rows = [
        (
            name,
            f"{case['seconds']:.2f}",
            f"{case['processor_seconds']:.2f}",
            f"{AIMS[name]:g}" if name in AIMS else "",
            ("yes" if case["seconds"] <= AIMS[name] else "no") if name in AIMS else "",
        )
        for name, case in figures["cases"].items()
    ]
    columns = ("command", "seconds", "processor seconds", "aim", "in the aim")
    return [Table("Start-up", columns, rows, ("Medians, each in a process of its own.",))]


def _tiny(scratch: Path) -> Any:
    return setting.parsed(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world", "limit": 20},
            "federation": {"rounds": 1},
            "tuning": {"max_steps": 1, "batch_size": 2},
            "evaluation": {"examples": 8, "answers": 0},
            "output": str(scratch / "run"),
        }
    )


def _timed(words: Sequence[str]) -> tuple[float, float]:
    """Seconds that a command takes, and those of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True, cwd=common.ROOT, env=dict(os.environ))
    took, after = perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _middle(turns: Sequence[tuple[float, float]]) -> dict[str, float]:
    seconds, processor = zip(*turns, strict=True)
    return {
        "seconds": median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "processor_seconds": median(processor),
    }


if __name__ == "__main__":
    sys.exit(main())
