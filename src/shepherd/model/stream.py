"""Stream answers token by token, from several adapters over one base."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from shepherd.core import Adapter
from shepherd.model import generate as generation
from shepherd.model.base import Base


def stream(
    base: Base,
    adapters: Sequence[Adapter | None],
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Generator[list[list[int]], None, None]:
    """Yield the new token ids so far of each adapter (None is the base alone), after each step.

    Stop tokens are left out, and a finished answer no longer changes. The last value is that of `generate`
    for this prompt with the same seed. transformers' own generate runs in a thread; it ends when the iterator
    is exhausted or closed. Until then the base, to which the adapters are bound, must not be used otherwise.

    Raises:
        BaseError: as `generate`, when the first value is requested.
    """
    if not adapters:
        return
    generation.require_ranges(max_new_tokens, temperature, top_p)
    longest = generation.max_answer_tokens(base, len(prompt), max_new_tokens)
    seeds = [generation.seed_of(seed, 0, prompt)]
    steps = _Steps()

    def work() -> None:
        try:
            for steps.arms in generation.adapter_batches(base, len(adapters)):
                sampler = generation.Sampler(seeds, temperature, top_p, base.device) if temperature else None
                chosen = [adapters[k] for k in steps.arms]
                generation.answer(base, chosen, [prompt], longest, stop, sampler, steps)
        except _Stopped:
            pass
        finally:
            steps.queue.put(None)

    with ThreadPoolExecutor(1, "stream") as pool:
        done = pool.submit(work)
        try:
            yield from _collect(steps, len(adapters), stop)
        finally:
            steps.stopped.set()
        done.result()  # raises what was raised in the thread


def _collect(steps: _Steps, count: int, stop: Sequence[int]) -> Iterator[list[list[int]]]:
    rows: list[list[int]] = [[] for _ in range(count)]
    while (step := steps.queue.get()) is not None:
        for arm, token in zip(*step, strict=True):
            rows[arm].append(token)
        yield [generation.until_stop(list(row), stop) for row in rows]


class _Stopped(Exception):
    """The consumer of the stream has closed it."""


class _Steps(BaseStreamer):  # type: ignore[misc]
    """Passes on each step's tokens of a whole batch, unlike transformers' own streamers."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[list[int], list[int]] | None] = SimpleQueue()
        self.arms: list[int] = []  # of the batch under way
        self.stopped = Event()

    def put(self, value: Tensor) -> None:
        if self.stopped.is_set():
            raise _Stopped
        if value.ndim == 1:  # the prompts come first, as rows
            self.queue.put((self.arms, value.tolist()))

    def end(self) -> None:
        pass
