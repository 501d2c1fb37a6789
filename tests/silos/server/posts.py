"""Posts without a network: sites are functions from a request to an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shepherd.core import Adapter, Failure, Update, corner, of_rank
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Ready, Request, Scores
from shepherd.silos.server.site_federation import Until

Site = Callable[[Request], bytes | None]


@dataclass
class Letters:
    """A Post that answers at once, in an order of its own; None is a site that gives no answer."""

    sites: Mapping[str, Site]
    away: set[str] = field(default_factory=set)
    order: Callable[[Sequence[str]], Sequence[str]] = lambda sites: sites
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    slow: dict[str, int] = field(default_factory=dict)
    """Site -> how many rounds late its updates are."""
    on_way: list[tuple[int, str, bytes]] = field(default_factory=list)

    def present(self) -> Sequence[str]:
        return [site for site in self.sites if site not in self.away]

    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        request = wire.decode_request(message)
        self.asked.append((request.kind, tuple(sites)))
        self.requests.append(request)
        for site in self.order(sites):
            answer = self.sites[site](request)
            if answer is not None:
                yield site, answer

    def ask_until(
        self, message: bytes, sites: Sequence[str], until: Until, keep: bool
    ) -> Iterator[tuple[str, bytes]]:
        self.round = wire.decode_request(message).round
        for site, answer in self.ask(message, sites, 0.0):
            if site not in self.slow:
                yield site, answer
            elif keep:
                self.on_way.append((self.round + self.slow[site], site, answer))

    def late(self) -> Iterator[tuple[str, bytes]]:
        came = [each for each in self.on_way if each[0] <= self.round]
        self.on_way = [each for each in self.on_way if each not in came]
        yield from ((site, answer) for _, site, answer in came)

    def ask_each(self, messages: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes]]:
        for site, message in messages.items():
            yield from self.ask(message, [site], seconds)


def honest(
    name: str,
    step: float = 1.0,
    weight: float = 1.0,
    examples: int = 10,
    min_cohort: int = 1,
    rank: int | None = None,
) -> Site:
    """Answers every kind of request; trains by adding `step` to every number of its ranks."""

    def site(request: Request) -> bytes:
        if request.kind == "join":
            return wire.encode_reply(replace(joined(name, request, examples, min_cohort), rank=rank))
        if request.kind == "score":
            categories = {"qa": (2.0 * step, 4), name: (3.0, 1)}
            return wire.encode_reply(Scores(client=name, round=request.round, categories=categories))
        assert request.broadcast is not None
        made = update(request, name, step, weight)
        cut = {key: corner(t, of_rank(key, t.shape, rank)) for key, t in made.delta.items()}
        return wire.encode_reply(replace(made, delta=Adapter(cut)))

    return site


def joined(name: str, request: Request, examples: int = 10, min_cohort: int = 1) -> Ready:
    return Ready(client=name, examples=examples, min_cohort=min_cohort, version=request.version)


def update(request: Request, name: str, step: float, weight: float = 1.0) -> Update:
    assert request.broadcast is not None
    delta = {key: np.full_like(tensor, step) for key, tensor in request.broadcast.adapter.items()}
    metrics = {"loss": step, "examples": 4.0, "tokens": 8.0, "trained_tokens": 2.0, "steps": 1.0}
    return Update(round=request.round, clients=(name,), delta=Adapter(delta), weight=weight, metrics=metrics)


def failing(name: str, reason: str = "out of memory") -> Site:
    return lambda request: wire.encode_reply(Failure(client=name, reason=reason))


def silent(request: Request) -> None:
    return None
