"""A federation of quadratic clients in numpy: client k pulls every tensor towards a target of its own.

f_k(w) = h_k ||w - target_k||^2 / 2, where h_k is 1 unless `curvature` says otherwise, with seeded gradient
noise, a few steps of gradient descent a visit. It goes through `trainable`, `correct`, `remember` and the
transform as the real trainer does: parameters stacked (K, ...), here with K = `stack` clients at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from shepherd import plugins
from shepherd.aggregations import mean
from shepherd.algorithms import fedavg
from shepherd.config import PartTable
from shepherd.core import (
    Adapter,
    Aggregation,
    Algorithm,
    Broadcast,
    ClientInfo,
    Draw,
    Failure,
    LocalResult,
    Method,
    Payload,
    Seeded,
    Selection,
    ServerOptimiser,
    Step,
    Transform,
    Update,
    chain,
    corner,
    of_rank,
    seed_for,
)
from shepherd.core.cores import bases_of, shrunk
from shepherd.core.factor_gap import pairs
from shepherd.core.payload import under
from shepherd.federation.clients import OF_TRANSFORM, of_algorithm
from shepherd.server_optimisers import sgd

SHAPES = {
    "layers.0.q_proj.lora_A.weight": (2, 5),
    "layers.0.q_proj.lora_B.weight": (3, 2),
    "layers.0.v_proj.lora_A.weight": (2, 4),
    "layers.0.v_proj.lora_B.weight": (6, 2),
}


def chosen(name: str, **keys: float) -> Draw:
    """The draw of a selection of the package."""
    selection: Selection = plugins.built(plugins.SELECTION, PartTable(name=name, **keys))
    return selection.cohort


def drawn(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, scale: float = 1.0) -> Adapter:
    """An adapter of normal draws."""
    rng = np.random.default_rng(seed)
    return Adapter({name: scale * rng.standard_normal(shapes[name]) for name in sorted(shapes)})


def method(
    algorithm: Algorithm = fedavg.ALGORITHM,
    aggregation: Aggregation = mean.AGGREGATION,
    server: ServerOptimiser | None = None,
    transform: Transform | None = None,
) -> Method:
    """A method that is FedAvg but for what is given."""
    return Method(
        algorithm=algorithm,
        aggregation=aggregation,
        server=server or sgd.build(sgd.Config()),
        transform=transform or chain(),
    )


def update_of(client: str, seed: int, weight: float = 1.0, round: int = 0) -> Update:
    """An update of normal draws."""
    return Update(round=round, clients=(client,), delta=drawn(seed), weight=weight)


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
        own_steps: Mapping[str, int] | None = None,
        curvature: Mapping[str, float] | None = None,
        rank: int | None = None,
    ) -> None:
        self.algorithm, self.transform = algorithm, transform or chain()
        self.rank = rank
        self.infos = [ClientInfo(name=f"c{k}", examples=k + 1, rank=rank) for k in range(clients)]
        self.targets = {info.name: drawn(100 + k) for k, info in enumerate(self.infos)}
        self.memories: dict[str, Payload] = {}
        self.steps, self.rate, self.noise, self.stack = steps, rate, noise, stack
        self.own_steps, self.curvature = own_steps or {}, curvature or {}

    def clients(self) -> Sequence[ClientInfo]:
        return self.infos

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        for first in range(0, len(cohort), self.stack):
            yield from self._visit(broadcast, cohort[first : first + self.stack])

    def root(self, broadcast: Broadcast) -> Payload:
        """The change of a server that has examples like the first client's."""
        alone = self.again()
        alone.transform = chain()
        (update,) = alone.run(replace(broadcast, transforms=()), [self.infos[0].name])
        assert isinstance(update, Update)
        return update.delta

    def _visit(self, broadcast: Broadcast, names: Sequence[str]) -> Iterator[Update]:
        tensors = [n for n in broadcast.adapter if self.algorithm.trainable(n, broadcast.round)]
        bases = bases_of(self.algorithm, broadcast.adapter, broadcast.round)
        kept = [of_algorithm(self.memories.get(name, Payload())) for name in names]
        known = next((one for one in kept if one), Payload())
        memory = {n: np.stack([one.get(n, np.zeros_like(known[n])) for one in kept]) for n in known}
        starts = [
            self.algorithm.start(broadcast, one, ClientInfo(name=name, examples=1))
            for name, one in zip(names, kept, strict=True)
        ]
        params = {n: np.stack([start[n] for start in starts]) for n in tensors}  # (K, ...)
        counts = [self.own_steps.get(name, self.steps) for name in names]
        for step in range(max(counts)):
            going = [step < count for count in counts]
            rates = np.array([self.rate * now for now in going], np.float32)[:, None, None]
            for n in tensors:
                rows = [{name: stack[row] for name, stack in params.items()} for row in range(len(names))]
                grad = np.stack(
                    [self._grad(broadcast, k, n, step, row) for k, row in zip(names, rows, strict=True)]
                )
                if self.algorithm.correct is not None:
                    at = Step(index=step, rates=rates)
                    grad = self.algorithm.correct(n, grad, params[n], broadcast, memory, at)
                if n in bases:  # a step on the core
                    grad = (bases[n] @ (bases[n].T @ grad)).astype(np.float32)
                trained = (len(names), *self._trained(broadcast, n, params[n].shape[1:]))
                corner(params[n], trained)[...] -= rates * corner(grad, trained)
        for row, name in enumerate(names):
            # no name for the delta here: it would keep one update alive (law 5)
            local = {
                n: corner(params[n][row], self._trained(broadcast, n, params[n].shape[1:])) for n in tensors
            }
            yield self._sent(broadcast, name, starts[row], local)

    def _trained(self, broadcast: Broadcast, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The part of a factor that is trained: all but the ranks that the server keeps in addition."""
        if self.rank is not None:
            return of_rank(name, shape, self.rank)
        return SHAPES[name] if broadcast.adapter[name].shape != SHAPES[name] else shape

    def again(self) -> Quadratic:
        """The same clients before their first visit."""
        made = {"clients": len(self.infos), "steps": self.steps, "rate": self.rate, "noise": self.noise}
        own = {"own_steps": self.own_steps, "curvature": self.curvature, "rank": self.rank}
        return type(self)(self.algorithm, self.transform, stack=self.stack, **made, **own)

    def distance(self, adapter: Adapter) -> float:
        """The sum over clients of the distance to their targets."""
        return sum(adapter.plus(target, -1.0).norm() for target in self.targets.values())

    def _grad(
        self, broadcast: Broadcast, client: str, name: str, step: int, params: Mapping[str, np.ndarray]
    ):
        param, target = params[name], self.targets[client][name]
        grad = param.copy()
        grad[tuple(map(slice, target.shape))] -= target  # zeros beyond it
        grad *= np.float32(self.curvature.get(client, 1.0))
        return grad + self._noise(broadcast, client, name, step, params)

    def _noise(self, broadcast, client, name, step, params):
        if not self.noise:
            return 0.0
        rng = np.random.default_rng(seed_for(broadcast.seed, client, name, step))
        return np.float32(self.noise) * rng.standard_normal(params[name].shape, dtype=np.float32)

    def _sent(
        self, broadcast: Broadcast, client: str, start: Adapter, local: Mapping[str, np.ndarray]
    ) -> Update:
        shared = [n for n in local if self.algorithm.shared(n, broadcast.round)]
        sent = {n: broadcast.adapter[n] for n in shared}
        delta = Adapter({n: corner(local[n], t.shape) - corner(t, local[n].shape) for n, t in sent.items()})
        delta = shrunk(bases_of(self.algorithm, broadcast.adapter, broadcast.round), delta)
        memory = self.memories.get(client, Payload())
        steps = self.own_steps.get(client, self.steps)
        result = LocalResult(start=start, local=Adapter(local), steps=steps, rate_sum=steps * self.rate)
        own, extra = self.algorithm.remember(of_algorithm(memory), broadcast, result)
        weight = float(next(info.examples for info in self.infos if info.name == client))
        update = Update(round=broadcast.round, clients=(client,), delta=delta, weight=weight, extra=extra)
        update = replace(update, metrics={"loss": weight})
        draws, before = Seeded(seed_for(broadcast.seed, client)), Payload(under(OF_TRANSFORM, memory))
        sent, after = self.transform.at_client(update, broadcast.transforms, draws, broadcast, before)
        self.memories[client] = Payload({**own, **{OF_TRANSFORM + name: t for name, t in after.items()}})
        return sent


class InProducts(Quadratic):
    """Clients that pull each product BA, frozen ranks included, towards the product of their targets."""

    def distance(self, adapter: Adapter) -> float:
        """The sum over clients and modules of the distances to the targets."""
        return sum(
            float(np.linalg.norm(adapter[pair.b] @ adapter[pair.a] - target[pair.b] @ target[pair.a]))
            for target in self.targets.values()
            for pair in pairs(adapter)
        )

    def _grad(self, broadcast, client, name, step, params):
        pair = next(pair for pair in pairs(broadcast.adapter) if name in pair)
        a, b = (params.get(factor, broadcast.adapter[factor]) for factor in pair)
        frozen = broadcast.adapter[pair.b][:, len(a) :] @ broadcast.adapter[pair.a][len(a) :]
        target = self.targets[client]
        over = b @ a + frozen - target[pair.b] @ target[pair.a]
        grad = b.T @ over if name == pair.a else over @ a.T
        return grad + self._noise(broadcast, client, name, step, params)
