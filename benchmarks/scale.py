"""What many simulated clients cost: overhead, memory, start-up, resuming, and how evenly workers are busy.

    python -m benchmarks.scale
    python -m benchmarks.scale --on world --clients 10000 --shares 0.01 --workers 1

Each case is a process of its own: 20 rounds of `Run.rounds` in which each client drawn goes through its
examples once, with log and checkpoints as in any run, then the same folder opened again. With one worker,
overhead is all that is not spent inside `tune`, scoring aside. With more, "busy" is the processor seconds of
the workers while they tune over those that they could have had, and the final adapter must have the bits of
one worker. Start-up begins after the imports and ends with the first round; 8,640 examples of the world do
not go round 10,000 clients, so these have 40,000.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from benchmarks import common, setting
from benchmarks.common import Figures, Missing, Table
from benchmarks.overhead import timed
from shepherd.core import Adapter
from shepherd.overrides import dump, read
from shepherd.run import opening, resuming
from shepherd.settings import RunSettings
from shepherd.training import score, tune
from shepherd.world import facts, tasks

MAX_OVERHEAD = 0.03
"""The aim, of the time inside tuning."""
ROUNDS = 20
MANY = 5_000
"""Examples of each of the world's eight categories for more clients than its own examples go round."""
STACK = 8
"""Clients tuned at once, whatever the number of workers, so that the bits can be compared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case, or one as a child."""
    parser = common.parser(__doc__)
    parser.add_argument("--on", nargs="+", choices=("world", "dolly"), default=["world", "dolly"])
    parser.add_argument("--clients", nargs="+", type=int, default=[100, 1_000, 10_000], metavar="N")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.05, 0.01], metavar="SHARE")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--child", metavar="FILE", help="one case, by its run file")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_child(Path(options.child))))
        return 0
    return common.run(options, measure, tables)


def measure(options: Namespace) -> Figures:
    """The figures of every case, printed as they come."""
    if options.quick:
        options.on, options.clients, options.shares, options.workers = ["world"], [100], [0.02], [1]
    cases = []
    for on in options.on:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                for clients in options.clients:
                    for share in options.shares:
                        cases += _cases(on, clients, share, Path(scratch), options)
            except Missing as missing:
                print(f"{on} is left out: {missing} is missing")
    return {"cases": cases, "passed": all(case["same_bits"] for case in cases)}


def _cases(on: str, clients: int, share: float, scratch: Path, options: Namespace) -> list[dict[str, Any]]:
    """One case for each number of workers, the first of which the others are compared with."""
    made: list[dict[str, Any]] = []
    for workers in options.workers:
        file = scratch / f"{on}-{clients}-{share}-{workers}.toml"
        file.write_text(dump(_settings(on, clients, share, workers, scratch, options)), encoding="utf8")
        command = [sys.executable, "-m", "benchmarks.scale", "--child", str(file)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        case = {"on": on, "clients": clients, "share": share, "workers": workers}
        case |= json.loads(done.stdout.splitlines()[-1])
        case["same_bits"] = case["digest"] == (made[0]["digest"] if made else case["digest"])
        print(json.dumps(case), flush=True)  # what is done stays if the rest is not
        made.append(case)
    return made


def _settings(
    on: str, clients: int, share: float, workers: int, scratch: Path, options: Namespace
) -> RunSettings:
    data: dict[str, Any] = {"limit": 200, "holdout": 0.1} if options.quick else {}
    if on == "world" and clients > 8_640:
        data["source"] = str(_many_tasks(scratch / "world.jsonl"))
    table = setting.tables(on)
    table["split"] = {"by": "iid", "clients": clients}
    return setting.parsed(
        setting.merged(
            table,
            {
                "seed": options.seed,
                "output": str(scratch / f"{on}-{clients}-{share}-{workers}"),
                "data": data,
                "selection": {"share": share},
                "federation": {"rounds": 2 if options.quick else ROUNDS},
                "tuning": {"epochs": 1, "max_steps": None, "batch_size": 8},
                "machine": {"workers": workers, "threads": workers, "stack_size": STACK},
                "evaluation": {"every": ROUNDS, "examples": 16, "answers": 0},
            },
        )
    )


def _many_tasks(file: Path) -> Path:
    if not file.exists():
        rows = tasks.rows(facts.build(0), MANY, 0)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return file


def _child(file: Path) -> dict[str, Any]:
    settings = read(file)
    began = perf_counter()
    with opening.open_run(settings) as run, timed(tune, "tune") as inside, timed(score, "losses") as scoring:
        opened = perf_counter() - began
        rounds = run.rounds()
        began, before = perf_counter(), _worker_seconds()
        rows = [row for _, row in rounds]
        wall = perf_counter() - began - scoring.seconds
        busy, adapter = _worker_seconds() - before, run.state.adapter
    tuning = sum(row["seconds"]["tuning"] for row in rows if row["round"])
    workers = settings.machine.workers
    began = perf_counter()
    resuming.resume(settings.output).close()
    assert isinstance(workers, int)
    return {
        "examples": sum(row["examples"] for row in rows if row["round"]),
        "visits": sum(len(row["cohort"]) for row in rows if row["round"]),
        "start_up": opened,
        "rounds": wall,
        "overhead": wall / inside.seconds - 1 if inside.seconds else None,
        "busy": busy / (workers * tuning) if workers > 1 else None,
        "resume": perf_counter() - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "digest": _digest(adapter),
    }


def _worker_seconds() -> float:
    """Processor seconds of the child processes that are alive."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(child.cpu_times()[:2]) for child in children)


def _digest(adapter: Adapter) -> str:
    found = hashlib.sha256()
    for name in sorted(adapter):
        found.update(adapter[name].tobytes())
    return found.hexdigest()


def tables(figures: Figures) -> list[Table]:
    """The cases as they are printed."""
    columns = (
        "clients",
        "a round",
        "workers",
        "visits",
        "start-up",
        "rounds",
        "overhead",
        "busy",
        "resume",
        "MB",
    )
    made = []
    for on in dict.fromkeys(case["on"] for case in figures["cases"]):
        rows = [
            (
                f"{case['clients']:,}",
                f"{case['share']:.0%}",
                str(case["workers"]),
                f"{case['visits']:,}",
                f"{case['start_up']:.1f} s",
                f"{case['rounds']:.0f} s",
                "" if case["overhead"] is None else f"{case['overhead']:.1%}",
                "" if case["busy"] is None else f"{case['busy']:.0%}",
                f"{case['resume']:.1f} s",
                f"{case['peak'] / 1e6:,.0f}",
            )
            for case in figures["cases"]
            if case["on"] == on
        ]
        note = f"overhead: over pure tuning, the aim is {MAX_OVERHEAD:.0%}; MB: the peak of the main process"
        made.append(Table(f"simulation at scale, {on}", columns, rows, [note]))
    return made


if __name__ == "__main__":
    sys.exit(main())
