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
from shepherd.model.tune import Visit
from shepherd.progress import stage
from shepherd.settings import TuningTable

TRIAL_TOKENS = 256
WARM_S = 2.0  # a trial that took less is made again: the first one also starts threads and fills caches


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
    """Of tuning, in this process. The trial tunes an adapter that is thrown away."""
    count = max(1, int(np.searchsorted(np.cumsum(sample.lengths), TRIAL_TOKENS)))
    data = sample.take(np.arange(min(count, len(sample))))
    visit = Visit(client="trial", data=data, steps=[np.arange(len(data))])
    broadcast = Broadcast(round=0, adapter=base.zero, seed=0)
    with stage("measuring the speed on a few examples"):
        for _ in range(2):
            began = perf_counter()
            tune.tune(base, broadcast, fedavg.ALGORITHM, [visit], tuning, learning_rate=tuning.learning_rate)
            seconds = perf_counter() - began
            if seconds > WARM_S:
                break
    return len(data.ids) / seconds
