"""Quality against bytes: what clients send in fewer bits, and what that costs.

    python -m benchmarks.bytes --keep runs/bytes                 # the embedded world, all encodings, 3 seeds
    python -m benchmarks.bytes --keep runs/bytes --on dolly --methods fp32 "4 bits" "top 10 %"
    python -m benchmarks.bytes --keep runs/bytes --rates 0.5 1 2 # a learning rate of its own for each
    python -m benchmarks.bytes --keep runs/bytes --table         # only print what is there already

Every arm has the same examples, rounds and cohorts, and but for Fed-SB the same method; the arms differ in
what a client sends. Trainings are cells of a grid as in `benchmarks.methods`: kept in the folder, and not
made again. Three questions (EdgeFlowerTune's protocols, arXiv 2605.08636, and the plain one):

- whole run: the loss at the end, and its difference to fp32's, on the half of the held-out questions that no
  rate was chosen by, with 95% intervals over questions and seeds.
- budget: the held-out loss after the last round in which the clients have sent no more than a share of what
  fp32 sends in the whole run (`--budget`, an eighth).
- target: what the clients have sent when the held-out loss is for the first time no more than `--within`
  (1 %) above that of fp32 at its end.

The command passes if an encoding has sent no more than the budget in its whole run and ends within that share
of fp32's loss: an eighth of the bytes at a loss within 1 %.

The last two read the loss after each round, on up to 160 questions, of runs whose learning rate is planned
for all rounds: a run that is meant to end at the budget would do a little better. Bytes are those that
leave the clients, over all clients, as `bytes_up` counts them; the broadcast is the same for all but Fed-SB.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from benchmarks import common, methods
from benchmarks.common import Figures, Table
from benchmarks.methods import Cell, Grid, interval

PLAIN = "fp32"
ENCODINGS: Mapping[str, tuple[str, ...]] = {
    PLAIN: (),
    "fp16": ("transforms=[{name='float16'}]",),
    "8 bits": ("transforms=[{name='quantise'}]",),
    "4 bits": ("transforms=[{name='quantise', bits=4}]",),
    "4 bits, feedback": ("transforms=[{name='quantise', bits=4, feedback=true}]",),
    "1 bit": ("transforms=[{name='quantise', bits=1}]",),
    "1 bit, feedback": ("transforms=[{name='quantise', bits=1, feedback=true}]",),
    "top 10 %": ("transforms=[{name='top_k', share=0.1}]",),
    "top 10 %, no feedback": ("transforms=[{name='top_k', share=0.1, feedback=false}]",),
    "top 1 %": ("transforms=[{name='top_k', share=0.01}]",),
    "Fed-SB": ("algorithm.name=fed_sb",),
}
"""Name -> what it changes in the setting's run file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing of the grid, and print its table."""
    made = common.parser(__doc__)
    methods.add_options(made, ENCODINGS, (1.0,))
    made.add_argument("--budget", type=float, default=1 / 8, help="share of fp32's bytes (default 1/8)")
    made.add_argument("--within", type=float, default=0.01, help="share above fp32's loss (default 0.01)")
    return common.run(made.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """The scores of every cell, made or read, and what they say of bytes."""
    grid = Grid.of(options, ENCODINGS, "evaluation.every=1", "evaluation.examples=160")
    best = grid.best(options.methods, options.rates, options.seeds)
    rows = grid.compared(best, options.seeds, PLAIN)
    ways = {row["method"]: _ways(grid, row, options.seeds) for row in rows}
    if PLAIN in ways:
        for row in rows:
            row |= figures(ways[row["method"]], ways[PLAIN], options.budget, options.within)
    return {
        "on": options.on,
        "budget": options.budget,
        "within": options.within,
        "encodings": rows,
        "passed": options.quick or PLAIN not in ways or holds(rows, options.budget, options.within),
    }


def holds(rows: Sequence[Mapping[str, Any]], budget: float, within: float) -> bool:
    """Whether an encoding sends at most this share of fp32's bytes, and ends within this share of its loss.

    >>> plain = {"method": "fp32", "share": 1.0, "loss": {"value": 2.0}}
    >>> few = {"method": "1 bit", "share": 0.05, "loss": {"value": 2.01}}
    >>> holds([plain, few], 0.125, 0.01), holds([plain, few], 0.04, 0.01), holds([plain, few], 0.125, 0.001)
    (True, False, False)
    """
    losses = {row["method"]: row["loss"]["value"] for row in rows if row["loss"]["value"] is not None}
    shares = {row["method"]: row["share"] for row in rows if "share" in row}
    return PLAIN in losses and any(
        shares[name] <= budget and loss <= (1 + within) * losses[PLAIN]
        for name, loss in losses.items()
        if name != PLAIN and name in shares
    )


Way = list[tuple[int, float]]
"""After each round of a run: bytes that the clients have sent so far, and the held-out loss."""


def _ways(grid: Grid, row: Mapping[str, Any], seeds: int) -> list[Way]:
    """The way of each seed."""
    cells = (Cell(method=row["method"], rate=row["rate"], seed=number) for number in range(seeds))
    kept = [found for cell in cells if (found := grid.scores(cell)) is not None]
    return [list(zip(accumulate(each["bytes_up"]), each["heldout"], strict=True)) for each in kept]


def figures(own: Sequence[Way], plain: Sequence[Way], budget: float, within: float) -> dict[str, Any]:
    """The bytes of an encoding against those of fp32, by each protocol; means over seeds.

    >>> plain = [[(100, 2.0), (200, 1.0)]]
    >>> figures([[(10, 2.0), (20, 1.5), (30, 1.005)]], plain, budget=0.1, within=0.01)
    {'bytes_up': 30.0, 'share': 0.15, 'at_budget': 1.5, 'to_target': 30.0}
    >>> figures(plain, plain, budget=0.1, within=0.01)
    {'bytes_up': 200.0, 'share': 1.0, 'at_budget': None, 'to_target': 200.0}
    """
    spent = float(np.mean([way[-1][0] for way in own]))
    whole = float(np.mean([way[-1][0] for way in plain]))
    target = (1 + within) * float(np.mean([way[-1][1] for way in plain]))
    cut = [[loss for sent, loss in way if sent <= budget * whole][-1:] for way in own]
    reached = [[sent for sent, loss in way if loss <= target][:1] for way in own]
    return {
        "bytes_up": spent,
        "share": spent / whole,
        "at_budget": _mean(cut),
        "to_target": _mean(reached),
    }


def _mean(found: Sequence[Sequence[float]]) -> float | None:
    """The mean over seeds; None if there is nothing for one of them."""
    return float(np.mean(found)) if all(found) else None


def tables(figures: Figures) -> list[Table]:
    """The encodings as they are printed."""
    columns = [
        "encoding",
        "rate",
        "MB up",
        "of fp32",
        "loss",
        "against fp32",
        "right %",
        "at budget",
        "MB to target",
    ]
    rows = [
        [
            row["method"],
            f"{row['rate']:g}x",
            *((f"{row['bytes_up'] / 1e6:.2f}", f"1/{1 / row['share']:.1f}") if "share" in row else ("", "")),
            interval(row["loss"]),
            interval(row.get("against", {}).get("loss")),
            interval(row.get("right"), 100, 1),
            "" if row.get("at_budget") is None else f"{row['at_budget']:.3f}",
            "" if row.get("to_target") is None else f"{row['to_target'] / 1e6:.2f}",
        ]
        for row in figures["encodings"]
    ]
    notes = [
        f"at budget: held-out loss when the clients have sent {figures['budget']:.3g} of fp32's bytes",
        f"to target: sent until the held-out loss is within {figures['within']:.0%} of fp32's at its end",
    ]
    return [Table(f"quality against bytes on {figures['on']}", columns, rows, notes)]


if __name__ == "__main__":
    sys.exit(main())
