"""What a run will take on this machine, measured by a short trial before its first round."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.data.tokens import Tokens
from shepherd.model import memory, tune
from shepherd.model.base import Base
from shepherd.model.tune import Job, Visit
from shepherd.progress import stage
from shepherd.settings import TuningTable

TRIAL_TOKENS = 256
LONG_S = 1.0  # after a trial of this length no larger one is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a run will take, about."""

    memory_bytes: int
    """Of all processes together, at their largest."""
    seconds_a_round: float
    """Of local tuning."""


def expected(base: Base, tuning: TuningTable, sample: Tokens, round_tokens: float) -> Expected:
    """Try the speed on the first examples of `sample`.

    Args:
        tuning: with the number of workers, clients at once, and tokens of a pass that were chosen.
        round_tokens: that the cohort of one round tunes on.
    """
    return Expected(
        memory_bytes=memory_bytes(base, tuning),
        seconds_a_round=round_tokens / tokens_per_second(base, tuning, sample),
    )


def memory_bytes(base: Base, tuning: TuningTable) -> int:
    """The base in each process, what a pass keeps for its backward pass, and the adapters of its clients."""
    at_once = 1 if tuning.cohort_size == "auto" else tuning.cohort_size
    workers = 1 if tuning.workers == "auto" else tuning.workers
    micro_batch = tune.micro_batch_tokens(tuning, base)
    process = memory.PROCESS + memory.weight_bytes(base)
    passes = micro_batch * memory.bytes_per_token(base) + at_once * memory.COPIES * memory.adapter_bytes(base)
    return process * (workers + (workers > 1)) + workers * passes


def tokens_per_second(base: Base, tuning: TuningTable, sample: Tokens) -> float:
    """Of tuning, in all processes: of this one with a worker's threads, times the workers.

    The trials tune adapters that are thrown away.
    """
    most = tune.micro_batch_tokens(tuning, base)
    workers = 1 if tuning.workers == "auto" else tuning.workers
    threads = memory.threads()
    memory.use_threads(max(1, threads // workers))
    try:
        return workers * _tried(base, tuning, sample, most)
    finally:
        memory.use_threads(threads)


def _tried(base: Base, tuning: TuningTable, sample: Tokens, most: int) -> float:
    """Tokens a second of this process.

    The first trial, of one example, starts threads and fills caches and is not counted. The others grow to a
    whole pass of `most` tokens as long as they are short, since a small one is slower by the token.
    """
    with stage("measuring the speed on a few examples"):
        _timed(base, tuning, sample, 1)
        tokens = TRIAL_TOKENS
        while True:
            took, seconds = _timed(base, tuning, sample, min(tokens, most))
            if seconds > LONG_S or tokens >= most or took == len(sample.ids):
                return took / seconds
            tokens *= 4


def _timed(base: Base, tuning: TuningTable, sample: Tokens, tokens: int) -> tuple[int, float]:
    """One optimiser step on the first examples that hold so many tokens: its tokens, and its seconds."""
    count = int(np.searchsorted(np.cumsum(sample.lengths), tokens)) + 1
    data = sample.take(np.arange(min(count, len(sample))))
    visit = Visit(client="trial", data=data, steps=[np.arange(len(data))])
    broadcast = Broadcast(round=0, adapter=base.zero, seed=0)
    began = perf_counter()
    job = Job(
        broadcast=broadcast,
        algorithm=fedavg.ALGORITHM,
        visits=[visit],
        tuning=tuning,
        learning_rate=tuning.learning_rate,
    )
    tune.tune(base, job)
    return len(data.ids), perf_counter() - began
