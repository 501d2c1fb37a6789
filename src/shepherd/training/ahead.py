"""Prepare the next piece of work in a thread while a GPU is busy with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def ahead(make: Callable[[S], T], items: Sequence[S], device: torch.device) -> Iterator[T]:
    """`make` of each item in order; beside a GPU, of the next one while the caller works on this one.

    On a processor there is nothing to gain, since the caller's work needs its cores.
    """
    if device.type == "cpu":
        yield from map(make, items)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        waiting = [thread.submit(make, item) for item in items[:1]]
        for number in range(len(items)):
            made = waiting.pop().result()
            waiting += [thread.submit(make, item) for item in items[number + 1 : number + 2]]
            yield made
