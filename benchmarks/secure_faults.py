"""Random dropouts, kills and wrong answers in secure sums: wrong sums and leaks must be 0.

    python -m benchmarks.secure_faults

Each case draws the number of sites, the length and the ring, and gives some of the sites a fault in a random
phase: it is silent; its answer is lost on the way; it is killed and starts again with new secrets; its
answer arrives with a changed byte. In some cases the server is killed in a random phase, and the round starts
anew with the sites that still run, which sign no second set of survivors. A leak is a released sum of fewer
sites than the threshold, or a site both of whose secrets the server could compute from all that it has seen.
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from benchmarks import common, secure_setting
from benchmarks.common import Figures, Table
from benchmarks.secure_setting import PHASES, Codes, Federation
from shepherd.errors import SecureError
from shepherd.silos.secure import Member, survivors_of
from shepherd.silos.secure.member import Phase

CASES = 200


class Fault(Enum):
    """What happens to a site, from a phase on."""

    SILENT = "silent"
    LOST = "answer lost"
    RESTARTED = "killed, started again"
    CHANGED = "answer changed"


class ServerKilled(Exception):
    """The server is gone, and with it everything of this attempt."""


@dataclass(slots=True, kw_only=True)
class Case:
    """One round: its sites, their faults, and the phase in which the server is killed, if it is."""

    number: int
    sites: int
    length: int
    ring_bits: int
    faults: dict[str, tuple[Phase, Fault]]
    killed: Phase | None
    agreed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Site -> the survivors that it has signed in this round."""


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
    names = secure_setting.names(sites)
    spare = sites - secure_setting.session(sites).threshold
    faulty = draws.sample(names, draws.randint(0, min(sites, spare + draws.choice((0, 0, 0, 1, 2)))))
    return Case(
        number=number,
        sites=sites,
        length=draws.randint(1, 3_000),
        ring_bits=draws.choice((32, 64)),
        faults={name: (draws.choice(PHASES), draws.choice(list(Fault))) for name in faulty},
        killed=draws.choice(PHASES) if draws.random() < 0.3 else None,
    )


def outcome(case: Case) -> Figures:
    """Play a case, and check its sum and everything that the server has seen in all attempts."""
    asked = secure_setting.session(case.sites, case.length, case.ring_bits)
    codes = secure_setting.random_codes(asked, case.number, 2 ** (case.ring_bits - 5) - 1)
    seen: list[Federation] = []
    found, reason = None, ""
    try:
        try:
            found = attempted(case, codes, 0, seen)
        except ServerKilled:
            found = attempted(case, codes, 1, seen)
    except SecureError as error:
        reason = str(error)
    last = seen[-1]
    survivors = survivors_of(last.seen.survivors) if found is not None else ()
    wrong = found is not None and (
        found.tolist() != secure_setting.total(codes, survivors, case.ring_bits).tolist()
    )
    leaks = sum(len(secure_setting.exposed(made)) for made in seen if made.seen.roster)
    leaks += found is not None and len(survivors) < asked.threshold
    opened = {survivors_of(made.seen.survivors) for made in seen if made.seen.sent[Phase.REVEAL]}
    leaks += len(opened) > 1  # two sums over different sets of one round's codes tell their difference
    return {
        "sites": case.sites,
        "faults": [(phase.name.lower(), fault.value) for phase, fault in case.faults.values()],
        "server_killed": case.killed.name.lower() if case.killed else "",
        "right": found is not None and not wrong,
        "failed": found is None,
        "wrong": wrong,
        "leaks": leaks,
        "in_sum": len(survivors),
        "reason": reason,
    }


def attempted(case: Case, codes: dict[str, Codes], attempt: int, seen: list[Federation]) -> Codes:
    """One attempt: the server hears what the faults let through.

    Raises:
        SecureError: too few sites are left.
        ServerKilled: in the first attempt, at the phase that the case says.
    """
    asked = secure_setting.session(case.sites, case.length, case.ring_bits, attempt=attempt)
    made = secure_setting.federation(asked, f"{case.number} {attempt}", codes)
    seen.append(made)
    draws = random.Random(f"{case.number} {attempt}")

    def heard(phase: Phase, ask: Mapping[str, tuple[object, ...]]) -> dict[str, bytes]:
        """The answers of a phase that arrive."""
        answers = {}
        for name, more in ask.items():
            answer = answered(case, made, phase, name, more, attempt, draws)
            if answer is not None:
                answers[name] = answer
        if case.killed is phase and attempt == 0:
            raise ServerKilled
        return answers

    server = made.server
    keys = heard(Phase.KEYS, dict.fromkeys(asked.members, ()))
    made.seen.roster = server.roster(keys)
    shares = heard(Phase.SHARES, {name: (made.seen.roster,) for name in keys if name not in server.dropped})
    made.seen.delivered = server.deliveries(shares)
    to_mask = {name: (sealed, codes[name]) for name, sealed in made.seen.delivered.items()}
    for name, masked in heard(Phase.MASKED, to_mask).items():
        refused_quietly(lambda name=name, masked=masked: server.add(name, masked))  # type: ignore[misc]
    made.seen.survivors = server.survivors()
    names = survivors_of(made.seen.survivors)
    signed = heard(Phase.AGREE, {name: (made.seen.survivors,) for name in names})
    made.seen.signatures = server.signatures(signed)
    return server.total(heard(Phase.REVEAL, {name: (made.seen.signatures,) for name in names}))


def answered(
    case: Case,
    made: Federation,
    phase: Phase,
    name: str,
    more: tuple[object, ...],
    attempt: int,
    draws: random.Random,
) -> bytes | None:
    """What arrives of one site's answer; None for nothing. In a second attempt its faults are over."""
    at, fault = case.faults.get(name, (Phase.OVER, Fault.SILENT))
    if attempt > 0 or phase < at:
        return site_answer(case, made, phase, name, more)
    if fault is Fault.SILENT or phase > at:
        return None
    if fault is Fault.RESTARTED:
        known = secure_setting.directory(made.session.members)
        made.members[name] = Member(made.session, name, secure_setting.identity(name), known)
    answer = site_answer(case, made, phase, name, more)
    if answer is None or fault is Fault.LOST:
        return None
    if (
        fault is Fault.CHANGED and phase is not Phase.MASKED
    ):  # a changed code is another code: nobody can tell
        place = draws.randrange(len(answer))
        return answer[:place] + bytes([answer[place] ^ 1 << draws.randrange(8)]) + answer[place + 1 :]
    return answer


def site_answer(
    case: Case, made: Federation, phase: Phase, name: str, more: tuple[object, ...]
) -> bytes | None:
    """An honest site's answer; None if it refuses. It signs one set of survivors a round."""
    if phase is Phase.AGREE:
        names = survivors_of(made.seen.survivors)
        if case.agreed.setdefault(name, names) != names:
            return None
    try:
        return made.ask(phase, name, *more)
    except SecureError:
        return None


def refused_quietly(action: Callable[[], None]) -> None:
    """Let the server go on without a vector that it refuses."""
    secure_setting.refusal(action)


def tables(figures: Figures) -> list[Table]:
    """What came of the cases, and of the faults in them."""
    counts = Counter((phase, fault) for row in figures["rows"] for phase, fault in row["faults"])
    killed = Counter(row["server_killed"] for row in figures["rows"])
    phases = [phase.name.lower() for phase in PHASES]
    rows = [(fault.value, *(str(counts[phase, fault.value]) for phase in phases)) for fault in Fault]
    rows.append(("server killed", *(str(killed[phase]) for phase in phases)))
    outcomes = [
        ("right sums", str(figures["right"])),
        ("failed rounds", str(figures["failed"])),
        ("wrong sums", str(figures["wrong"])),
        ("leaks", str(figures["leaks"])),
    ]
    return [
        Table(f"Faults in {figures['cases']} secure sums, by phase", ("fault", *phases), rows),
        Table("What came of them", ("outcome", "rounds"), outcomes),
    ]


if __name__ == "__main__":
    sys.exit(main())
