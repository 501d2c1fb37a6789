"""What the leak audit finds at plain, clipped and private runs, and whether it catches broken mechanisms.

    python -m benchmarks.privacy_audit [--on world] [--canaries 200] [--keep FOLDER] [--more KEY=VALUE ...]

One run for each arm, over the same data, with canaries that are clients of their own (decision 46): plain;
updates clipped; Gaussian noise for epsilon 8 and for epsilon 1; and three mechanisms that claim epsilon 1 and
do not keep it: without the noise, without the clip, and with noise from a seed that everybody knows, which
the attacker draws again and takes out. The audit must contradict the three and none of the others. With
--keep a run that was stopped goes on, and one that is finished is read.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import broken_mechanisms, common, setting
from benchmarks.common import Figures, Table
from shepherd import plugins
from shepherd.audit import canaries
from shepherd.audit.auditing import RUN, Audit, Planted, audit_run_file, first_adapter, write
from shepherd.audit.canaries import Remembered
from shepherd.audit.sections import RELEASED, Attacked
from shepherd.core import Poisson, Transform
from shepherd.data import data_folder
from shepherd.overrides import overridden
from shepherd.privacy import accountant
from shepherd.rounds import context_of
from shepherd.run import folder
from shepherd.run.answerer import adapter_of
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.run.run import Run
from shepherd.settings import RunSettings

COPIES = (16,)
"""Examples of a canary's client: one batch of them."""
DELTA = 1e-3
TABLES = {
    "selection": {"name": "poisson", "share": 0.3},
    "federation": {"rounds": 20, "weights": "equal", "max_share": 1.0},
    "tuning": {"max_steps": 4, "batch_size": 16},
    "evaluation": {"every": 5, "examples": 200},
    "checkpoints": {"keep": 1},
}
WORLD = {"data": {"limit": 400, "holdout": 0.2}, "split": {"clients": 50}}
QUICK = {
    "data": {"limit": 20, "holdout": 0.3},
    "split": {"clients": 4},
    "federation": {"rounds": 2},
    "tuning": {"max_steps": 1, "batch_size": 4},
    "evaluation": {"examples": 8},
}
Breaks = Callable[[Transform], Transform]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to protect clients, or not to."""

    name: str
    epsilon: float | None = None
    clipped: bool = True
    breaks: Breaks | None = None
    must_be_caught: bool = False


ARMS = (
    Arm(name="plain", clipped=False),
    Arm(name="clipped"),
    Arm(name="DP 8", epsilon=8.0),
    Arm(name="DP 1", epsilon=1.0),
    Arm(name="no noise", epsilon=1.0, breaks=broken_mechanisms.without_noise, must_be_caught=True),
    Arm(name="no clip", epsilon=1.0, breaks=broken_mechanisms.without_clip, must_be_caught=True),
    Arm(name="public seed", epsilon=1.0, breaks=broken_mechanisms.from_public_seed, must_be_caught=True),
)
QUICK_ARMS = ("plain", "public seed")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--on", choices=setting.SETTINGS, default="world", help="default world")
    parser.add_argument("--canaries", type=int, default=200, help="default 200")
    parser.add_argument("--norm", type=float, default=5.0, help="of the clip (default 5)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the audits there, and go on with them"
    )
    parser.add_argument("--more", nargs="+", default=[], metavar="KEY=VALUE", help="changes of every arm")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """Audit each arm; raises Missing if the data are not there."""
    arms = [arm for arm in ARMS if arm.name in QUICK_ARMS or not options.quick]
    with TemporaryDirectory() as scratch:
        place = options.keep or Path(scratch)
        rows = [_row(arm, options, place / arm.name.replace(" ", "-")) for arm in arms]
    caught = {row["arm"]: row["contradicted"] for row in rows}
    judged = [caught[arm.name] == arm.must_be_caught for arm in arms]
    return {"rows": rows, "delta": DELTA, "passed": options.quick or all(judged)}


def _row(arm: Arm, options: Namespace, place: Path) -> Figures:
    asked = settings = _settings(arm, options)
    mechanism = plugins.method(asked).transform
    parts: dict[str, Any] = {}
    if arm.breaks:
        parts["transform"] = arm.breaks(mechanism)
        settings = asked.model_copy(update={"transforms": ()})
    planted = Planted(count=20 if options.quick else options.canaries, copies=COPIES, as_clients=True)
    found = audit_run_file(settings, place, train=_train, planted=planted, **parts)
    write(found)
    memory = found.found.remembered[RELEASED]
    if arm.breaks is broken_mechanisms.from_public_seed:
        memory = _without_public_noise(found, place, asked, mechanism)
    return _figures(arm, found, memory, read_rows(place / RUN))


def _settings(arm: Arm, options: Namespace) -> RunSettings:
    tables = [TABLES, *([WORLD] if options.on == "world" else []), *([QUICK] if options.quick else [])]
    own = {"seed": options.seed, "machine": {"threads": options.threads or "auto"}}
    settings = overridden(setting.settings(options.on, *tables, own), options.more)
    transform: dict[str, Any] = {"name": "clip", "norm": options.norm}
    if arm.epsilon is not None:
        rounds, share = settings.federation.rounds, Poisson(chance=settings.selection.own["share"])
        noise = accountant.noise_for(arm.epsilon, DELTA, share, rounds)
        transform = {"name": "gaussian", "norm": options.norm, "noise": round(noise, 4)}
    tables_of_arm: dict[str, Any] = {"transforms": [transform] if arm.clipped else []}
    if arm.epsilon is not None:
        tables_of_arm["privacy"] = {"delta": DELTA}
    return overridden(setting.settings(options.on, *tables, own, tables_of_arm), options.more)


def _train(opening: Callable[[], Run]) -> None:
    with closing(opening()) as run:
        for _, row in run.rounds():
            print(f"round {row['round']} of {run.until}", flush=True)
        run.finish(answer=False)


def _without_public_noise(found: Audit, place: Path, asked: RunSettings, mechanism: Transform) -> Remembered:
    """What the adapter remembers once an attacker has taken out the noise that everybody can draw."""
    settings = folder.planned(place / RUN)
    base, planting = load_base(settings), canaries.load(place)
    assert planting is not None
    adapter = adapter_of(place / RUN, base)
    clients = len(data_folder.load(place / RUN / "data").clients)
    context = context_of(settings, plugins.selection(asked), adapter, clients)
    bared = broken_mechanisms.without_public_noise(
        mechanism, adapter, range(found.rounds), context, float(asked.server.own.get("learning_rate", 1.0))
    )
    claim = found.found.claim
    memory = canaries.memory(
        base,
        {RELEASED: bared},
        planting,
        canaries.tokens_of(planting, settings, base),
        first=first_adapter(place / RUN, settings, base, plugins.method(asked), adapter),
        delta=claim.delta if claim and claim.delta else DELTA,
        micro_batch=4096,
    )
    return memory[RELEASED]


def _figures(arm: Arm, found: Audit, memory: Remembered, rows: Sequence[Figures]) -> Figures:
    attacked: Attacked = replace(found.found, remembered={RELEASED: memory})
    proven, groups = memory.proven[0], memory.groups
    members = attacked.membership.get(RELEASED)
    scored = [row["heldout"]["loss"] for row in rows if "heldout" in row]
    return {
        "arm": arm.name,
        "claim": attacked.claim.epsilon if attacked.claim else None,
        "one_run": proven.bounds.one_run,
        "gaussian": proven.bounds.gaussian,
        "ceiling": proven.ceiling.one_run,
        "exposure": {each.kind: each.exposure.row() for each in groups},
        "most_exposure": {each.kind: each.most for each in groups},
        "canary_auc": {each.kind: each.attack.auc.row() for each in groups},
        "member_auc": members.scores["reference"].auc.row() if members else None,
        "heldout": scored[-1] if scored else None,
        "contradicted": attacked.contradicted,
        "must_be_caught": arm.must_be_caught,
    }


def tables(figures: Figures) -> list[Table]:
    columns = (
        "arm", "claims", "proven", "for Gaussian noise", "at most", "directions' AUC", "texts' AUC",
        "exposure", "members' AUC", "held-out loss", "contradicted",
    )  # fmt: skip
    return [
        Table(
            "What attacks get out, and what they prove of epsilon",
            columns,
            [_printed(row) for row in figures["rows"]],
            (f"At delta {figures['delta']:g}; of texts, those of the kind that is told best.",),
        )
    ]


def _printed(row: Figures) -> list[str]:
    texts = [kind for kind in row["canary_auc"] if kind != canaries.DIRECTION]
    auc = max((row["canary_auc"][kind]["value"] for kind in texts), default=0.5)
    exposed = max((row["exposure"][kind]["value"] for kind in texts), default=0.0)
    along = row["canary_auc"].get(canaries.DIRECTION)
    members = row["member_auc"]
    return [
        row["arm"],
        "" if row["claim"] is None else f"{row['claim']:.2f}",
        f"{row['one_run']:.2f}",
        f"{row['gaussian']:.2f}",
        f"{row['ceiling']:.2f}",
        "" if along is None else f"{along['value']:.3f}",
        f"{auc:.3f}",
        f"{exposed:.2f}",
        "" if members is None else f"{members['value']:.3f} [{members['low']:.3f}, {members['high']:.3f}]",
        "" if row["heldout"] is None else f"{row['heldout']:.3f}",
        ("yes" if row["contradicted"] else "no") + (" (must be)" if row["must_be_caught"] else ""),
    ]


if __name__ == "__main__":
    sys.exit(main())
