"""A federation of quadratic clients in numpy: client k pulls every tensor towards a target of its own.

f_k(w) = ||w - target_k||^2 / 2, with seeded gradient noise, a few steps of gradient descent a visit. It
goes through `trainable`, `correct`, `remember` and the transform as the real trainer does: parameters
stacked (K, ...), here with K = `stack` clients at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    ClientInfo,
    Failure,
    Transform,
    Update,
    chain,
    seed_for,
)

SHAPES = {
    "layers.0.q_proj.lora_A.weight": (2, 5),
    "layers.0.q_proj.lora_B.weight": (3, 2),
    "layers.0.v_proj.lora_A.weight": (2, 4),
    "layers.0.v_proj.lora_B.weight": (6, 2),
}


def drawn(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, scale: float = 1.0) -> Adapter:
    """An adapter of normal draws."""
    rng = np.random.default_rng(seed)
    return Adapter({name: scale * rng.standard_normal(shapes[name]) for name in sorted(shapes)})


def update_of(client: str, seed: int, weight: float = 1.0, round: int = 0) -> Update:
    """An update of normal draws."""
    return Update(round=round, client=client, delta=drawn(seed), weight=weight)


def bits(adapter: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """What must be equal for two adapters to have the same bits."""
    return {name: tensor.tobytes() for name, tensor in adapter.items()}


class Quadratic:
    """A `Federation`; `memories` is what the clients remember."""

    def __init__(
        self,
        algorithm: Algorithm,
        transform: Transform | None = None,
        clients: int = 4,
        *,
        steps: int = 3,
        rate: float = 0.1,
        noise: float = 0.01,
        stack: int = 1,
    ) -> None:
        self.algorithm, self.transform = algorithm, transform or chain()
        self.infos = [ClientInfo(name=f"c{k}", examples=k + 1) for k in range(clients)]
        self.targets = {info.name: drawn(100 + k) for k, info in enumerate(self.infos)}
        self.memories: dict[str, Adapter] = {}
        self.steps, self.rate, self.noise, self.stack = steps, rate, noise, stack

    def clients(self) -> Sequence[ClientInfo]:
        return self.infos

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        for first in range(0, len(cohort), self.stack):
            yield from self._visit(broadcast, cohort[first : first + self.stack])

    def _visit(self, broadcast: Broadcast, names: Sequence[str]) -> Iterator[Update]:
        tensors = [n for n in broadcast.adapter if self.algorithm.trainable(n, broadcast.round)]
        kept = [self.memories.get(name, Adapter()) for name in names]
        memory = {n: np.stack([one[n] for one in kept]) for n in (kept[0] if kept else ())}
        params = {n: np.stack([broadcast.adapter[n]] * len(names)) for n in tensors}  # (K, ...)
        for step in range(self.steps):
            for n in tensors:
                grad = np.stack(
                    [self._grad(broadcast, k, n, step, p) for k, p in zip(names, params[n], strict=True)]
                )
                grad = self.algorithm.correct(n, grad, params[n], broadcast, memory)
                params[n] = params[n] - np.float32(self.rate) * grad
        for row, name in enumerate(names):
            # no name for the delta here: it would keep one update alive (law 5)
            yield self._sent(broadcast, name, {n: params[n][row] for n in tensors})

    def _grad(self, broadcast: Broadcast, client: str, name: str, step: int, param: np.ndarray):
        rng = np.random.default_rng(seed_for(broadcast.seed, client, name, step))
        noise = np.float32(self.noise) * rng.standard_normal(param.shape, dtype=np.float32)
        return param - self.targets[client][name] + noise

    def _sent(self, broadcast: Broadcast, client: str, local: Mapping[str, np.ndarray]) -> Update:
        delta = Adapter({n: tensor - broadcast.adapter[n] for n, tensor in local.items()})
        memory = self.memories.get(client, Adapter())
        self.memories[client], extra = self.algorithm.remember(memory, broadcast, delta, self.steps)
        weight = float(next(info.examples for info in self.infos if info.name == client))
        update = Update(round=broadcast.round, client=client, delta=delta, weight=weight, extra=extra)
        update = replace(update, metrics={"loss": weight})
        return self.transform.on_client(update, broadcast.transforms, seed_for(broadcast.seed, client))
