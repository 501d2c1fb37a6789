"""One process of a federation is killed at a random moment, a hundred times: does the run end, whole?

A server and three sites run on this machine, supervised, with real trainers. Each trial is a run of a few
rounds in which one process is killed with SIGKILL: a trainer, a site's job process, a site's parent, the
server's job process, the server's parent; kinds in turn, moments drawn over the nine seconds from the run's
submission, in which its job begins and goes through its rounds.

A run has ended where it went through all its rounds. A round is lost where the log that the run ends with
lacks it, or tells otherwise of it than when it was first told. A trainer that dies at work is one counted
failure, in that round; nothing else may be counted. And where no failure was counted, the final adapter must
have the bits of an undisturbed run's.
"""

from __future__ import annotations

import hashlib
import random
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks import common
from benchmarks.common import Figures, Table
from shepherd.model.files import WEIGHTS
from shepherd.overrides import parse
from shepherd.run import folder
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.loopback import Loopback

KINDS = ("trainer", "site job", "site parent", "server job", "server parent")
LONGEST = 900.0  # seconds of a trial
LIFE = 9.0  # seconds after the submission in which a kill may strike


@dataclass(slots=True, kw_only=True)
class Trial:
    """One run with one kill."""

    kind: str
    site: str
    after: float
    """Seconds from the submission to the kill."""
    struck: bool = False
    ended: bool = False
    why: str = ""
    rounds_lost: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    same_bits: bool | None = None
    said: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="default 100")
    parser.add_argument("--rounds", type=int, default=4, help="of each run (default 4)")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all, in turn"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there and delete nothing")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """Run the trials; the federation lives through all of them."""
    kills = len(options.kinds) if options.quick else options.kills
    draw = random.Random(options.seed)
    with TemporaryDirectory() as made:
        work = options.keep or Path(made)
        settings = run_settings(options.rounds)
        # of all runs together; one that was over before its kill is made again
        budget = {"rounds_per_month": 2 * (kills + 1) * options.rounds, "runs_per_month": 2 * (kills + 1)}
        sites = loopback.write_sites(settings, work / "sites", policy=budget)
        with loopback.running(work / "federation", sites) as federation:
            whole = trial(settings, federation, work / "undisturbed", None)
            bits = digest(work / "undisturbed")
            trials: list[Trial] = []
            for number in range(2 * kills):  # a run that was over before its kill is no trial
                kind = options.kinds[len(trials) % len(options.kinds)]
                planned = Trial(kind=kind, site=draw.choice(sorted(sites)), after=draw.uniform(0, LIFE))
                done = trial(settings, federation, work / f"run-{number:03d}", planned)
                if done.ended and not done.failures:
                    done.same_bits = digest(work / f"run-{number:03d}") == bits
                print(f"{len(trials) + 1:3d} {_line(done)}", file=sys.stderr, flush=True)
                trials += [done] * done.struck
                if len(trials) == kills:
                    break
    ended = sum(one.ended for one in trials)
    return {
        "rounds": options.rounds,
        "kills": kills,
        "undisturbed_seconds": whole.seconds,
        "ended": ended,
        "rounds_lost": sum(one.rounds_lost for one in trials),
        "wrong_failures": sum(_wrong(one) for one in trials),
        "other_bits": sum(one.same_bits is False for one in trials),
        "trials": [
            {name: getattr(one, name) for name in one.__dataclass_fields__ if name != "said"}
            for one in trials
        ],
        "passed": ended == kills
        and not any(one.rounds_lost or _wrong(one) for one in trials)
        and not any(one.same_bits is False for one in trials),
    }


def tables(figures: Figures) -> list[Table]:
    """One row a kind of process."""
    rows = []
    for kind in KINDS:
        own = [one for one in figures["trials"] if one["kind"] == kind]
        if own:
            seconds = sorted(one["seconds"] for one in own)
            rows.append(
                (
                    kind,
                    str(len(own)),
                    f"{sum(one['ended'] for one in own)}",
                    str(sum(one["rounds_lost"] for one in own)),
                    str(sum(len(one["failures"]) for one in own)),
                    f"{sum(one['same_bits'] is True for one in own)}",
                    f"{seconds[len(seconds) // 2]:.0f}",
                    f"{seconds[-1]:.0f}",
                )
            )
    head = ("killed", "times", "runs ended", "rounds lost", "failures", "same bits", "seconds", "longest")
    note = f"an undisturbed run of {figures['rounds']} rounds takes {figures['undisturbed_seconds']:.0f} s"
    return [Table("One process killed in each run", head, rows, (note,))]


def run_settings(rounds: int) -> RunSettings:
    """A run that is quick, and real."""
    return parse(
        {
            "model": {"base": "tiny"},
            "adapter": {"rank": 4},
            "data": {"source": "world", "limit": 40, "template": "alpaca-short", "holdout": 0.0},
            "split": {"by": "iid", "clients": 3},
            "federation": {"rounds": rounds, "quorum": 0.5},
            "silos": {"deadline_s": 600.0},
            "tuning": {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-3},
        }
    )


def trial(settings: RunSettings, made: Loopback, output: Path, planned: Trial | None) -> Trial:
    """Go through a run; strike as planned."""
    done = planned or Trial(kind="none", site="", after=0.0)
    first: dict[int, dict[str, Any]] = {}
    began = time.perf_counter()

    def follow() -> None:
        try:
            asked = settings.model_copy(update={"output": str(output)})
            going = coordinate.open_run(asked, made.admin, done.said.append)
            if planned:
                threading.Thread(target=_strike, args=(planned, made, going), daemon=True).start()
            for _, row in going.rounds():
                first.setdefault(row["round"], row)
            going.finish()
            done.ended = True
        except BaseException as error:
            done.why = f"{type(error).__name__}: {error}"

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    thread.join(LONGEST)
    done.seconds = time.perf_counter() - began
    rows = read_rows(output) if folder.is_run(output) else []
    numbers = [row["round"] for row in rows]
    asked_for = range(settings.federation.rounds + 1)
    done.rounds_lost = sum(numbers.count(number) != 1 for number in asked_for) if done.ended else 0
    done.rounds_lost += sum(row != first[row["round"]] for row in rows if row["round"] in first)
    done.failures = [
        f"{row['round']}: {who}: {why}" for row in rows for who, why in row.get("failures", {}).items()
    ]
    return done


def _strike(planned: Trial, made: Loopback, going: coordinate.SilosRun) -> None:
    while going.follower.job is None:
        time.sleep(0.01)
    time.sleep(planned.after)
    for _ in range(200):  # a process that is just being started again is waited for
        if (found := process(planned.kind, planned.site, made)) is not None:
            found.kill()
            planned.struck = True
            return
        time.sleep(0.05)


def process(kind: str, site: str, made: Loopback) -> psutil.Process | None:
    """The newest process of a kind."""
    kit, server = str(made.kit(site).resolve()), str((made.folder / "server").resolve())
    wanted = {
        "trainer": ("shepherd.silos.site.trainer", site, kit),
        "site job": ("shepherd.silos.flare.patches.site_job", kit),
        "site parent": ("shepherd.silos.flare.patches.site_parent", "site", kit),
        "server job": ("nvflare.private.fed.app.server.runner_process", server),
        "server parent": ("shepherd.silos.flare.patches.site_parent", "server", server),
    }[kind]
    found = []
    for one in psutil.process_iter(["cmdline", "create_time"]):
        words = one.info["cmdline"] or []
        if "silos" not in words and all(any(part in word for word in words) for part in wanted):
            found.append(one)
    return max(found, key=lambda one: one.info["create_time"], default=None)


def digest(output: Path) -> str:
    """Of the bits of a run's final adapter."""
    return hashlib.sha256((output / "adapter" / WEIGHTS).read_bytes()).hexdigest()


def _line(one: Trial) -> str:
    ended = "ended" if one.ended else f"NOT ENDED ({one.why})"
    struck = "" if one.struck else ", NOT STRUCK"
    return (
        f"{one.kind:13s} {one.site} at {one.after:4.1f} s: {ended} in {one.seconds:.0f} s, "
        f"{one.rounds_lost} lost, {len(one.failures)} failures, same bits {one.same_bits}{struck}"
    )


def _wrong(one: Trial) -> bool:
    """Whether failures were counted that there were none of: only a trainer's death may be one."""
    return len(one.failures) > (1 if one.kind == "trainer" else 0)


if __name__ == "__main__":
    sys.exit(main())
