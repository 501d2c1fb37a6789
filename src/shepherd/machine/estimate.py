"""Estimate the memory and time of a run on this machine, by a short trial before its first round."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.data.tokens import Tokens
from shepherd.io.progress import stage
from shepherd.machine import memory
from shepherd.machine.plan import Plan
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.tune import Job, Visit

TRIAL_TOKENS = 256
LONG_TRIAL_S = 1.0  # after a trial of this duration no larger one is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Estimated memory and time of a run."""

    memory_bytes: int
    """Peak memory of all processes together, in bytes."""
    seconds_a_round: float
    """Seconds of local tuning in one round."""


def expected(
    base: Base,
    tuning: TuningTable,
    plan: Plan,
    sample: Tokens,
    round_tokens: float,
    more_ranks: int = 0,
    training: LocalTraining = DEFAULT_TRAINING,
) -> Expected:
    """Estimate a run by tuning on the first examples of `sample`.

    Args:
        round_tokens: tokens that the cohort of one round tunes on.
        more_ranks: ranks of a client's adapter in addition to the run's, which count in its memory.
        training: the objective, whose groups follow one another in `sample`.
    """
    return Expected(
        memory_bytes=memory_bytes(base, plan, more_ranks),
        seconds_a_round=round_tokens / tokens_per_second(base, tuning, plan, sample, training),
    )


def memory_bytes(base: Base, plan: Plan, more_ranks: int = 0) -> int:
    """Peak bytes: the base in each process, the activations of a pass, and the adapters of its clients."""
    process = memory.PROCESS_BYTES + memory.weight_bytes(base)
    activations = plan.micro_batch_tokens * memory.bytes_per_token(base)
    passes = activations + plan.stack_size * memory.ADAPTER_COPIES * memory.adapter_bytes(base, more_ranks)
    return process * (plan.workers + (plan.workers > 1)) + plan.workers * passes


def tokens_per_second(
    base: Base, tuning: TuningTable, plan: Plan, sample: Tokens, training: LocalTraining = DEFAULT_TRAINING
) -> float:
    """Tuning speed of all processes together, in tokens a second.

    It is this process's speed with the threads of a worker, times the workers. The trials tune adapters that
    are discarded.
    """
    threads = memory.threads()
    memory.use_threads(max(1, threads // plan.workers))
    try:
        return plan.workers * _measured_speed(base, tuning, sample, plan.micro_batch_tokens, training)
    finally:
        memory.use_threads(threads)


def _measured_speed(
    base: Base, tuning: TuningTable, sample: Tokens, most: int, training: LocalTraining
) -> float:
    """Tuning speed of this process, in tokens a second.

    The first trial, of one example, starts threads and fills caches and is not counted. The others grow to a
    whole pass of `most` tokens as long as they are short, since a small one is slower per token.
    """
    with stage("measuring the speed on a few examples"):
        _timed_step(base, tuning, sample, 1, most, training)
        tokens = TRIAL_TOKENS
        while True:
            took, seconds = _timed_step(base, tuning, sample, min(tokens, most), most, training)
            if seconds > LONG_TRIAL_S or tokens >= most or took == len(sample.ids):
                return took / seconds
            tokens *= 4


def _timed_step(
    base: Base, tuning: TuningTable, sample: Tokens, tokens: int, most: int, training: LocalTraining
) -> tuple[int, float]:
    """Run one optimiser step on the first examples with this many tokens; returns its tokens and its seconds.

    Args:
        most: tokens in one forward pass.
    """
    count, group = int(np.searchsorted(np.cumsum(sample.lengths), tokens)) + 1, training.objective.group_size
    count += -count % group
    data = sample.take(np.arange(min(count, len(sample))))
    visit = Visit(client="trial", data=data, batches=[np.arange(len(data))])
    broadcast = Broadcast(round=0, adapter=base.zero, seed=0)
    began = perf_counter()
    job = Job(
        broadcast=broadcast,
        algorithm=fedavg.ALGORITHM,
        visits=[visit],
        tuning=tuning,
        learning_rate=tuning.learning_rate,
        micro_batch_tokens=most,
        training=LocalTraining(DEFAULT_TRAINING.optimiser, training.objective),
    )
    tune.tune(base, job)
    return len(data.ids), perf_counter() - began
