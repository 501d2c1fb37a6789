"""What [secure] costs over silos, and what it changes: seconds and bytes of a round, and the final adapter.

The cost: a real server and real sites on this machine, with FLARE's processes, whose trainers are stubs that
answer at once and mask as any site does. Runs with and without [secure] take turns in one federation, so that
both meet the same machine; the first round of each, in which everything is warmed up, does not count. What a
site receives and sends is counted at its trainer.

The difference: the same run with and without [secure] over real trainers and the embedded base, with the same
data, seed and order. In the first round both send the same whole numbers: with [secure] these are added up as
such, without as real ones, in other last bits, and each round of training then makes more of what it starts
with. Both runs are repeated in one process, where the difference is seen after each round, and where the run
with [secure] has to have the bits that it has over silos.
"""

from __future__ import annotations

import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import common, setting, silos_round, silos_same, silos_setting, silos_stub
from benchmarks.common import Figures, Table
from benchmarks.silos_stub import Visit
from shepherd.run import checkpoint
from shepherd.run.folder import planned
from shepherd.run.log import read_rows
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.loopback import Loopback

KB, MB = 10**3, 2**20
ENCODED: dict[str, Any] = {"transforms": [{"name": "fixed_point", "norm": 100.0, "bits": 22}]}
SECURE: dict[str, Any] = {**ENCODED, "secure": {"ring_bits": 32}}
NAMES = {"plain": "without", "secure": "with secure sums"}


@dataclass(frozen=True, slots=True)
class Case:
    """Sites, bytes of an adapter, rounds of a run that count, and turns of a run without and one with."""

    sites: int
    size: int
    rounds: int
    turns: int


CASES = (
    Case(3, KB, 6, 2),
    Case(3, MB, 6, 2),
    Case(3, 16 * MB, 5, 2),
    Case(3, 64 * MB, 3, 2),
    Case(10, KB, 4, 2),
    Case(10, MB, 4, 2),
    Case(10, 16 * MB, 3, 1),
    Case(10, 64 * MB, 3, 1),
)
QUICK = (Case(3, KB, 2, 1),)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--only", type=int, action="append", help="the cost of this case alone, from 1 on")
    parser.add_argument("--rounds", type=int, default=3, help="of the run with and without (default 3)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    cases = QUICK if options.quick else CASES
    costs: list[Figures] = []
    for number, case in enumerate(cases, 1):
        if options.only and number not in options.only:
            continue
        with TemporaryDirectory() as scratch:
            costs.append(_cost(case, Path(scratch)))
        print(f"{costs[-1]['title']}: {_seconds(costs[-1])} s a round", flush=True)
    if options.only:
        return {"costs": costs}
    with TemporaryDirectory() as scratch:
        difference = _difference(options, Path(scratch))
    return {"costs": costs, "difference": difference, "passed": difference["other_bits_than_alone"] == 0}


def _cost(case: Case, scratch: Path) -> Figures:
    sites = silos_setting.names(case.sites)
    adapter = silos_setting.adapter(case.size)
    states = {
        "plain": silos_setting.first(scratch / "plain", adapter),
        "secure": silos_setting.first(scratch / "secure", adapter, ({},)),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in NAMES}
    bytes_: dict[str, list[tuple[int, int]]] = {kind: [] for kind in NAMES}
    with silos_setting.running(scratch / "federation", sites) as made:
        for turn in range(case.turns):
            for kind, tables in (("plain", {}), ("secure", SECURE)):
                before = {site: len(_visits(made, site)) for site in sites}
                order = silos_setting.order(sites, case.rounds + 2, tables=tables)
                *_, last = silos_setting.followed(made, order, states[kind], scratch / f"job-{kind}-{turn}")
                if last != case.rounds + 2:
                    raise RuntimeError(f"{case}: {last} of {case.rounds + 2} rounds")
                seen = {site: _visits(made, site)[count:] for site, count in before.items()}
                seconds[kind] += silos_round.lengths([visit for visits in seen.values() for visit in visits])
                bytes_[kind] += [a_round(visits) for visits in seen.values()]
    return {
        "title": f"{case.sites} sites, {_size(case.size)}",
        "sites": case.sites,
        "bytes": case.size,
        "kinds": {
            kind: {
                "rounds": len(seconds[kind]),
                "seconds": statistics.median(seconds[kind]),
                "least": min(seconds[kind]),
                "most": max(seconds[kind]),
                "down": statistics.median(down for down, _ in bytes_[kind]),
                "up": statistics.median(up for _, up in bytes_[kind]),
            }
            for kind in NAMES
        },
    }


def _visits(made: Loopback, site: str) -> list[Visit]:
    return silos_stub.visits(made.kit(site) / silos_setting.HOME)


def a_round(seen: Sequence[Visit]) -> tuple[int, int]:
    """Bytes that a site received and sent in a round, over all its messages but those to join.

    >>> a_round([Visit("train", 0, 1.0, 1.0, 1.0, 10, 4), Visit("keys", 0, 1.0, 1.0, 1.0, 2, 3)])
    (12, 7)
    """
    rounds = {visit.round for visit in seen if visit.kind == "train"}
    own = [visit for visit in seen if visit.kind != "join"]
    return (
        round(sum(visit.bytes_in for visit in own) / len(rounds)),
        round(sum(visit.bytes_out for visit in own) / len(rounds)),
    )


def _difference(options: Namespace, scratch: Path) -> Figures:
    settings = {kind: _settings(options, scratch, kind) for kind in NAMES}
    sites = loopback.write_sites(settings["secure"], scratch / "sites")
    adapters, losses = {}, {}
    with loopback.running(scratch / "federation", sites) as made:
        for kind, each in settings.items():
            run = coordinate.open_run(each, made.admin)
            try:
                for _, row in run.rounds():
                    print(
                        f"{NAMES[kind]}, round {row['round']}: {row['failures'] or 'all answered'}",
                        flush=True,
                    )
                last = checkpoint.latest(run.holder.checkpoints)
            finally:
                run.close()
            assert last is not None
            adapters[kind] = checkpoint.load(last).state.adapter
            losses[kind] = [row["heldout"]["loss"] for row in read_rows(Path(each.output))]
    largest = max(float(abs(tensor).max()) for tensor in adapters["plain"].values())
    with silos_same.one_thread():
        alone = {
            kind: [state.adapter for state, _ in silos_same.simulated(planned(each.output), sites)]
            for kind, each in settings.items()
        }
    rounds = zip(alone["plain"], alone["secure"], strict=True)
    return {
        "by_round": [silos_same.compare(plain, secure)["largest"] for plain, secure in rounds],
        "other_bits_than_alone": silos_same.compare(alone["secure"][-1], adapters["secure"])["different"],
        "rounds": settings["plain"].federation.rounds,
        "steps": settings["plain"].tuning.max_steps,
        "losses": losses,
        "largest_number": largest,
        **silos_same.compare(adapters["plain"], adapters["secure"]),
    }


def _settings(options: Namespace, scratch: Path, kind: str) -> Any:
    rounds, steps, limit = (2, 2, 90) if options.quick else (options.rounds, 8, 240)
    return setting.settings(
        "world",
        {
            "seed": options.seed,
            "output": str(scratch / kind),
            "data": {"limit": limit, "holdout": 0.2},
            "split": {"by": "iid", "clients": 3},
            "federation": {"rounds": rounds, "weights": "equal"},
            "selection": {"share": 1.0},
            "silos": {"deadline_s": 600.0},
            "tuning": {"max_steps": steps, "batch_size": 8},
            "evaluation": {"examples": 16, "answers": 0, "every": 1},
            "transforms": [{"name": "fixed_point", "norm": 1.0, "bits": 22}],
        },
        {"secure": {"ring_bits": 32}} if kind == "secure" else {},
    )


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            f"{case['title']}, {NAMES[kind]}",
            str(one["rounds"]),
            f"{one['seconds']:.2f}",
            f"{one['least']:.2f} to {one['most']:.2f}",
            _size(one["down"]),
            _size(one["up"]),
        )
        for case in figures["costs"]
        for kind, one in case["kinds"].items()
    ]
    columns = ("", "rounds", "seconds a round", "least to most", "a site receives", "a site sends")
    costs = Table("Rounds over silos without training, with and without secure sums", columns, rows)
    if "difference" not in figures:
        return [costs]
    found = figures["difference"]
    differ = [
        (
            f"round {number}",
            f"{plain:.4f}",
            f"{secure:.4f}",
            f"{largest:.3g}",
        )
        for number, (plain, secure, largest) in enumerate(
            zip(found["losses"]["plain"], found["losses"]["secure"], [0.0, *found["by_round"]], strict=True)
        )
    ]
    note = (
        f"largest difference of the final adapters: {found['largest']:.3g}"
        f" ({common.count(found['different'])} of {common.count(found['numbers'])} numbers have other bits;"
        f" the largest number is {found['largest_number']:.3g}); with secure sums,"
        f" {found['other_bits_than_alone']} numbers differ from those of the same run in one process"
    )
    return [
        costs,
        Table(
            f"Held-out loss of {found['rounds']} rounds of 3 sites, {found['steps']} steps a visit",
            ("", "without", "with secure sums", "largest difference of the adapters"),
            differ,
            [note],
        ),
    ]


def _seconds(cost: Figures) -> str:
    return ", ".join(f"{NAMES[kind]} {one['seconds']:.2f}" for kind, one in cost["kinds"].items())


def _size(count: float) -> str:
    """
    >>> _size(16 * MB), _size(2_500)
    ('16.0 MB', '2.5 kB')
    """
    return f"{count / MB:.1f} MB" if count >= MB else f"{count / KB:.1f} kB"


if __name__ == "__main__":
    sys.exit(main())
