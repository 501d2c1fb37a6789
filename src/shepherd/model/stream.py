"""Answers while they are written: several adapters over one base, a token each at every step."""

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
    """After each step, for each adapter (None is the base alone), its new token ids so far.

    Stop tokens are left out, and what is finished stays still. The last are those of `generate` for this
    one prompt, with the same seed. transformers' own generate runs in a thread meanwhile; it ends when the
    iterator is exhausted or closed. The base, on which the adapters hang, is taken until then: one at a
    time.

    Raises:
        BaseError: as `generate`; when the first answer is asked for.
    """
    if not adapters:
        return
    generation.require_ranges(max_new_tokens, temperature, top_p)
    room = generation.room(base, len(prompt), max_new_tokens)
    seeds = [generation.seed_of(seed, 0, prompt)]
    sampler = generation.Sampler(seeds, temperature, top_p, base.device) if temperature else None
    steps = _Steps()

    def work() -> None:
        try:
            generation.answer(base, adapters, [prompt], room, stop, sampler, steps)
        except _Stopped:
            pass
        finally:
            steps.queue.put(None)

    with ThreadPoolExecutor(1, "stream") as pool:
        done = pool.submit(work)
        try:
            yield from _grown(steps, len(adapters), stop)
        finally:
            steps.stopped.set()
        done.result()  # what went wrong there goes on here


def _grown(steps: _Steps, count: int, stop: Sequence[int]) -> Iterator[list[list[int]]]:
    rows: list[list[int]] = [[] for _ in range(count)]
    while (tokens := steps.queue.get()) is not None:
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        yield [generation.until_stop(list(row), stop) for row in rows]


class _Stopped(Exception):
    """The reader has gone."""


class _Steps(BaseStreamer):  # type: ignore[misc]
    """Hands over each step's tokens; unlike transformers' own streamers, those of a whole batch."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[list[int] | None] = SimpleQueue()
        self.stopped = Event()

    def put(self, value: Tensor) -> None:
        if self.stopped.is_set():
            raise _Stopped
        if value.ndim == 1:  # the prompts come first, as rows
            self.queue.put(value.tolist())

    def end(self) -> None:
        pass
