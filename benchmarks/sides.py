"""The sides of a comparison, each in a process of its own that waits for its turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from benchmarks.work import Measured, Work
from shepherd.model import malloc

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

    def turn(steps: int) -> Measured:
        try:
            ours.send(steps)
            measured: Measured = ours.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"the side {name!r} died; its traceback is above") from error
        return measured

    try:
        yield turn
    finally:
        ours.close()
        process.join(timeout=30)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """What a process that starts meanwhile finds in its environment."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, make: Make, work: Work) -> None:
    visit_all = make(work)
    while True:
        try:
            steps: int = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        pipe.send(visit_all(work.shortened(steps)))
