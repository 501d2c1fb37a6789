"""Sites that keep an update and mask it, without a trainer: functions from a message to a reply.

All that decides what a sum reveals is the package's own: the server's and the sites' part of a secure sum,
and what a site writes down. Only the training, the network and the certificates are left out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shepherd import plugins
from shepherd.core import Adapter, Failure, Payload, Update
from shepherd.errors import WireError
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Ready, Request, SumRequest
from shepherd.silos.secure import Ed25519Directory, Ed25519Identity
from shepherd.silos.server.site_federation import Until
from shepherd.silos.site.request_checks import RequestRefused
from shepherd.silos.site.secure_sums import SecureSums
from shepherd.silos.site.site_settings import PolicyTable, parse_request
from shepherd.silos.site.site_store import AnsweredRound, Store
from shepherd.transforms.fixed_point import weight_code

PHASES = ("keys", "shares", "masked", "agree", "reveal")
BITS = 10
TABLES: Mapping[str, Any] = {
    "seed": 0,
    "data": {"template": "plain"},
    "federation": {"rounds": 5, "weights": "equal"},
    "tuning": {"max_steps": 1, "batch_size": 8},
    "transforms": [{"name": "fixed_point", "norm": 1.0, "bits": BITS}],
    "secure": {"ring_bits": 32},
}
POLICY = PolicyTable(transforms=("fixed_point", "skellam"), min_cohort=2)


class Killed(BaseException):
    """The end of a process, at this very place."""


def identity(name: str) -> Ed25519Identity:
    return Ed25519Identity(hashlib.sha256(name.encode()).digest())


def directory(names: Sequence[str]) -> Ed25519Directory:
    return Ed25519Directory({name: identity(name).certificate for name in names})


def codes(name: str, round: int, shape: tuple[int, ...], bits: int = BITS) -> np.ndarray[Any, Any]:
    """The whole numbers of a site's update, which nobody else can guess."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {round} {shape}".encode()).digest()[:8], "little")
    most = 2 ** (bits - 1) - 1
    return np.random.default_rng(seed).integers(-most, most + 1, shape)


@dataclass
class Site:
    """One site; a new one with the same home is the process after a restart."""

    name: str
    home: Path
    names: Sequence[str]
    tables: Mapping[str, Any] = field(default_factory=lambda: TABLES)
    policy: PolicyTable = POLICY
    bits: int = BITS
    examples: int = 20
    fault: Callable[[Any], str | None] = lambda asked: None
    """What a message fails with: "" for no answer at all, None for none of it."""

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.store = Store(self.home)
        signer = lambda: (identity(self.name), directory(self.names))  # noqa: E731
        self.sums = SecureSums(self.name, self.store, self.policy, signer)

    def __call__(self, message: bytes) -> bytes | None:
        asked = wire.decode_asked(message)
        fault = self.fault(asked)
        if fault is not None:
            return wire.encode_reply(Failure(client=self.name, reason=fault)) if fault else None
        if isinstance(asked, SumRequest):
            try:
                return wire.encode_reply(self.sums.answer(asked).reply)
            except RequestRefused as refused:
                return wire.encode_reply(Failure(client=self.name, reason=refused.refusal.sentence))
        if asked.kind == "join":
            return wire.encode_reply(
                Ready(
                    client=self.name,
                    examples=self.examples,
                    version=asked.version,
                    min_cohort=self.policy.min_cohort,
                )
            )
        if asked.kind == "score":
            return wire.encode_reply(Failure(client=self.name, reason="it holds no examples out"))
        return wire.encode_reply(self.sums.trained(asked, self.update(asked)))

    def update(self, asked: Request) -> Update:
        """What the site has trained, kept at its home."""
        kept = self.store.answered(asked.run, asked.id)
        if kept is None:
            assert asked.broadcast is not None
            layout = {n: t.shape for n, t in asked.broadcast.adapter.items()}
            delta = {n: codes(self.name, asked.round, shape, self.bits) for n, shape in layout.items()}
            part = plugins.transform(parse_request(self.tables).transforms)
            weight = weight_code(self.examples, part.largest_weight, part.largest_code) if part.adds else 1
            extra = Payload({name: np.array([weight]) for name in part.adds})
            update = Update(
                round=asked.round, delta=Payload(delta), extra=extra, weight=1.0, clients=(self.name,)
            )
            kept = answered(asked, asked.broadcast.adapter, update, self.tables)
            self.store.save(asked.run, kept)
        return kept.update


def answered(asked: Request, adapter: Adapter, update: Update, tables: Mapping[str, Any]) -> AnsweredRound:
    """What a site that has not trained keeps of a visit: its update, and made-up counts."""
    return AnsweredRound(
        round=asked.round,
        id=asked.id,
        update=update,
        start=0,
        position=8,
        different=8,
        examples=20,
        memory=Adapter(),
        moved=1.0,
        adapter=adapter,
        settings=tables,
    )


@dataclass
class Room:
    """A Transport over such sites; what it carries can be seen and stopped."""

    sites: Mapping[str, Callable[[bytes], bytes | None]]
    before: Callable[[Any], None] = lambda asked: None
    """Called with each message before a site gets it; ends the server by raising."""
    away: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Kind and site of each message."""
    seen: list[tuple[str, Any, Any]] = field(default_factory=list)
    """Site, request and reply: all that the server learns."""

    def present(self) -> Sequence[str]:
        return [site for site in self.sites if site not in self.away]

    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        yield from self.ask_each(dict.fromkeys(sites, message), seconds)

    def ask_each(self, messages: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes]]:
        for site, message in messages.items():
            asked = wire.decode_asked(message)
            self.before(asked)
            self.asked.append((asked.kind, site))
            answer = self.sites[site](message)
            if answer is not None:
                with suppress(WireError):
                    self.seen.append((site, asked, wire.decode_reply(answer)))
                yield site, answer

    def ask_until(
        self, message: bytes, sites: Sequence[str], until: Until, keep: bool
    ) -> Iterator[tuple[str, bytes]]:
        for site, answer in self.ask(message, sites, 0.0):
            if time.monotonic() < until.at:
                yield site, answer

    def late(self) -> Iterator[tuple[str, bytes]]:
        return iter(())


def failing(site: str, *kinds: str, reason: str = "") -> Callable[[Any], str | None]:
    """A fault of messages of these kinds."""
    return lambda asked: reason if asked.kind in kinds else None
