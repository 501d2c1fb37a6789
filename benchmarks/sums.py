"""Membership under secure sums: whether the sum of n clients' updates shows what they trained on.

    python -m benchmarks.sums [--json FILE]

Thirty clients of the embedded world make the same visit, of four epochs over 24 examples each, from one
broadcast adapter that was tuned on other examples. The attacker sees the sum of n of their updates, each in
whole numbers as [secure] sends them, and for n = 1 a single update. It scores an example by how much the sum
raises its log-probability, relative to the broadcast (the reference attack), as the mean that the server
applies and, once more, as a step that is n times as long. Members are all examples of the n clients; the
others are held-out examples. Each figure is over all groups of n that the thirty make.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from benchmarks import common, inversion, setting
from benchmarks.common import Figures, Table
from shepherd.audit import estimate
from shepherd.core import Adapter
from shepherd.data import pipeline
from shepherd.data.tokens import Tokens
from shepherd.model import base as bases
from shepherd.model import lora
from shepherd.overrides import overridden
from shepherd.training import score, tune

CLIENTS, EXAMPLES, EPOCHS, BATCH = 30, 24, 4, 8
RANK = 8
BEGUN = 96
"""Examples that the broadcast was tuned on, in steps of `BATCH`."""
SIZES = (1, 3, 10, 30)
OTHERS = 400
"""Held-out examples that members are told from."""
MICRO_BATCH_TOKENS = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack the sums of every number of clients."""
    return common.run(common.parser(__doc__).parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """AUC, and the share of members found at 1 % false positives, for each number of clients."""
    clients, sizes = (6, (1, 3)) if options.quick else (CLIENTS, SIZES)
    settings = setting.placed(
        overridden(setting.settings("world"), ("data.limit=400", "evaluation.answers=0"))
    )
    base = bases.load(settings.model, settings.adapter, device="cpu")
    prepared = pipeline.prepare(settings, base.tokenizer)
    pooled = Tokens.pooled(list(prepared.clients.values()))
    rng = np.random.default_rng(options.seed)
    others = prepared.heldout.take(rng.permutation(len(prepared.heldout))[:OTHERS])
    begun, *parts = pooled.take(rng.permutation(len(pooled))).split(
        [BEGUN, *[EXAMPLES] * clients, len(pooled) - BEGUN - EXAMPLES * clients]
    )[: clients + 1]
    fresh = lora.fresh(base.targets, RANK, options.seed)
    start = _moved(fresh, inversion.tuned(base, fresh, [_visit("others", begun, 1, rng)], adamw=True)[0])
    visits = [_visit(f"client-{k}", part, EPOCHS, rng) for k, part in enumerate(parts)]
    deltas = inversion.tuned(base, start, visits, adamw=True)
    rows = []
    for size in sizes:
        inside: dict[str, list[float]] = {"mean": [], "sum": []}
        outside: dict[str, list[float]] = {"mean": [], "sum": []}
        for first in range(0, clients, size):
            mean, _ = inversion.summed(deltas[first : first + size], inversion.BITS, options.seed)
            seen = [start, _moved(start, mean), _moved(start, mean, size)]
            data = Tokens.pooled([*parts[first : first + size], others])
            found = score.losses(base, seen, data, micro_batch=MICRO_BATCH_TOKENS) / tune.predictions(data)
            for kind, after in zip(inside, found[1:], strict=True):
                gains = found[0] - after
                inside[kind] += gains[: size * EXAMPLES].tolist()
                outside[kind] += gains[size * EXAMPLES :].tolist()
        for kind in inside if size > 1 else ["mean"]:
            attack = estimate.attack(inside[kind], outside[kind])
            rows.append({"clients": size, "seen": kind, **attack.row()})
            print(f"{size} clients, {kind}: AUC {attack.auc.value:.3f}", flush=True)
    return {"rows": rows}


def _visit(name: str, data: Tokens, epochs: int, rng: np.random.Generator) -> tune.Visit:
    orders = [rng.permutation(len(data)) for _ in range(epochs)]
    return tune.Visit(
        client=name,
        data=data,
        batches=[part for order in orders for part in np.split(order, len(data) // BATCH)],
    )


def _moved(start: Adapter, delta: Adapter, times: float = 1.0) -> Adapter:
    return Adapter({name: tensor + np.float32(times) * delta[name] for name, tensor in start.items()})


def tables(figures: Figures) -> list[Table]:
    """One row for each number of clients."""
    rows = [
        (
            str(row["clients"]),
            row["seen"],
            f"{row['auc']['value']:.3f} ({row['auc']['low']:.3f} to {row['auc']['high']:.3f})",
            common.share(row["tpr_0.01"]["value"]) if row["tpr_0.01"] else "",
        )
        for row in figures["rows"]
    ]
    title = "Which examples the n clients of a sum trained on"
    return [Table(title, ("clients", "applied as", "AUC", "found at 1 % false positives"), rows)]


if __name__ == "__main__":
    sys.exit(main())
