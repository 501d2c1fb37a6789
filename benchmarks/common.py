"""Shared by all benchmarks: options, tables, and the figures as JSON."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table as Drawn

from shepherd.errors import ShepherdError
from shepherd.machine import memory
from shepherd.run.versions import versions

Figures = dict[str, Any]
ROOT = Path(__file__).parents[1]


class Missing(Exception):
    """Something that a benchmark needs is not on this machine; the benchmark is skipped."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it is printed; the first column is aligned left, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def parser(about: str | None) -> ArgumentParser:
    """Make a parser with the options that every benchmark has."""
    made = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    made.add_argument("--quick", action="store_true", help="smallest sizes, only to show that it runs")
    made.add_argument("--seed", type=int, default=0, help="seed of every random draw (default 0)")
    made.add_argument("--threads", type=int, help="processor threads (default: number of cores)")
    return made


def run(
    options: Namespace, measure: Callable[[Namespace], Figures], tables: Callable[[Figures], Sequence[Table]]
) -> int:
    """Measure, print and write; returns the exit code: 1 if a figure `passed` is false, 2 for an error."""
    memory.use_threads(options.threads or "auto")
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("shepherd").setLevel(logging.INFO)
    try:
        figures = measure(options)
    except Missing as missing:
        print(f"skipped: {missing} is missing")
        return 0
    except ShepherdError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    for table in tables(figures):
        show(table)
    if options.json:
        written = {**circumstances(options), "figures": figures}
        options.json.write_text(json.dumps(written, indent=1, default=str) + "\n", encoding="utf8")
    return 0 if figures.get("passed", True) else 1


def kept(place: Path, make: Callable[[], Figures] | None, doing: str) -> Figures | None:
    """The scores in a file, made and written if it does not exist; None if they may not be made, or failed.

    Args:
        make: trains what is scored, and returns the scores or `failed`, the reason; None makes nothing.
        doing: what is printed before.
    """
    if not place.is_file() and make is not None:
        print(doing, flush=True)
        found = make()
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_suffix(".part")
        unfinished.write_text(json.dumps(found), encoding="utf8")
        unfinished.replace(place)
    scores: Figures = (
        json.loads(place.read_text(encoding="utf8")) if place.is_file() else {"failed": "not made"}
    )
    return None if "failed" in scores else scores


def show(table: Table) -> None:
    """Print one table, uncut even if the output is narrow."""
    drawn = Drawn(box=box.SIMPLE, title=table.title, title_justify="left")
    for place, name in enumerate(table.columns):
        drawn.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(drawn)
    for note in table.notes:
        console.print(note, markup=False, soft_wrap=True)


def circumstances(options: Namespace) -> Figures:
    """Origin of the figures: benchmark, options, date, commit, machine, versions."""
    asked = {key: value for key, value in vars(options).items() if key != "json"}
    return {
        "benchmark": Path(sys.argv[0]).stem,
        "options": asked,
        "seed": options.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> Figures:
    """Machine of the figures; `load` shows whether other work was running."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "threads": memory.threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def commit() -> str:
    """Commit of this checkout, with + if source or a benchmark was changed since; "" outside a checkout."""
    try:
        changed = "+" if _git("status", "--porcelain", "--", "src", "benchmarks", "examples") else ""
        return _git("rev-parse", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` processes that multiply matrices on one core each, until the end of the block."""
    words = "import torch; torch.set_num_threads(1); a = torch.randn(1024, 1024)\nwhile True: a @ a"
    others = [subprocess.Popen([sys.executable, "-c", words]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def share(value: float | None) -> str:
    """Format a share in percent; "" for None.

    >>> share(0.125), share(None)
    ('12.5%', '')
    """
    return "" if value is None else f"{value:.1%}"


def count(value: float) -> str:
    """Format a count.

    >>> count(12345.6)
    '12,346'
    """
    return f"{value:,.0f}"
