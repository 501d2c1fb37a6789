"""This project's side of the tuning benchmark: one round, through the round loop and the simulation."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from benchmarks.work import Measured, Work, peak_bytes
from shepherd import plugins, select
from shepherd.federation.simulation import Simulation
from shepherd.model import base as bases
from shepherd.model import memory
from shepherd.model.tune import micro_batch_tokens
from shepherd.rounds import rounds, start


def engine(work: Work) -> Callable[[Work], Measured]:
    """Load the base as a run would: its dtype, its allocator, its number of clients tuned at once."""
    settings = work.settings
    memory.keep_pages()
    memory.use_threads(settings.tuning.threads)
    base = bases.load(settings.model, settings.adapter)
    micro_batch = memory.fitting_micro_batch(base, micro_batch_tokens(settings.tuning, base.device))
    size = _cohort_size(work, base, micro_batch)
    algorithm, transform = plugins.algorithm(settings.algorithm), plugins.transform(settings.transforms)

    def visit_all(asked: Work) -> Measured:
        simulation = Simulation(
            base=base,
            datasets=asked.clients,
            algorithm=algorithm,
            transform=transform,
            tuning=asked.settings.tuning.model_copy(update={"micro_batch_tokens": micro_batch}),
            federation=asked.settings.federation,
            seed=asked.settings.seed,
            cohort_size=size,
        )
        began = perf_counter()
        state, report = next(
            rounds(
                algorithm,
                simulation,
                transform,
                start(algorithm, transform, asked.start),
                until=1,
                select=select.selector(asked.settings.federation),
                quorum=1.0,
                seed=asked.settings.seed,
            )
        )
        seconds = perf_counter() - began
        told = report.metrics.values()
        trained = sum(each["trained_tokens"] for each in told)
        return Measured(
            seconds=seconds,
            adapter=state.adapter,
            loss=sum(each["loss"] * each["trained_tokens"] for each in told) / trained,
            peak_bytes=peak_bytes(base.device),
            dtype=str(base.dtype).removeprefix("torch."),
            clients_at_once=size,
            micro_batch_tokens=micro_batch,
        )

    return visit_all


def _cohort_size(work: Work, base: bases.Base, micro_batch: int) -> int:
    size = work.settings.tuning.cohort_size
    if isinstance(size, int):
        return size
    step_tokens = work.tokens / sum(len(work.steps(name)) for name in work.clients)
    return min(len(work.clients), memory.cohort_size(base, micro_batch, step_tokens))
