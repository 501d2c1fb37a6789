"""What one client's update of one step tells anyone who sees it: gradient inversion as a section of an audit.

The updates of a run are not kept, so one client makes a step again: a few of its short examples, at the run's
rank, rate, optimiser and, with [privacy.examples], clipping and noise. The run's transforms are left out,
since what they hide depends on who looks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shepherd.algorithms import fedavg
from shepherd.audit import inversion
from shepherd.audit.inversion import Inversion
from shepherd.audit.sections import WORDS, Cell, Column, Section
from shepherd.core import Adapter, Broadcast
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import Tokens
from shepherd.model.base import Base
from shepherd.settings import RunSettings
from shepherd.training import tune
from shepherd.training.example_privacy import ExamplePrivacy
from shepherd.training.local import LocalTraining
from shepherd.training.tune import Job, Visit

BATCHES = (1, 4)
MAX_TOKENS = 64
"""Longest example that is attacked: where positions matter, the time grows with the length."""
MAX_VALUES = 2**29
"""Most values of the vectors of a vocabulary that are attacked; larger ones take minutes."""
SECONDS = 5.0
"""Time that putting the tokens of one update in order may take."""


def section(
    base: Base,
    settings: RunSettings,
    prepared: TokenisedData,
    adapters: Mapping[str, Adapter],
    *,
    training: LocalTraining,
    micro_batch: int,
) -> Section | None:
    """How much of a step's examples is read from its update; None if there is no example to try it on.

    Args:
        adapters: what the step starts from, by name.
    """
    data = _short(base, prepared)
    if data is None:
        return None
    found = {
        (name, batch): inversion.recovered(
            base,
            adapter,
            _update(base, settings, data.take(range(batch)), adapter, training, micro_batch),
            data.take(range(batch)),
            seconds=SECONDS,
        )
        for name, adapter in adapters.items()
        for batch in BATCHES
        if batch <= len(data)
    }
    reasons = dict.fromkeys(each.why_none for each in found.values() if each.why_none)
    return Section(
        name="one-update",
        title="What one client's update tells",
        words=(
            "How much of one client's step is read from its update, by a span check against the base,"
            " by anyone who sees it: the server, where updates are not aggregated securely. The step has a"
            " few short examples, at the run's rank, rate and optimiser, and none of the run's transforms."
        ),
        columns=(
            Column("step from", WORDS), Column("examples", "count"), Column("tokens found", "share"),
            Column("right of those named", "share"), Column("read whole", "share"), Column("AUC", "ratio"),
        ),
        rows=[_row(name, batch, each) for (name, batch), each in found.items()],
        notes=(
            *(f"The attack does not apply: {reason}." for reason in reasons),
            "A visit of many steps, or an optimiser such as AdamW, hides more from this attack, and a"
            " stronger one finds more.",
        ),
    )  # fmt: skip


def _row(name: str, batch: int, found: Inversion) -> list[Cell]:
    return [name, batch, found.recall, found.precision, found.examples, found.auc]


def _short(base: Base, prepared: TokenisedData) -> Tokens | None:
    """The first short examples of the client that has most of them; None if the attack would take long."""
    chosen: Tokens | None = None
    for name in sorted(prepared.clients):
        data = prepared.clients[name]
        fits = (data.lengths >= 2) & (data.lengths <= MAX_TOKENS) & (tune.predictions(data) > 0)
        own = data.take(np.flatnonzero(fits)[: max(BATCHES)].tolist())
        if len(own) > len(chosen or ()):
            chosen = own
    width = max((target.inputs for target in base.targets), default=0)
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    return chosen if vocabulary * width <= MAX_VALUES else None


def _update(
    base: Base,
    settings: RunSettings,
    data: Tokens,
    adapter: Adapter,
    training: LocalTraining,
    micro_batch: int,
) -> Adapter:
    """The change of the adapter by one step on all of these examples."""
    table = settings.privacy.examples
    visit = Visit(client="one", data=data, batches=[np.arange(len(data))], expected_batch=float(len(data)))
    job = Job(
        broadcast=Broadcast(round=0, adapter=adapter, seed=0),
        algorithm=fedavg.ALGORITHM,
        visits=[visit],
        tuning=settings.tuning.model_copy(update={"schedule": "constant", "warmup_steps": 0}),
        learning_rate=settings.tuning.learning_rate,
        micro_batch_tokens=micro_batch,
        training=training,
        privacy=ExamplePrivacy(norm=table.norm, noise=table.noise) if table else None,
    )
    (tuned,) = tune.tune(base, job)
    return tuned.delta
