"""What attacks on a federation get out: with a former commit's code, and with today's.

    python -m benchmarks.leaks [--before COMMIT]

Each case of benchmarks/attacks.py runs against a real site's trainer under its default policy, the server's
real service or the real round loop. The former code is taken from the repository's history, with the attacks
as they were when they fitted it (without it, that column is empty). The last rows are no attacks but
controls: what an honest run asks for must still be answered, or
an empty column would prove nothing.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarks import attacks, common
from benchmarks.common import ROOT, Figures, Table

BEFORE = "4584102"
ATTACKS_BEFORE = "c00e994"
"""The commit whose attacks still speak to the code of `BEFORE`."""
KEYS = ("out_before", "out_now")
QUICK = ("rounds owned by an inflated weight", "an honest round")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help=f"default {BEFORE}")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    cases = [case for case in attacks.CASES | attacks.CONTROLS if case in QUICK or not options.quick]
    with tempfile.TemporaryDirectory() as scratch:
        former = _source(options.before, Path(scratch))
        found = [_tried(case, former) for case in cases]
    rows = [row for row in found if row["case"] in attacks.CASES]
    controls = [row for row in found if row["case"] in attacks.CONTROLS]
    passed = not any(row["out_now"] for row in rows) and all(row["out_now"] for row in controls)
    return {
        "before": options.before if former else None,
        "rows": rows,
        "controls": controls,
        "passed": passed,
    }


def _tried(case: str, former: Path | None) -> Figures:
    row = {
        "case": case,
        "out_before": _out(case, former) if former else None,
        "out_now": _out(case, ROOT),
    }
    print(f"{case}: {row['out_before']} before, {row['out_now']} now", flush=True)
    return row


def _source(commit: str, scratch: Path) -> Path | None:
    """The package at a commit and attacks that fit it, unpacked; None where the history does not hold it."""
    for at, folder in ((commit, "src"), (ATTACKS_BEFORE, "benchmarks")):
        archive = subprocess.run(["git", "archive", at, folder], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            print(f"no code of {at} in this repository's history, so that column is empty", flush=True)
            return None
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(scratch, filter="data")
    return scratch


def _out(case: str, source: Path) -> int:
    """What came out in a case, in a process of its own with the package and the attacks in `source`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(source / "src"), str(source)))}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.attacks", case],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the case {case!r} failed with the code in {source}:\n{done.stderr}")
    return int(json.loads(done.stdout.splitlines()[-1])["out"])


def tables(figures: Figures) -> list[Table]:
    columns = ("what comes out", f"at {figures['before']}" if figures["before"] else "before", "now")
    return [
        Table("Attacks on a federation", columns, _rows(figures["rows"])),
        Table("Controls: what an honest run needs", columns, _rows(figures["controls"])),
    ]


def _rows(rows: Sequence[Figures]) -> list[list[str]]:
    return [[row["case"], *("?" if row[key] is None else str(row[key]) for key in KEYS)] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
