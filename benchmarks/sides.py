"""The sides of a comparison, each in a process of its own that waits for its turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import psutil

from benchmarks.work import Measured, Work, held_bytes
from shepherd.machine import malloc

LOOK = 0.2  # seconds between two looks at the memory of a side
Turn = Callable[[int], Measured]
Make = Callable[[Work], Callable[[Work], Measured]]


@contextmanager
def sides(makes: Mapping[str, Make], work: Work) -> Iterator[dict[str, Turn]]:
    """Name -> a function that has that side do `work` with so many steps a visit, and measures it."""
    with ExitStack() as open_sides:
        yield {name: open_sides.enter_context(_side(name, make, work)) for name, make in makes.items()}


@contextmanager
def _side(name: str, make: Make, work: Work) -> Iterator[Turn]:
    context = get_context("spawn")  # a fork would inherit threads and allocator
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, work))  # a daemon could start no workers
    with _environment(malloc.environment() if name.startswith("engine") else {}):  # as `shepherd run` has it
        process.start()
    theirs.close()  # so that `recv` ends when the other process does

    watched = psutil.Process(process.pid)
    peak = 0  # since it began

    def answer() -> Measured | None:
        nonlocal peak
        while not ours.poll(LOOK):
            peak = max(peak, held_bytes(watched))
        found: Measured | None = ours.recv()
        return found

    def turn(steps: int) -> Measured:
        try:
            ours.send(steps)
            measured = answer()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"the side {name!r} died; its traceback is above") from error
        assert measured is not None
        return replace(measured, peak_bytes=measured.peak_bytes or peak)

    try:
        answer()  # that it has loaded its base: one side after another
        yield turn
    finally:
        ours.close()
        process.join(timeout=30)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """The environment of processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, make: Make, work: Work) -> None:
    visit_all = make(work)
    pipe.send(None)
    while True:
        try:
            steps: int = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        measured = visit_all(work.shortened(steps))
        malloc.release_free_memory()  # or what this side no longer needs is missing to the others
        pipe.send(measured)
