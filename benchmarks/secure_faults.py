"""Random dropouts, kills and wrong answers in secure sums: wrong sums and leaks must be 0.

    python -m benchmarks.secure_faults

Each case draws the number of sites, the length and the ring, and gives some of the sites a fault in a random
phase: it is silent; its answer is lost on the way; it is killed, and starts again with what it has written
down; its answer arrives with a changed byte. In some cases the server is killed in a random phase, starts
again, and repeats the round with all sites. Sites and server are the package's own (`benchmarks.masking`). A
leak is a reply that is no phase of a sum, a sum of fewer sites than the threshold, a site both of whose
secrets the server could compute in one attempt, or two opened sums of one round over different sites.
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Figures, Table
from benchmarks.masking import PHASES, TABLES, Killed, Room, Site, codes, directory
from shepherd.core import Adapter, Broadcast, Expected, Update, shapes_of
from shepherd.errors import QuorumNotMet, SecureError
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Ready, SumAnswer, SumRequest, Trained
from shepherd.silos.secure import messages, survivors_of, threshold
from shepherd.silos.secure.messages import Secret
from shepherd.silos.server.secure_federation import SecureFederation
from shepherd.silos.server.site_federation import RequestContext, SiteFederation

CASES = 200
BITS = {32: 27, 64: 32}
"""Ring -> bits of a number, of which it holds twelve sites'."""
RUN, FACTOR = "0123456789abcdef", "q.lora_A.weight"
DIGEST = slice(8, 40)
"""Where a message of the protocol names its session."""


class Fault(Enum):
    """What happens to a site, from a phase on."""

    SILENT = "silent"
    LOST = "answer lost"
    RESTARTED = "killed, started again"
    CHANGED = "answer changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One round: its sites, their faults, and the phase in which the server is killed, if it is."""

    number: int
    sites: int
    length: int
    ring_bits: int
    faults: Mapping[str, tuple[str, Fault]]
    killed: str | None
    """The phase in which the server is killed."""
    after: int
    """How many messages of that phase it has sent by then, at most."""

    @property
    def names(self) -> list[str]:
        """The sites."""
        return [f"site-{number:03d}" for number in range(self.sites)]

    @property
    def tables(self) -> dict[str, Any]:
        """What the sites are asked for."""
        transform = {"name": "fixed_point", "norm": 1.0, "bits": BITS[self.ring_bits]}
        return {**TABLES, "transforms": [transform], "secure": {"ring_bits": self.ring_bits}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Play every case and print what came of them."""
    made = common.parser(__doc__)
    made.add_argument("--cases", type=int, default=CASES, help=f"default {CASES}")
    return common.run(made.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """What came of each case, counted by fault and phase."""
    cases = 12 if options.quick else options.cases
    rows = [outcome(drawn(number, options.seed)) for number in range(cases)]
    total = {key: sum(row[key] for row in rows) for key in ("right", "failed", "wrong", "leaks")}
    return {"cases": cases, **total, "rows": rows, "passed": not total["wrong"] and not total["leaks"]}


def drawn(number: int, seed: int) -> Case:
    """A case: 3 to 12 sites, of which up to as many fail as the threshold can spare, or one or two more."""
    draws = random.Random(f"{seed} {number}")
    sites = draws.randint(3, 12)
    case = Case(
        number=number,
        sites=sites,
        length=draws.randint(1, 3_000),
        ring_bits=draws.choice((32, 64)),
        faults={},
        killed=draws.choice(PHASES) if draws.random() < 0.3 else None,
        after=draws.randint(0, sites - 1),
    )
    spare = sites - threshold(sites)
    faulty = draws.sample(case.names, draws.randint(0, min(sites, spare + draws.choice((0, 0, 0, 1, 2)))))
    return replace(case, faults={n: (draws.choice(PHASES), draws.choice(list(Fault))) for n in faulty})


def outcome(case: Case) -> Figures:
    """Play a case, and check its sum and everything that the server has seen in all attempts."""
    with TemporaryDirectory() as folder:
        found, reason, seen = played(case, Path(folder))
    return {
        "sites": case.sites,
        "faults": [(phase, fault.value) for phase, fault in case.faults.values()],
        "server_killed": case.killed or "",
        "right": found is not None and is_right(case, found),
        "failed": found is None,
        "wrong": found is not None and not is_right(case, found),
        "leaks": leaks(case, found, seen),
        "in_sum": len(found.clients) if found else 0,
        "reason": reason,
    }


def played(case: Case, home: Path) -> tuple[Update | None, str, list[tuple[str, Any, Any]]]:
    """The sum of a case, or why there is none, and all that the server has seen."""
    room = Room({name: Faulty(case, name, home) for name in case.names})
    room.before = kills(case)
    sent = Broadcast(
        round=0, adapter=Adapter({FACTOR: np.zeros((1, case.length), np.float32)}), seed=case.number
    )
    for _ in range(2):
        try:
            *_, update = federation(case, home, room).run(sent, case.names)
            assert isinstance(update, Update)
            return update, "", room.seen
        except QuorumNotMet as error:
            return None, str(error), room.seen
        except Killed:  # and started again: a round that is repeated, without faults
            room.before = lambda asked: None
            for site in room.sites.values():
                assert isinstance(site, Faulty)
                site.over = True
    raise AssertionError("the server was killed twice")


def federation(case: Case, home: Path, room: Room) -> SecureFederation:
    """The server's side of a run, as it is after a start."""
    context = RequestContext(
        run=RUN, base="b" * 64, version="1", settings=case.tables,
        deadline_s=5.0, short_deadline_s=5.0, max_in_flight=3,
    )  # fmt: skip
    return SecureFederation(
        silos=SiteFederation(transport=room, request_context=context, sites=case.names),
        ring_bits=32 if case.ring_bits == 32 else 64,
        layout=lambda sent: Expected(delta=shapes_of(sent.adapter), extra={}),
        fewest=lambda cohort: 1,
        agreed=home / "agreed.json",
        directory=directory(case.names),
    )


def kills(case: Case) -> Callable[[Any], None]:
    """Ends the server in its phase, after some of the phase's messages."""
    count = 0

    def before(asked: Any) -> None:
        nonlocal count
        if asked.kind == case.killed:
            count += 1
            if count > case.after:
                raise Killed

    return before


class Faulty:
    """A site with the fault that a case gives it."""

    def __init__(self, case: Case, name: str, home: Path) -> None:
        self.case, self.name, self.home = case, name, home
        self.at, self.fault = case.faults.get(name, ("", Fault.SILENT))
        self.over, self.reached = False, False
        self.draws = random.Random(f"{case.number} {name}")
        self.site = self._started()

    def _started(self) -> Site:
        bits = BITS[self.case.ring_bits]
        return Site(self.name, self.home / self.name, self.case.names, self.case.tables, bits=bits)

    def __call__(self, message: bytes) -> bytes | None:
        """What arrives of its answer to a message; None for nothing."""
        asked = wire.decode_asked(message)
        if self.over or (asked.kind != self.at and not self.reached):
            return self.site(message)
        now, self.reached = not self.reached, True
        match self.fault:
            case Fault.RESTARTED:
                if now:
                    self.site = self._started()
                return self.site(message)
            case Fault.LOST if now:
                self.site(message)
                return None
            case Fault.SILENT | Fault.LOST:
                return None
            case Fault.CHANGED if now:
                return self._changed(asked, message)
        return self.site(message)

    def _changed(self, asked: Any, message: bytes) -> bytes | None:
        """The answer with one bit changed, but for a masked number, of which nobody can tell."""
        answer = self.site(message)
        reply = wire.decode_reply(answer) if answer else None
        if not isinstance(reply, SumAnswer):
            return answer
        within = DIGEST.stop if asked.kind == "masked" else len(reply.content)
        place = self.draws.randrange(within)
        changed = bytearray(reply.content)
        changed[place] ^= 1 << self.draws.randrange(8)
        return wire.encode_reply(replace(reply, content=bytes(changed)))


def is_right(case: Case, found: Update) -> bool:
    """Whether it is the plain sum of the whole numbers of the sites that it names."""
    shape, bits = (1, case.length), BITS[case.ring_bits]
    exact = sum(codes(site, 0, shape, bits).astype(object) for site in found.clients)
    return bool((found.delta[FACTOR].astype(object) == exact).all())


def leaks(case: Case, found: Update | None, seen: Sequence[tuple[str, Any, Any]]) -> int:
    """How often the server has, or could have, more than one sum of enough sites."""
    least = threshold(case.sites)
    shares: dict[tuple[str, str, Secret], set[str]] = {}
    signed: dict[str, tuple[str, ...]] = {}
    other = 0
    for site, asked, reply in seen:
        other += not isinstance(reply, Ready | Trained | SumAnswer) and not hasattr(reply, "reason")
        if not isinstance(asked, SumRequest) or not isinstance(reply, SumAnswer):
            continue
        if asked.kind == "agree":
            signed[asked.attempt] = survivors_of(asked.content)
        if reply.kind == "reveal":
            try:
                revealed = messages.decode_revealed(reply.content[DIGEST], reply.content)
            except SecureError:  # a changed one
                continue
            for dealer, (which, _) in revealed.items():
                shares.setdefault((asked.attempt, dealer, which), set()).add(site)
    known = Counter((attempt, dealer) for (attempt, dealer, _), of in shares.items() if len(of) >= least)
    opened = {signed[attempt] for (attempt, _, _), of in shares.items() if len(of) >= least}
    few = found is not None and len(found.clients) < least
    return other + few + sum(count == len(Secret) for count in known.values()) + (len(opened) > 1)


def tables(figures: Figures) -> list[Table]:
    """What came of the cases, and of the faults in them."""
    counts = Counter((phase, fault) for row in figures["rows"] for phase, fault in row["faults"])
    killed = Counter(row["server_killed"] for row in figures["rows"])
    rows = [(fault.value, *(str(counts[phase, fault.value]) for phase in PHASES)) for fault in Fault]
    rows.append(("server killed", *(str(killed[phase]) for phase in PHASES)))
    outcomes = [
        ("right sums", str(figures["right"])),
        ("failed rounds", str(figures["failed"])),
        ("wrong sums", str(figures["wrong"])),
        ("leaks", str(figures["leaks"])),
    ]
    return [
        Table(f"Faults in {figures['cases']} secure sums, by phase", ("fault", *PHASES), rows),
        Table("What came of them", ("outcome", "rounds"), outcomes),
    ]


if __name__ == "__main__":
    sys.exit(main())
