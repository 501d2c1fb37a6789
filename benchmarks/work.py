"""The work that both sides of the tuning benchmark do: the same examples in the same optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from shepherd.core import Adapter, seed_for
from shepherd.data import cursor
from shepherd.data.tokens import Tokens
from shepherd.settings import RunSettings
from shepherd.training.tune import predictions

Steps = list[NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One round: each client tunes `start` for `settings.tuning.max_steps` steps; then the mean is taken."""

    settings: RunSettings
    clients: Mapping[str, Tokens]
    start: Adapter

    def steps(self, client: str) -> Steps:
        """The examples of each optimiser step, as the engine's own cursor gives them."""
        tuning = self.settings.tuning
        steps, _ = cursor.visit(
            len(self.clients[client]),
            0,
            max_steps=tuning.max_steps,
            batch_size=tuning.batch_size,
            seed=seed_for(self.settings.seed, "order", client),
        )
        return steps

    def lengths(self) -> list[NDArray[np.int64]]:
        """Tokens of each example, batch by batch."""
        return [data.lengths[step] for name, data in self.clients.items() for step in self.steps(name)]

    @property
    def tokens(self) -> int:
        """Tokens of all the examples of all the steps, without padding."""
        return sum(int(lengths.sum()) for lengths in self.lengths())

    def trained(self, client: str) -> list[int]:
        """Trained tokens of each of the client's steps."""
        counts = predictions(self.clients[client])
        return [int(counts[step].sum()) for step in self.steps(client)]

    def shortened(self, steps: int) -> Work:
        """The same, with fewer steps a visit: for warming up."""
        tuning = self.settings.tuning.model_copy(update={"max_steps": steps})
        settings = self.settings.model_copy(update={"tuning": tuning})
        return Work(settings=settings, clients=self.clients, start=self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One round's time and what came out of it."""

    seconds: float
    adapter: Adapter
    """The mean of the clients' adapters."""
    loss: float
    """Mean over all trained tokens, each scored before the step it was part of."""
    dtype: str
    """Parameters of the frozen base."""
    workers: int = 1
    clients_at_once: int = 1
    micro_batch_tokens: int | None = None
    peak_bytes: int = 0
    """The most that the process and its workers have held at one moment (on CUDA, of the device's memory)."""


def held_bytes(process: psutil.Process) -> int:
    """Memory that a process and its children hold now; mapped files, such as libraries, count once.

    Read from counters: a walk through the pages would slow down who is measured.
    """
    own, mapped = 0, 0
    with suppress(psutil.NoSuchProcess):  # it has just ended
        for each in (process, *process.children(recursive=True)):
            memory = each.memory_info()
            of_files = getattr(memory, "shared", 0)  # Linux alone tells
            own += memory.rss - of_files
            mapped = max(mapped, of_files)
    return own + mapped


def device_bytes(device: torch.device) -> int:
    """The most of a CUDA device's memory that this process has held; 0 on a processor."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
