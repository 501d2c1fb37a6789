"""An algorithm whose clients remember: FedAvg, and each sends the sum of all its changes besides."""

from __future__ import annotations

from shepherd.algorithms import fedavg
from shepherd.config import Table
from shepherd.core import Adapter, Algorithm, Broadcast


class Config(Table):
    pass


def build(config: Config) -> Algorithm:
    def remember(memory: Adapter, sent: Broadcast, delta: Adapter, steps: int) -> tuple[Adapter, Adapter]:
        total = memory.plus(delta) if memory else delta
        return total, total

    def correct(name: str, grad, param, broadcast: Broadcast, memory):
        return grad + 0.1 * memory[name] if memory else grad

    return fedavg.ALGORITHM._replace(remember=remember, correct=correct)
