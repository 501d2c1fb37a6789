"""Estimate the memory and time of a run on this machine, by a short trial before its first round."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from time import perf_counter

import numpy as np

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast, Method, ServerState
from shepherd.data import cursor
from shepherd.data.tokens import Tokens
from shepherd.io.progress import stage
from shepherd.machine import memory
from shepherd.machine.plan import Plan
from shepherd.model.base import Base
from shepherd.privacy import example_level
from shepherd.settings import RunSettings, TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.tune import Job, Visit

TRIAL_TOKENS = 256
OPTIMISER_COPIES = 3  # of `memory.ADAPTER_COPIES`
# What a pass holds, over what it keeps: padding, gradients, gaps in the heap; 1.0 to 1.8 measured.
ACTIVATION_MARGIN = 1.25
LONG_TRIAL_S = 1.0  # after a trial of this duration no larger one is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak memory of a run by what it is for, in bytes, of all its processes on one machine."""

    process: int
    """Python, PyTorch and the other libraries, once a process."""
    base: int
    """Weights of the frozen base, once a process."""
    adapters: int
    """The clients' adapters that are tuned at the same time: before, now, and the change."""
    optimiser: int
    """Their gradients and the two moments of AdamW."""
    activations: int
    """What a forward pass keeps for the backward pass, with a margin."""
    server: int = 0
    """The server's state, and the updates that it holds at the same time."""

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Estimated memory and time of a run."""

    memory_bytes: int
    """Peak memory of all processes on one machine, in bytes."""
    seconds_a_round: float
    """Seconds of local tuning in one round."""


def expected(
    base: Base,
    tuning: TuningTable,
    plan: Plan,
    sample: Tokens,
    *,
    round_tokens: float,
    step_tokens: float,
    more_ranks: int = 0,
    training: LocalTraining = DEFAULT_TRAINING,
    token_bytes: int | None = None,
    process: int = memory.PROCESS_BYTES,
    server: int = 0,
    nodes: int = 0,
) -> Expected:
    """Estimate a run by tuning on the first examples of `sample`.

    Args:
        round_tokens: tokens that the cohort of one round tunes on.
        step_tokens: tokens of one client's optimiser step, on average.
        more_ranks: ranks of a client's adapter in addition to the run's, which count in its memory.
        training: the objective, whose groups follow one another in `sample`.
        token_bytes: as for `memory_of`, like `process`, `server` and `nodes`.
    """
    needed = memory_of(
        base,
        plan,
        step_tokens=step_tokens,
        more_ranks=more_ranks,
        token_bytes=token_bytes,
        process=process,
        server=server,
        nodes=nodes,
    )
    return Expected(
        memory_bytes=needed.total,
        seconds_a_round=round_tokens * seconds_a_token(base, tuning, plan, sample, step_tokens, training),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much a run tunes on, on average."""

    cohort: float
    """Clients of a round."""
    step_tokens: float
    """Tokens of one client's optimiser step; a client with few examples makes small steps."""
    round_tokens: float
    """Tokens that the cohort of a round tunes on, repeated ones included."""


def amounts(settings: RunSettings, sizes: Sequence[int], *, cohort: float, length: float) -> Amounts:
    """Amounts of a run whose clients are asked equally often.

    Args:
        sizes: examples of each client, at least one.
        cohort: clients of a round, on average.
        length: tokens of an example, on average; of a pair, those of both answers.
    """
    tuning, visits = settings.tuning, max(1, round(settings.federation.rounds * cohort / len(sizes)))
    step = visit = 0.0
    for size, clients in Counter(sizes).items():
        batch = min(tuning.batch_size, size)
        if settings.privacy.examples is not None:
            examples = float(example_level.steps(tuning, size) * batch)
        else:
            _, taken = cursor.taken(
                size,
                visits=visits,
                epochs=tuning.epochs,
                max_steps=tuning.max_steps,
                batch_size=tuning.batch_size,
            )
            examples = taken / visits
        step += clients * batch
        visit += clients * examples
    return Amounts(
        cohort=cohort,
        step_tokens=length * step / len(sizes),
        round_tokens=length * cohort * visit / len(sizes),
    )


def pass_tokens(plan: Plan, step_tokens: float) -> int:
    """Tokens of a forward pass: a step of every client of a stack, as far as they fit."""
    return min(plan.micro_batch_tokens, math.ceil(plan.stack_size * step_tokens))


def memory_of(
    base: Base,
    plan: Plan,
    *,
    step_tokens: float,
    more_ranks: int = 0,
    token_bytes: int | None = None,
    process: int = memory.PROCESS_BYTES,
    server: int = 0,
    nodes: int = 0,
) -> Memory:
    """Peak memory: the base in each process, the activations of a pass, and the adapters of its clients.

    Args:
        step_tokens: tokens of one client's optimiser step, on average.
        token_bytes: what one token keeps for the backward pass; None measures it on a short row.
        process: bytes of this process without a base.
        server: bytes of the server's state and of the updates that it holds.
        nodes: machines that Ray's actors are spread over, of which this one has the most to hold; 0 without
            Ray, whose actors are always processes apart.
    """
    workers = math.ceil(plan.workers / max(1, nodes))
    apart = workers if nodes or workers > 1 else 0
    kept = memory.bytes_per_token(base) if token_bytes is None else token_bytes
    factors = workers * plan.stack_size * memory.adapter_bytes(base, more_ranks)
    return Memory(
        process=process + apart * memory.PROCESS_BYTES + workers * memory.kernel_bytes(base),
        base=(1 + apart) * memory.weight_bytes(base),
        adapters=(memory.ADAPTER_COPIES - OPTIMISER_COPIES) * factors,
        optimiser=OPTIMISER_COPIES * factors,
        activations=round(ACTIVATION_MARGIN * workers * pass_tokens(plan, step_tokens) * kept),
        server=server,
    )


def server_bytes(method: Method, state: ServerState, up: float, cohort: float) -> int:
    """The server's state before and after a round, and the updates that its aggregation holds.

    Args:
        up: bytes that a client sends, as they travel.
        cohort: clients of a round, on average.
    """
    updates = 2.0 if method.aggregation.streams else cohort + 1
    return round(2 * state_bytes(state) + updates * max(up, state.adapter.nbytes))


def state_bytes(state: ServerState) -> int:
    """Bytes of the tensors of a server's state."""
    return sum(part.nbytes for part in (state.adapter, *state.memory.values(), *state.optimiser.values()))


def seconds_a_token(
    base: Base,
    tuning: TuningTable,
    plan: Plan,
    sample: Tokens,
    step_tokens: float,
    training: LocalTraining = DEFAULT_TRAINING,
) -> float:
    """Seconds that all processes together tune for each token of a round.

    It is this process's speed with the threads of a worker, times the workers. The trials tune adapters that
    are discarded.
    """
    threads = memory.threads()
    memory.use_threads(max(1, threads // plan.workers))
    try:
        most = pass_tokens(plan, step_tokens)
        length = len(sample.ids) * training.objective.group_size / len(sample)
        batch = min(tuning.batch_size, max(1, round(step_tokens / length)))
        tuning = tuning.model_copy(update={"batch_size": batch})
        return 1 / (plan.workers * _measured_speed(base, tuning, sample, most, plan.stack_size, training))
    finally:
        memory.use_threads(threads)


def _measured_speed(
    base: Base, tuning: TuningTable, sample: Tokens, most: int, clients: int, training: LocalTraining
) -> float:
    """Tuning speed of this process, in tokens a second.

    The first trial, of one example, starts threads and fills caches and is not counted. The others grow to a
    whole pass of `most` tokens as long as they are short, since a small one is slower per token, and so is
    one of many clients, at most `clients`.
    """
    with stage("measuring the speed on a few examples"):
        _timed_step(base, tuning, sample, 1, most, 1, training)
        tokens = TRIAL_TOKENS
        while True:
            took, seconds = _timed_step(base, tuning, sample, min(tokens, most), most, clients, training)
            if seconds > LONG_TRIAL_S or tokens >= most or took == len(sample.ids):
                return took / seconds
            tokens *= 4


def _timed_step(
    base: Base,
    tuning: TuningTable,
    sample: Tokens,
    tokens: int,
    most: int,
    clients: int,
    training: LocalTraining,
) -> tuple[int, float]:
    """Run one optimiser step on the first examples with this many tokens; returns its tokens and its seconds.

    Args:
        most: tokens in one forward pass.
        clients: clients of a stack; fewer share the examples where these are not a batch for each.
    """
    count, group = int(np.searchsorted(np.cumsum(sample.lengths), tokens)) + 1, training.objective.group_size
    count += -count % group
    data = sample.take(np.arange(min(count, len(sample))))
    groups = np.arange(len(data)).reshape(-1, group)
    shares = np.array_split(groups, min(clients, math.ceil(len(groups) / tuning.batch_size)))
    visits = [Visit(client=f"trial {k}", data=data, batches=[own.ravel()]) for k, own in enumerate(shares)]
    broadcast = Broadcast(round=0, adapter=base.zero, seed=0)
    began = perf_counter()
    job = Job(
        broadcast=broadcast,
        algorithm=fedavg.ALGORITHM,
        visits=visits,
        tuning=tuning,
        learning_rate=tuning.learning_rate,
        micro_batch_tokens=most,
        training=LocalTraining(DEFAULT_TRAINING.optimiser, training.objective),
    )
    tune.tune(base, job)
    return len(data.ids), perf_counter() - began
