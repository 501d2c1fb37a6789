"""This project's side of the tuning benchmark: one round, through the round loop and the simulation."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.util import Finalize
from time import perf_counter

from benchmarks.work import Measured, Work, device_bytes
from shepherd import plugins
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.machine import malloc, memory, planning
from shepherd.machine.estimate import Amounts
from shepherd.machine.executors import Inline, processes
from shepherd.machine.plan import Plan
from shepherd.model import base as bases
from shepherd.rounds import rounds, start
from shepherd.settings import RunSettings


def engine(work: Work, *, workers: int | None = None, dtype: str | None = None) -> Callable[[Work], Measured]:
    """Load the base as a run would: its dtype, its allocator, its number of clients tuned at once.

    `workers` and `dtype` take the place of the run file's.
    """
    settings = _changed(work.settings, workers, dtype)
    malloc.keep_pages()
    memory.use_threads(settings.machine.threads)
    base = bases.load(settings.model, settings.adapter, device=settings.machine.device)
    plan = _plan(work, settings, base)
    executor = processes(plan.workers, base) if plan.workers > 1 else Inline(base)
    # a side ends when nobody asks it any more, and waits for its children
    Finalize(None, executor.close, exitpriority=1)
    method = plugins.method(settings)

    def visit_all(asked: Work) -> Measured:
        local = LocalClients(
            datasets=asked.clients,
            algorithm=method.algorithm,
            transform=method.transform,
            tuning=asked.settings.tuning,
            federation=asked.settings.federation,
            micro_batch_tokens=plan.micro_batch_tokens,
            order_seed=asked.settings.seed,
        )
        simulation = Simulation(local=local, executor=executor, stack_size=plan.stack_size)
        began = perf_counter()
        state, report = next(
            rounds(
                method,
                simulation,
                start(method, asked.start),
                until=1,
                select=plugins.selection(asked.settings).cohort,
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
            peak_bytes=device_bytes(base.device),
            dtype=str(base.dtype).removeprefix("torch."),
            workers=plan.workers,
            clients_at_once=plan.stack_size,
            micro_batch_tokens=plan.micro_batch_tokens,
        )

    return visit_all


def _changed(settings: RunSettings, workers: int | None, dtype: str | None) -> RunSettings:
    machine = {} if workers is None else {"workers": workers}
    model = {} if dtype is None else {"dtype": dtype}
    return settings.model_copy(
        update={
            "machine": settings.machine.model_copy(update=machine),
            "model": settings.model.model_copy(update=model),
        }
    )


def _plan(work: Work, settings: RunSettings, base: bases.Base) -> Plan:
    amounts = Amounts(
        cohort=len(work.clients),
        step_tokens=work.tokens / sum(len(work.steps(name)) for name in work.clients),
        round_tokens=1e12,  # as in a run that is worth measuring
    )
    return planning.choose(settings, base, amounts)
