"""Who does not get in: every kind of stranger tries at a real federation on this machine, so often.

A server, three sites with their trainers, and four administrators run as processes on loopback. Strangers
come without a certificate, with one that is not good, or with somebody else's; administrators bring what they
may not; messages come again; runs ask for what a site's owner does not allow; a site is removed. A try is let
in if anything was done for it. What the two ends said is one line each, of the last try.
"""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from tests.silos import scene as scenes
from tests.silos.cases import CASES

from benchmarks import common
from benchmarks.common import Figures, Table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--tries", type=int, default=10, help="of each case, default 10")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    warnings.filterwarnings("ignore", "ssl_context is deprecated")  # FLARE's own
    tries = 1 if options.quick else options.tries
    found = []
    with TemporaryDirectory() as scratch, scenes.running(Path(scratch), tries) as scene:
        for case in CASES.values():
            began = perf_counter()
            found.append(asdict(case(scene, tries)))
            last = found[-1]
            seconds = perf_counter() - began
            print(f"{last['case']}: {last['let_in']} of {last['tries']} let in; {seconds:.0f} s", flush=True)
    silent = [each["case"] for each in found if not (each["server"] and each["other"])]
    return {
        "cases": found,
        "tries": sum(each["tries"] for each in found),
        "let_in": sum(each["let_in"] for each in found),
        "an_end_was_silent": silent,
        "passed": not silent and not any(each["let_in"] for each in found),
    }


def tables(figures: Figures) -> list[Table]:
    cases = figures["cases"]
    counts = [(each["case"], str(each["tries"]), str(each["let_in"])) for each in cases]
    whole = ("together", str(figures["tries"]), str(figures["let_in"]))
    said = [
        f"{each['case']}\n  tried end: {each['server'] or 'SILENT'}\n  stranger:  {each['other'] or 'SILENT'}"
        for each in cases
    ]
    return [Table("Strangers", ("case", "tries", "let in"), [*counts, whole], said)]


if __name__ == "__main__":
    sys.exit(main())
