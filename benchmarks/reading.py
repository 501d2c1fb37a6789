"""Seconds and memory to read, divide, tokenise and store examples, against reading them with json alone.

Each case is read in a process of its own, so that its peak memory is its own, and the cases take turns.
`json and tokenizer` parses every line and tokenises its texts in one batch: the floor of any reader.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks import common
from benchmarks.common import Figures, Missing, Table
from benchmarks.setting import shared
from shepherd.data import data_folder, pipeline
from shepherd.model.base import load_tokenizer
from shepherd.overrides import parse
from shepherd.run.loading import placed
from shepherd.settings import RunSettings

STEPS = ("read and divide", "tokenise", "store", "load")
OURS, FLOOR = "shepherd", "json and tokenizer"
WORDS = [
    "heron",
    "robin",
    "lark",
    "wren",
    "river",
    "harbour",
    "mill",
    "garden",
    "lantern",
    "ribbon",
    "kettle",
    "saddle",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--clients", type=int, default=20_000, help="small files (default 20,000)")
    parser.add_argument("--examples", type=int, default=5, help="in each of them (default 5)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each case (default 3)")
    parser.add_argument("--many", type=int, help="instead: one file of this many short examples")
    parser.add_argument("--child", nargs=3, help="one case: its side, its data, its split")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_child(*options.child)))
        return 0
    return common.run(options, measure, tables)


def measure(options: Namespace) -> Figures:
    if options.quick:
        options.clients, options.repeats = 200, 1
    with tempfile.TemporaryDirectory() as scratch:
        many = Path(scratch) / "many"
        _write_clients(many, options.clients, options.examples)
        cases = {f"{options.clients:,} clients of {options.examples}": (str(many), "ready_made")}
        dolly = shared() / "data" / "dolly" / "ten_clients"
        if dolly.is_dir():
            cases["Dolly, ten clients"] = (str(dolly), "ready_made")
        elif not options.quick:
            raise Missing(str(dolly))
        if options.many:
            file = Path(scratch) / "one" / "rows.jsonl"
            _write_many(file, options.many)
            cases = {f"{options.many:,} short examples": (str(file), "iid")}
        found: dict[str, list[Mapping[str, Any]]] = {}
        for _ in range(options.repeats):
            for name, case in cases.items():
                for side in (OURS, FLOOR):
                    found.setdefault(f"{name}|{side}", []).append(_in_process(side, *case))
    return {"cases": {key: _middle(turns) for key, turns in found.items()}}


def tables(figures: Figures) -> Sequence[Table]:
    rows = []
    for key, case in figures["cases"].items():
        name, side = key.split("|")
        floor = figures["cases"][f"{name}|{FLOOR}"]
        total = sum(case["seconds"].values())
        rows.append(
            (
                f"{name}: {side}",
                f"{case['examples']:,}",
                *(f"{case['seconds'].get(step, 0.0):.2f}" for step in STEPS),
                f"{total:.2f}",
                f"{total / sum(floor['seconds'].values()):.2f}",
                f"{case['peak_mb']:,.0f}",
            )
        )
    columns = ("data", "examples", *(f"{step} s" for step in STEPS), "in all s", "of the floor", "peak MB")
    return [Table("Reading", columns, rows, ("Medians; the peak is of a whole process with its imports.",))]


def _middle(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    steps = {step: median(turn["seconds"][step] for turn in turns) for step in turns[0]["seconds"]}
    peak = median(turn["peak_mb"] for turn in turns)
    return {"examples": turns[0]["examples"], "seconds": steps, "peak_mb": peak}


def _in_process(side: str, source: str, split: str) -> Mapping[str, Any]:
    words = [sys.executable, "-m", "benchmarks.reading", "--child", side, source, split]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=common.ROOT)
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _child(side: str, source: str, split: str) -> Mapping[str, Any]:
    settings = parse(
        {"model": {"base": "tiny"}, "data": {"source": source}, "split": {"by": split}, "machine": {}}
    )
    tokenizer = load_tokenizer(placed(settings.model))
    seconds = _ours(settings, tokenizer) if side == OURS else _floor(Path(source), tokenizer)
    examples = seconds.pop("examples")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "examples": int(examples), "peak_mb": peak}


def _ours(settings: RunSettings, tokenizer: Any) -> dict[str, float]:
    began = perf_counter()
    division = pipeline.divide(settings)
    examples = len(division.reading.examples)
    divided = perf_counter()
    prepared = pipeline.tokenised(division, settings, tokenizer)
    tokenised = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data_folder.save(Path(folder) / "data", prepared)
        stored = perf_counter()
        data_folder.load(Path(folder) / "data")
        loaded = perf_counter()
    steps = (divided - began, tokenised - divided, stored - tokenised, loaded - stored)
    return {**dict(zip(STEPS, steps, strict=True)), "examples": examples}


def _floor(folder: Path, tokenizer: Any) -> dict[str, float]:
    began = perf_counter()
    rows: list[Mapping[str, Any]] = []
    for path in folder.iterdir() if folder.is_dir() else [folder]:
        if path.suffix in (".json", ".jsonl") and not path.name.startswith("global_"):
            text = path.read_text(encoding="utf8")
            lines = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, text.splitlines())
            rows.extend(lines)
    read = perf_counter()
    tokenizer([" ".join(str(value) for value in row.values()) for row in rows])
    return {STEPS[0]: read - began, STEPS[1]: perf_counter() - read, "examples": len(rows)}


def _write_clients(folder: Path, clients: int, examples: int) -> None:
    folder.mkdir()
    for client in range(clients):
        lines = (
            json.dumps(
                {
                    "instruction": f"What does the {WORDS[(client + k) % 12]} of house {client} do at {k}?",
                    "context": "",
                    "response": f"The {WORDS[(client * k) % 12]} and the {WORDS[client % 12]} rest.",
                    "category": WORDS[k % 3],
                }
            )
            + "\n"
            for k in range(examples)
        )
        (folder / f"client_{client}.jsonl").write_text("".join(lines), encoding="utf8")


def _write_many(file: Path, examples: int) -> None:
    """One file of examples of about 30 words, no two alike."""
    file.parent.mkdir()
    with open(file, "w", encoding="utf8") as lines:
        for k in range(examples):
            words = [WORDS[(k // 12**place + place) % 12] for place in range(12)]
            row = {
                "instruction": f"Of {k}: what do {' '.join(words[:6])} say?",
                "response": f"They say {' '.join(words[6:])}, and {k % 97} times.",
                "category": WORDS[k % 8],
            }
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
