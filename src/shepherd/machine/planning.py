"""Make a plan: choose what the run file leaves open to suit this machine."""

from __future__ import annotations

import math
from dataclasses import asdict

from shepherd.errors import SettingsError
from shepherd.io import paths
from shepherd.machine import memory
from shepherd.machine.estimate import Amounts
from shepherd.machine.memory import Sizes
from shepherd.machine.plan import Plan
from shepherd.model.base import Base
from shepherd.settings import RayTable, RunSettings


def choose(
    settings: RunSettings,
    base: Base,
    work: Amounts,
    *,
    more_ranks: int = 0,
    token_bytes: int | None = None,
    free: int | None = None,
) -> Plan:
    """Choose the plan of a new run; it measures, so another call may choose differently.

    Args:
        settings: with the date that the chat template prints, if it prints one.
        work: how much the run tunes on.
        more_ranks: ranks of a client's adapter in addition to the run's.
        token_bytes: as for `memory.sizes`.
        free: memory to fit into, in bytes; None is what is free now.

    Raises:
        SettingsError: worker processes are asked for on a GPU, or beside Ray's actors.
    """
    machine = settings.machine
    if machine.ray is not None and machine.workers not in ("auto", machine.ray.actors):
        raise SettingsError(
            f"machine.workers = {machine.workers} is for worker processes on this machine; remove it beside"
            " machine.ray.actors"
        )
    workers = machine.workers if machine.ray is None else machine.ray.actors
    if machine.ray is None and machine.workers not in ("auto", 1) and base.device.type != "cpu":
        raise SettingsError(
            f"machine.workers = {machine.workers} needs the device to be cpu; set machine.workers = 1 on"
            f" {base.device}"
        )
    sizes = memory.sizes(
        base,
        clients=max(1, round(work.cohort)),
        step_tokens=work.step_tokens,
        all_tokens=settings.federation.rounds * work.round_tokens,
        micro_batch=_micro_batch(settings, base),
        workers=None if workers == "auto" else workers,
        hosts=max(1, nodes(settings, base, workers=1 if workers == "auto" else workers)),
        stack_size=None if machine.stack_size == "auto" else machine.stack_size,
        more_ranks=more_ranks,
        token_bytes=token_bytes,
        free=free,
    )
    return _plan(settings, base, sizes)


def from_run_file(settings: RunSettings, base: Base) -> Plan:
    """The plan of a run folder of an earlier version, which wrote its choices into the run file."""
    machine = settings.machine
    assert machine.stack_size != "auto"
    sizes = Sizes(
        workers=1 if machine.workers == "auto" else machine.workers,  # from before there were workers
        stack_size=machine.stack_size,
        micro_batch_tokens=_micro_batch(settings, base),
    )
    return _plan(settings, base, sizes)


def for_coordinator(settings: RunSettings, base: Base) -> Plan:
    """The plan of a coordinator, which tunes nothing itself.

    Raises:
        SettingsError: worker processes or Ray are asked for.
    """
    machine = settings.machine
    for name, asked in (("workers", machine.workers not in ("auto", 1)), ("ray", machine.ray is not None)):
        if asked:
            raise SettingsError(
                f"machine.{name} is for clients on this machine; remove it from a run file over silos"
            )
    sizes = Sizes(workers=1, stack_size=1, micro_batch_tokens=_micro_batch(settings, base))
    return _plan(settings, base, sizes)


def nodes(settings: RunSettings, base: Base, *, workers: int) -> int:
    """Nodes like this machine that this many of Ray's actors fill; 0 for a run without Ray."""
    ray = settings.machine.ray
    return 0 if ray is None else math.ceil(workers / _on_a_node(ray, base))


def _on_a_node(ray: RayTable, base: Base) -> int:
    """Actors that a node like this machine has room for."""
    on_processor = max(1, memory.threads() // ray.cpus)
    return max(1, int(1 / ray.gpus)) if ray.gpus and base.device.type != "cpu" else on_processor


def _plan(settings: RunSettings, base: Base, sizes: Sizes) -> Plan:
    """The plan with these sizes for a loaded base, with the threads in use."""
    return Plan(
        dtype=str(base.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        device=str(base.device),
        threads=memory.threads(),
        commit=base.table.revision if paths.is_hub_id(base.table.base) else None,
        date=settings.data.date,
        **asdict(sizes),
    )


def _micro_batch(settings: RunSettings, base: Base) -> int:
    asked = settings.machine.micro_batch_tokens
    return memory.micro_batch(base) if asked == "auto" else asked
