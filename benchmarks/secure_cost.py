"""Seconds and bytes of a secure sum, for one site and for the server, in one process.

    python -m benchmarks.secure_cost --json secure_cost.json

One site is measured against peers that do everything but draw their masks, which it cannot tell. Seconds are
of one core (process time), without the network and without what trains or encodes. Two rows for each size:
all sites stay, and as many leave after they have sent shares as the threshold can spare, the server's worst
case.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from time import process_time
from typing import Any, TypeVar
from unittest import mock

import numpy as np

from benchmarks import common, secure_setting
from benchmarks.common import Figures, Table
from benchmarks.secure_setting import PHASES
from shepherd.silos.secure import masks
from shepherd.silos.secure.member import Phase

MB = 10**6
SITES = (3, 10, 30, 100)
SIZES_MB = (1, 16, 64)
Result = TypeVar("Result")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cell and print the table."""
    made = common.parser(__doc__)
    made.add_argument("--sites", type=int, nargs="+", default=SITES, metavar="N", help="default 3 10 30 100")
    made.add_argument("--mb", type=int, nargs="+", default=SIZES_MB, metavar="MB", help="default 1 16 64")
    made.add_argument("--ring-bits", type=int, choices=(32, 64), default=32)
    return common.run(made.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """One row for each number of sites, size, and number of sites that leave."""
    counts, sizes = ((3, 4), (0.01,)) if options.quick else (options.sites, options.mb)
    rows = []
    for count in counts:
        spare = count - secure_setting.session(count).threshold
        for size in sizes:
            for leaving in sorted({0, spare}):
                rows.append(cell(count, int(size * MB), options.ring_bits, leaving, options.seed))
                print(
                    f"{count} sites, {size} MB, {leaving} leave: {rows[-1]['site']['all']:.2f} s", flush=True
                )
    return {"ring_bits": options.ring_bits, "rows": rows}


class Clock:
    """Seconds of one core, by what they went to."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, what: str, action: Callable[..., Result], *more: Any) -> Result:
        """Call something, and add its seconds."""
        begun = process_time()
        result = action(*more)
        self.seconds[what] = self.seconds.get(what, 0.0) + process_time() - begun
        return result


def cell(count: int, size: int, ring_bits: int, leaving: int, seed: int) -> Figures:
    """One sum of vectors of `size` bytes, of which the last `leaving` sites send no codes."""
    length = size * 8 // ring_bits
    asked = secure_setting.session(count, length, ring_bits)
    codes = np.random.default_rng(seed).integers(-(2**20), 2**20, length)
    made = secure_setting.federation(asked, seed, dict.fromkeys(asked.members, codes))
    measured, site, server = asked.members[0], Clock(), Clock()
    received = {phase: 0 for phase in PHASES}

    def answers(
        phase: Phase, names: Sequence[str], shown: Callable[[str], tuple[Any, ...]]
    ) -> dict[str, bytes]:
        """Everyone's answer; the measured site's is timed and alone draws its masks."""
        received[phase] = sum(len(part) for part in shown(measured) if isinstance(part, bytes))
        found = {measured: site.timed(phase.name.lower(), made.ask, phase, measured, *shown(measured))}
        with mock.patch.object(masks, "mask"):
            return found | {name: made.ask(phase, name, *shown(name)) for name in names if name != measured}

    keys = answers(Phase.KEYS, asked.members, lambda name: ())
    roster = server.timed("keys", made.server.roster, keys)
    shares = answers(Phase.SHARES, asked.members, lambda name: (roster,))
    delivered = server.timed("shares", made.server.deliveries, shares)
    staying = asked.members[: count - leaving]
    received[Phase.MASKED] = len(delivered[measured])
    for name in staying:  # one at a time, as they arrive: one vector is in memory
        more = (Phase.MASKED, name, delivered[name], codes)
        if name == measured:
            masked = site.timed("masked", made.ask, *more)
            sent = len(masked)
        else:
            with mock.patch.object(masks, "mask"):
                masked = made.ask(*more)
        server.timed("masked", made.server.add, name, masked)
        made.seen.sent[Phase.MASKED].clear()
    survivors = server.timed("agree", made.server.survivors)
    signed = answers(Phase.AGREE, staying, lambda name: (survivors,))
    signatures = server.timed("agree", made.server.signatures, signed)
    revealed = answers(Phase.REVEAL, staying, lambda name: (signatures,))
    server.timed("total", made.server.total, revealed)
    up = {phase.name.lower(): len(made.seen.sent[phase].get(measured, b"")) for phase in PHASES}
    up["masked"] = sent
    return {
        "sites": count,
        "bytes": size,
        "leaving": leaving,
        "site": {**site.seconds, "all": sum(site.seconds.values())},
        "server": {**server.seconds, "all": sum(server.seconds.values())},
        "up": {**up, "all": sum(up.values())},
        "down": sum(received.values()),
    }


def tables(figures: Figures) -> list[Table]:
    """One line for each cell."""
    rows = [
        (
            str(row["sites"]),
            f"{row['bytes'] / MB:g}",
            str(row["leaving"]),
            f"{row['site']['masked']:.2f}",
            f"{row['site']['all']:.2f}",
            f"{row['server']['all']:.2f}",
            f"{(row['up']['all'] - row['bytes']) / 1000:.1f}",
            f"{row['down'] / 1000:.1f}",
        )
        for row in figures["rows"]
    ]
    columns = (
        "sites",
        "MB",
        "leave",
        "masks s",
        "site s",
        "server s",
        "site sends besides, kB",
        "receives, kB",
    )
    return [Table(f"A secure sum in a ring of {figures['ring_bits']} bits, one core", columns, rows)]


if __name__ == "__main__":
    sys.exit(main())
