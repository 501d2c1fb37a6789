"""What a run says of itself as it begins or goes on, to the logger "shepherd"."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import prod

from shepherd.core import (
    Method,
)
from shepherd.data import remarks
from shepherd.data.dataset import TokenisedData
from shepherd.io import paths
from shepherd.io.progress import roughly
from shepherd.machine import memory
from shepherd.machine.estimate import Expected
from shepherd.machine.plan import Plan
from shepherd.model import base as bases
from shepherd.model.coverage import coverage

log = logging.getLogger(__name__)


def log_description(
    base: bases.Base, plan: Plan, method: Method, prepared: TokenisedData, *, hidden: bool
) -> None:
    """Log the base, the data, and how the run is tuned."""
    whole = memory.parameters(base)
    trained = sum(prod(shape) for name, shape in base.shapes.items() if method.algorithm.trainable(name, 0))
    dtype = str(base.dtype).removeprefix("torch.")
    log.info(
        "base %s: %s parameters, and %s to train (%.2f%%), %s on %s",
        paths.short(base.name), f"{whole:,}", f"{trained:,}", 100 * trained / whole, dtype, base.device,
    )  # fmt: skip
    log.info("%s", coverage(base.model, base.targets).sentence)
    s = prepared.summary
    log.log(
        _level(hidden),
        "%d clients, %s examples to train on (%s cut, %s dropped), %s held out",
        len(prepared.clients), *(f"{s[name]:,}" for name in ("kept", "cut", "dropped", "heldout")),
    )  # fmt: skip
    several = plan.workers > 1
    threads = max(1, memory.threads() // plan.workers)
    log.info(
        "tuning %s client%s at once%s, %d thread%s, up to %s tokens a pass",
        plan.stack_size, "s" * (plan.stack_size != 1),
        f" in each of {plan.workers} processes" if several else " in one process",
        threads, "s" * (threads != 1) + " each" * several, f"{plan.micro_batch_tokens:,}",
    )  # fmt: skip


def log_caveats(caveats: Iterable[str]) -> None:
    """Log what the epsilon of a run does not speak of; see `lineage.caveats`."""
    for sentence in caveats:
        log.info("%s", sentence)


def log_remarks(prepared: TokenisedData, *, hidden: bool) -> None:
    """Log what is cut, dropped or masked; what clients hold at DEBUG where noise is to hide it."""
    for sentence in remarks.training_remarks(prepared):
        log.log(_level(hidden), "%s", sentence)
    for sentence in remarks.heldout_remarks(prepared):
        log.info("%s", sentence)
    for sentence in remarks.training_warnings(prepared):
        log.log(_level(hidden, logging.WARNING), "%s", sentence)


def log_expectation(of_run: Expected, *, hidden: bool) -> None:
    memory_gb, seconds = of_run.memory_bytes / 1e9, of_run.seconds_a_round
    # a trial is good for one digit, since other work may share the machine
    rough = roughly(float(f"{seconds:.1g}"))
    # both are computed from the lengths of the clients' examples
    log.log(_level(hidden), "expecting about %.1f GB of memory, about %s a round", memory_gb, rough)


def _level(hidden: bool, level: int = logging.INFO) -> int:
    """The level at which to log what the clients hold: DEBUG where noise is to hide it."""
    return logging.DEBUG if hidden else level
