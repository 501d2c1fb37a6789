"""Kill runs at random moments and resume them: the same bits each time, and no finished round run again.

One run is left undisturbed. Then runs of the same file are killed (SIGKILL) and continued with
`shepherd resume`, until the given number of kills is reached. Each completed run is compared with the
undisturbed one: the bits of its final adapter, every round in its log exactly once, the same losses. Rounds
that were finished at a kill (in the log or the checkpoint) must be in the final log unchanged, including the
seconds they took, so that a round that was run again shows. A run may be killed many times, also while it is
started or resumed.

Three of four kills strike at a moment drawn over the life of a run. Since a checkpoint is written in
milliseconds, the fourth waits for one that is being written. `phase` is the state of the folder after it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import numpy as np
from safetensors.numpy import load_file

import shepherd
from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.io.atomic import write_atomic
from shepherd.model.files import WEIGHTS
from shepherd.overrides import dump
from shepherd.run import checkpoint, folder
from shepherd.run.folder import Row
from shepherd.run.log import read_rows

POLL_S = 0.0005
MAX_LIFE_S = 1800.0  # of one process
SAVE_WINDOW_S = 0.01  # aimed kills strike within it after a checkpoint is begun
PHASES = (
    "before its run file",
    "preparing",
    "loading, to resume",
    "scoring the base",
    "tuning",
    "saving",
    "between checkpoint and log",
    "finishing",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill: `seconds` after the start, or after the `save`-th checkpoint was begun."""

    seconds: float
    save: int = 0


@dataclass(slots=True)
class Trial:
    """One run from its first start to its end: the phase of each kill, and the rounds finished at kills."""

    path: Path
    run_file: Path
    phases: list[str] = field(default_factory=list)
    found: list[Row] = field(default_factory=list)
    resumed: int = 0

    def command(self) -> list[str]:
        if folder.is_run(self.path):
            return ["resume", str(self.path)]
        return ["run", str(self.run_file), f"output={self.path}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20, help="default 20")
    parser.add_argument("--workers", type=int, default=1, help="processes that tune (default 1)")
    parser.add_argument("--on", choices=setting.SETTINGS, help="default: world, else what there is")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    with TemporaryDirectory() as scratch:
        run_file = _write(options, Path(scratch))
        whole = Trial(Path(scratch) / "whole", run_file)
        began = perf_counter()
        _run_process(whole, None)
        life = perf_counter() - began
        print(f"undisturbed: {life:.1f} s", flush=True)
        plan = moments(4 if options.quick else options.kills, life, options.seed)
        trials = _kill_as_planned(run_file, plan)
        results = [_compare_with(trial, whole) for trial in trials]
        rounds = folder.read_settings(whole.path).federation.rounds
    phases = Counter(phase for trial in trials for phase in trial.phases)
    equal = {key: sum(result[key] for result in results) for key in ("bits", "log", "losses")}
    lost = sum(result["lost"] for result in results)
    return {
        "kills": phases.total(),
        "phases": {phase: phases[phase] for phase in PHASES if phases[phase]},
        "runs": len(trials),
        "rounds_each": rounds,
        "resumed": sum(trial.resumed for trial in trials),
        "rounds_lost": lost,
        "runs_with": equal,
        "seconds_undisturbed": life,
        "passed": lost == 0 and all(count == len(trials) for count in equal.values()),
    }


def _write(options: Namespace, scratch: Path) -> Path:
    """Write the run file of a small run that spends half of its life in its rounds."""
    rounds, steps = (3, 1) if options.quick else (12, 4)
    changes = {
        "seed": options.seed,
        "output": str(scratch / "unused"),
        "data": {"limit": 40},
        "federation": {"rounds": rounds},
        "selection": {"share": 0.5},
        "tuning": {"max_steps": steps, "batch_size": 8},
        "machine": {
            "stack_size": -(-5 // options.workers),  # fixed, so that every run has the same
            "workers": options.workers,
            "threads": options.threads or "auto",
        },
        "evaluation": {"examples": 16, "answers": 8, "max_new_tokens": 8},
    }
    settings = setting.settings(options.on or setting.available(), changes)
    return write_atomic(scratch / "run.toml", dump(settings))


def moments(kills: int, life: float, seed: int) -> list[Moment]:
    """Draw the moment of each kill; every fourth is aimed at a checkpoint that is being written.

    >>> [moment.save > 0 for moment in moments(4, 10.0, 0)]
    [False, False, False, True]
    """
    rng = np.random.default_rng(seed)
    return [
        Moment(rng.uniform(0, SAVE_WINDOW_S), int(rng.integers(1, 4)))
        if place % 4 == 3
        else Moment(rng.uniform(0, life))
        for place in range(kills)
    ]


def _kill_as_planned(run_file: Path, plan: Sequence[Moment]) -> list[Trial]:
    """Kill as planned, run after run; a process that ends before its kill leaves the kill to the next one."""
    waiting = list(plan)
    trials: list[Trial] = []
    while waiting:
        trial = Trial(run_file.parent / f"run-{len(trials):03d}", run_file)
        trials.append(trial)
        while not _run_process(trial, waiting[0] if waiting else None):
            waiting.pop(0)
            print(f"kill {len(plan) - len(waiting)} of {len(plan)}: {trial.phases[-1]}", flush=True)
    return trials


def _run_process(trial: Trial, moment: Moment | None) -> bool:
    """Start or resume the run in a process; False if it was killed before it ended."""
    command = trial.command()
    trial.resumed += command[0] == "resume"
    output = trial.path.with_suffix(".log")
    with open(output, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shepherd", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
        try:
            through = _survived(process, trial.path / "checkpoints", moment)
        finally:
            process.kill()
            process.wait()
    output_text = output.read_text(encoding="utf8", errors="replace")
    if through and process.returncode != 0:
        raise RuntimeError(f"`shepherd {' '.join(command)}` ended with {process.returncode}:\n{output_text}")
    if not through:
        trial.phases.append(_phase(trial.path, command[0] == "resume", output_text))
        trial.found += _finished_rounds(trial.path)
    return through


def _environment() -> dict[str, str]:
    """Environment in which this checkout is imported, installed or not."""
    source = str(Path(shepherd.__file__).parents[1])
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, *([before] if before else [])])}


def _survived(process: subprocess.Popen[bytes], checkpoints: Path, moment: Moment | None) -> bool:
    """Wait for the process to end or for the moment of its kill; True if the process ended first."""
    if moment is None:
        process.wait(MAX_LIFE_S)
        return True
    if not moment.save:
        try:
            process.wait(moment.seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    seen: set[str] = set()
    while process.poll() is None:
        seen.update(_unfinished(checkpoints))
        if len(seen) >= moment.save:
            sleep(moment.seconds)
            return process.poll() is not None
        sleep(POLL_S)
    return True


def _unfinished(checkpoints: Path) -> list[str]:
    try:
        return [name for name in os.listdir(checkpoints) if name.startswith(checkpoint.UNFINISHED)]
    except FileNotFoundError:
        return []


def _phase(path: Path, resumed: bool, output_text: str) -> str:
    """Phase of a run, from its folder, and from its output, which shows whether it had begun."""
    if not folder.is_run(path):
        return "before its run file"
    if f"{path}: " not in output_text:  # the line that a run begins with
        return "loading, to resume" if resumed else "preparing"
    rows, last = read_rows(path), checkpoint.latest(path / "checkpoints")
    if _unfinished(path / "checkpoints"):
        return "saving"
    if not rows:
        return "scoring the base"
    if last is not None and checkpoint.load(last).state.round > rows[-1]["round"]:
        return "between checkpoint and log"
    done = rows[-1]["round"] == folder.read_settings(path).federation.rounds
    return "finishing" if done else "tuning"


def _finished_rounds(path: Path) -> list[Row]:
    """Rows of all finished rounds, that of the last one from its checkpoint."""
    last = checkpoint.latest(path / "checkpoints")
    return read_rows(path) + ([checkpoint.load(last).notes["row"]] if last else [])


def _compare_with(trial: Trial, whole: Trial) -> dict[str, int]:
    """Compare a run with the undisturbed one: bits, log and losses, and the number of rounds run again."""
    rows, expected = read_rows(trial.path), read_rows(whole.path)
    return {
        "bits": _digest(trial.path) == _digest(whole.path),
        "log": [row["round"] for row in rows] == [row["round"] for row in expected],
        "losses": [_without_times(row) for row in rows] == [_without_times(row) for row in expected],
        "lost": sum(row not in rows for row in trial.found),
    }


def _digest(path: Path) -> str:
    """Digest of the adapter's tensors; the order of safetensors' metadata differs between processes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path / "adapter" / WEIGHTS).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode() + tensor.tobytes())
    return digest.hexdigest()


def _without_times(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "seconds"}


def tables(figures: Figures) -> list[Table]:
    runs = figures["runs"]
    struck = Table(
        "Where the kills struck", ("phase", "kills"), [(p, str(n)) for p, n in figures["phases"].items()]
    )
    rows = [
        ("kills", str(figures["kills"])),
        ("resumed", str(figures["resumed"])),
        (f"runs, of {figures['rounds_each']} rounds each", str(runs)),
        ("finished rounds that were lost or run again", str(figures["rounds_lost"])),
        ("final adapter has the undisturbed run's bits", f"{figures['runs_with']['bits']} of {runs}"),
        ("every round in the log exactly once", f"{figures['runs_with']['log']} of {runs}"),
        ("the same losses", f"{figures['runs_with']['losses']} of {runs}"),
    ]
    return [struck, Table("Killed and resumed", ("", ""), rows)]


if __name__ == "__main__":
    sys.exit(main())
