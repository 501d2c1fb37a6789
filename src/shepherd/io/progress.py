"""Progress of long work: a log line at least every half minute, and a bar in a notebook.

The lines go to the logger "shepherd.io.progress" at level INFO; `logging.basicConfig(level="INFO")` shows
them. At level DEBUG it also gets every start and every step, as a `Stage` or a `Progress` that a display
finds in the record's `args`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from shepherd.visible import shown_line

log = logging.getLogger(__name__)
EVERY_S = 25.0
"""Seconds between two lines about one piece of work; below the promised half minute."""
_of_this_thread = threading.local()


def many(count: int, what: str) -> str:
    """Write a count with its noun.

    >>> many(1, "client"), many(2000, "row")
    ('1 client', '2,000 rows')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def range_of(counts: Collection[int], what: str) -> str:
    """Write the least and the most of several counts with their noun.

    >>> range_of([3, 7, 4], "round"), range_of([1, 1], "step")
    ('3 to 7 rounds', '1 step')
    """
    least, most = min(counts), max(counts)
    return many(most, what) if least == most else f"{least:,} to {many(most, what)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a round. `tokens` and `seconds` are this round's; `loss` is the running mean, in nats."""

    round: int
    rounds: int
    clients_done: int
    clients: int
    tokens: int
    loss: float
    seconds: float
    first: int = 0
    """Number of the first client that is being tuned, from 1; 0 if unknown."""
    last: int = 0
    step: int = 0
    """Current optimiser step, from 1, of the client that is furthest behind; 0 if unknown."""
    steps: int = 0
    round_tokens: int = 0
    """Tokens of the whole round; 0 if unknown."""

    def __str__(self) -> str:
        """`round 2/20: clients 3-5 of 10, step 4 of 12, 1,310 tokens/s, loss 2.53, about 7 min left`"""
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        parts = [
            f"client{'s' * (self.first != self.last)} {span} of {self.clients}"
            if self.first
            else f"{self.clients_done} of {self.clients} clients done"
        ]
        parts += [f"step {self.step} of {self.steps}"] if self.step else []
        if self.tokens and self.seconds > 0:
            parts += [f"{self.tokens / self.seconds:,.0f} tokens/s"]
            parts += [f"loss {self.loss:.2f}"] if self.loss else []  # 0 if unknown
        left = self.left()
        parts += [f"{duration(self.seconds)} so far" if left is None else f"about {roughly(left)} left"]
        return f"round {self.round}/{self.rounds}: {', '.join(parts)}"

    def share(self) -> float:
        """Share of the round that is done, from 0 to 1."""
        if self.round_tokens:
            return min(1.0, self.tokens / self.round_tokens)
        return self.clients_done / self.clients if self.clients else 0.0

    def left(self) -> float | None:
        """Estimated seconds to the end of the last round, if all are like this one; None at its start."""
        if not self.share():
            return None
        return self.seconds / self.share() * (self.rounds - self.round + 1) - self.seconds


@dataclass(slots=True, eq=False)
class Stage:
    """A piece of work in progress: `done` of `total` (0 if unknown)."""

    name: str
    total: int = 0
    done: int = 0
    progress: Progress | None = None
    began: float = field(default_factory=monotonic)
    bar: Any = None

    def advance(self, count: int = 1) -> None:
        """Count `count` more of `total` as done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)

    def at(self, progress: Progress) -> None:
        """Take over the progress of the round that this stage is."""
        self.progress = progress
        log.debug("%s", progress)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {progress.loss:.3f}", refresh=False)
        self.advance(progress.tokens - self.done)

    def line(self, now: float) -> str:
        """Line about the progress at time `now`, on the clock of `began`."""
        seconds = now - self.began
        if self.progress is not None:
            return str(replace(self.progress, seconds=seconds))
        parts = [f"{self.done:,} of {self.total:,}"] if self.total else []
        if 0 < self.done < self.total:
            parts += [f"about {roughly(seconds * (self.total - self.done) / self.done)} left"]
        return f"{self.name}: {', '.join([*parts, f'{duration(seconds)} so far'])}"


@contextmanager
def stage(name: str, total: int = 0) -> Iterator[Stage]:
    """Report on work that may take long: while the block runs, log a line at least every half minute.

    The block calls `advance` when parts of `total` are done. Stages nest: the lines are about the innermost
    one, at the rhythm of the outermost one, so that many short stages in a long one are reported too.
    """
    log.debug("%s", name)
    now = Stage(name=name, total=total)
    with _bar(now), _beating(now):
        yield now


@contextmanager
def _beating(now: Stage) -> Iterator[None]:
    """Make a stage the innermost of this thread; the first of them also starts the thread that logs."""
    stages: list[Stage] = _of_this_thread.__dict__.setdefault("stages", [])
    if stages:
        stages.append(now)
        try:
            yield
        finally:
            if now in stages:  # an abandoned generator ends after the stages around it
                stages.remove(now)
        return
    stages.append(now)
    over = threading.Event()
    beats = threading.Thread(target=beat, args=(stages, over.wait), daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        stages.clear()


def beat(
    stages: Sequence[Stage], wait: Callable[[float], bool], clock: Callable[[], float] = monotonic
) -> None:
    """Log the last of the stages every EVERY_S until `wait(seconds)` returns True: all are over."""
    while not wait(EVERY_S):
        log.info("%s", stages[-1].line(clock()))


@contextmanager
def _bar(now: Stage) -> Iterator[None]:
    """In a notebook, show a progress bar while the stage lasts."""
    if not in_notebook():
        yield
        return
    from tqdm.auto import tqdm  # brings ipywidgets

    with tqdm(desc=shown_line(now.name), total=now.total or None, leave=False) as bar:
        now.bar = bar
        yield


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    interactive = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(interactive).__name__ == "ZMQInteractiveShell"


def duration(seconds: float) -> str:
    """Write seconds in the two largest units.

    >>> [duration(s) for s in (0.42, 7, 161, 3900, 200000)]
    ['0.4 s', '7 s', '2 min 41 s', '1 h 05 min', '2 d 07 h']
    """
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, below, step in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // step:02d} {below}"
    return f"{whole} s"


def roughly(seconds: float) -> str:
    """Write estimated seconds, coarser than `duration`.

    >>> [roughly(s) for s in (7, 100, 161, 3900, 20000)]
    ['7 s', '1 min 40 s', '3 min', '65 min', '5 h 33 min']
    """
    minutes = round(seconds / 60)
    return f"{minutes} min" if 2 < minutes < 120 else duration(seconds)
