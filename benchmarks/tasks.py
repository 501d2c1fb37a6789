"""Benchmark tasks by lm-eval: the untuned base against a federated run, or against every arm of a comparison.

Standard sets are fetched from the hub, which this does without. Two tasks are made of data beside the
project: `responses`, in which the response to a held-out instruction has to be told from three others of its
category, and `mgsm`, in which the answer to an English problem of MGSM has to be told from the answers to
three others; choices are scored by likelihood. With --output FOLDER of a finished comparison, such as that
of `shepherd demo --base smollm2`, all its arms are scored. A folder of task files with local data, such as
ARC's, BoolQ's or OpenBookQA's, can be added by --include and --tasks.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.compare.evaluating import evaluate_folder
from shepherd.data import data_folder
from shepherd.evaluate.harness import Asked
from shepherd.run import folder
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.run import Run

CHOICES = 4
Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--on", choices=setting.SETTINGS, default="smollm2", help="default smollm2")
    parser.add_argument("--rounds", type=int, help="default: the run file's")
    parser.add_argument("--steps", type=int, help="optimiser steps of a visit; default: the run file's")
    parser.add_argument("--limit", type=int, default=100, help="documents of each task; default 100")
    parser.add_argument("--include", type=Path, action="append", default=[], help="folder of task files")
    parser.add_argument("--tasks", action="append", default=[], help="name of a task in such a folder")
    parser.add_argument("--output", type=Path, help="run folder, kept and continued; or that of a comparison")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    with TemporaryDirectory() as scratch:
        run = options.output or Path(scratch) / "run"
        began = perf_counter()
        _train(options, run)
        trained = perf_counter() - began
        tasks = Path(scratch) / "tasks"
        tasks.mkdir()
        names = [*_made(run, tasks, options.seed), *options.tasks]
        asked = Asked(
            tasks=names,
            include=[tasks, *options.include],
            limit=5 if options.quick else options.limit,
            chat=options.on == "smollm2",
        )
        began = perf_counter()
        scores = evaluate_folder(run, asked, formats=["general"])
        return {"scores": scores, "seconds": {"run": trained, "tasks": perf_counter() - began}}


def _train(options: Namespace, run: Path) -> None:
    """Train the run that the scores are of, or go on with it."""
    if folder.is_run(run):
        if not folder.is_finished(run):
            _through(resume(run))
        return
    rounds, steps = (1, 1) if options.quick else (options.rounds, options.steps)
    change = {
        "output": str(run),
        "seed": options.seed,
        "evaluation": {"answers": 0},
        **({"federation": {"rounds": rounds}} if rounds else {}),
        **({"tuning": {"max_steps": steps}} if steps else {}),
    }
    _through(open_run(setting.settings(options.on, change)))


def _through(run: Run) -> None:
    with run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)


def _made(run: Path, place: Path, seed: int) -> list[str]:
    """Write the tasks that can be made here; returns their names."""
    _write(place, "responses", _responses(run, seed))
    try:
        problems = _problems()
    except common.Missing:
        return ["responses"]
    _write(place, "mgsm", _with_others(problems, seed))
    return ["responses", "mgsm"]


def _responses(run: Path, seed: int) -> list[Row]:
    """Held-out instructions, each with its response and three others of its category, mixed."""
    held = data_folder.load(run / "data").heldout_examples
    by_category: dict[str, list[Row]] = {}
    for example in held:
        if len(example.turns) == 2 and len(example.response) < 300:
            asked = f"{example.context}\n\n{example.instruction}" if example.context else example.instruction
            row = {"question": asked, "answer": example.response.strip()}
            by_category.setdefault(example.category, []).append(row)
    return _shuffled([row for rows in by_category.values() for row in _with_others(rows, seed)], seed)


def _problems() -> list[Row]:
    file = setting.shared() / "data" / "mgsm" / "mgsm_en.tsv"
    if not file.is_file():
        raise common.Missing(str(file))
    lines = (line.split("\t") for line in file.read_text(encoding="utf8").splitlines() if line)
    return [{"question": question, "answer": answer.strip()} for question, answer in lines]


def _with_others(rows: Sequence[Row], seed: int) -> list[Row]:
    """Each question with its answer among those of others; one with too few others is left out."""
    rng = np.random.default_rng(seed)
    found: list[Row] = []
    for row in rows:
        others = sorted({each["answer"] for each in rows} - {row["answer"]})
        if len(others) < CHOICES - 1:
            continue
        picked = [others[i] for i in rng.choice(len(others), CHOICES - 1, replace=False)]
        place = int(rng.integers(CHOICES))
        found.append(
            {
                "question": row["question"],
                "choices": [*picked[:place], row["answer"], *picked[place:]],
                "gold": place,
            }
        )
    return found


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _write(place: Path, name: str, rows: Sequence[Row]) -> None:
    (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    (place / f"{name}.yaml").write_text(
        f"""\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
""",
        encoding="utf8",
    )


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            each["label"] if arm == "base" else "",
            f"{each['documents']:,}" if arm == "base" else "",
            arm,
            _shown(found),
            *((_shown(other), f"{other['p']:.3f}") if (other := each["differences"].get(arm)) else ("", "")),
        )
        for each in figures["scores"]
        for arm, found in each["arms"].items()
    ]
    times = figures["seconds"]
    return [
        Table(
            f"Every arm and the base; the run took {times['run']:.0f} s, the tasks {times['tasks']:.0f} s",
            ("score", "documents", "arm", "share", "less the base's", "p"),
            rows,
            ["Shares in percent with 95% intervals; chance is 25."],
        )
    ]


def _shown(found: Row) -> str:
    low, high = (100 * found[end] for end in ("low", "high"))
    return f"{100 * found['value']:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
