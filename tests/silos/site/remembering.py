"""An algorithm whose clients remember: FedAvg, and each sends the sum of all its changes besides."""

from __future__ import annotations

from dataclasses import replace

from shepherd.algorithms import fedavg
from shepherd.config import Table
from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    ClientInfo,
    Expected,
    LocalResult,
    Payload,
    shapes_of,
)


class Config(Table):
    pass


def build(config: Config) -> Algorithm:
    def remember(memory: Payload, sent: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
        total = Adapter(memory).plus(result.delta) if memory else result.delta
        return total, total

    def expected(broadcast: Broadcast, client: ClientInfo) -> Expected:
        return Expected(delta=shapes_of(broadcast.adapter), extra=shapes_of(broadcast.adapter))

    def correct(name: str, grad, param, broadcast: Broadcast, memory, step):
        return grad + 0.1 * memory[name] if memory else grad

    return replace(fedavg.ALGORITHM, remember=remember, correct=correct, expected=expected)
