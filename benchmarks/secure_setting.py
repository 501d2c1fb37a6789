"""Secure sums in one process: members with seeded secrets, a server, and what it has seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import SecureError
from shepherd.silos.secure import (
    Ed25519Directory,
    Ed25519Identity,
    Member,
    Session,
    SumServer,
    messages,
    primitives,
    shamir,
    survivors_of,
    transcript,
)
from shepherd.silos.secure.member import Phase
from shepherd.silos.secure.messages import Secret
from shepherd.silos.secure.roster import share_numbers

Codes = NDArray[np.int64]
PHASES = (Phase.KEYS, Phase.SHARES, Phase.MASKED, Phase.AGREE, Phase.REVEAL)


def entropy(*seed: object) -> Callable[[int], bytes]:
    """Random bytes that a seed decides; for measurements and tests alone."""
    return random.Random(" ".join(map(str, seed))).randbytes


def names(count: int) -> tuple[str, ...]:
    """Names of this many sites, sorted."""
    return tuple(f"site-{number:03d}" for number in range(count))


def session(count: int, length: int = 4, ring_bits: int = 32, *, attempt: int = 0, round: int = 0) -> Session:
    """A session of sites `site-000` and up."""
    return Session(
        run="0123456789abcdef",
        round=round,
        attempt=f"{attempt:032x}",
        request=f"{round:032x}",
        members=names(count),
        length=length,
        ring_bits=ring_bits,
    )


def identity(name: str) -> Ed25519Identity:
    """The long-term key of a site; the same in every session."""
    return Ed25519Identity(entropy("identity", name)(32))


def directory(members: tuple[str, ...]) -> Ed25519Directory:
    """Who the sites are."""
    return Ed25519Directory({name: identity(name).certificate for name in members})


def random_codes(asked: Session, seed: int, largest: int = 2**20) -> dict[str, Codes]:
    """Codes of each member, uniform from -largest to largest."""
    draws = np.random.default_rng(seed)
    return {name: draws.integers(-largest, largest + 1, asked.length) for name in asked.members}


@dataclass(slots=True, kw_only=True)
class Seen:
    """Every message that the server has had, by phase and member: all of its view."""

    sent: dict[Phase, dict[str, bytes]] = field(default_factory=lambda: {phase: {} for phase in PHASES})
    roster: bytes = b""
    delivered: Mapping[str, bytes] = field(default_factory=dict)
    survivors: bytes = b""
    signatures: bytes = b""


@dataclass(slots=True, kw_only=True)
class Federation:
    """One session's members and server."""

    session: Session
    members: dict[str, Member]
    server: SumServer
    codes: dict[str, Codes]
    seed: object
    """Decides every member's secrets."""
    seen: Seen = field(default_factory=Seen)
    changes: dict[tuple[Phase, str], Callable[[bytes], bytes]] = field(default_factory=dict)
    """(phase, member) -> what a dishonest member makes of its answer."""

    def ask(self, phase: Phase, name: str, *more: object) -> bytes:
        """A member's answer in a phase; the server sees it."""
        member = self.members[name]
        answers: dict[Phase, Callable[..., bytes]] = {
            Phase.KEYS: member.keys,
            Phase.SHARES: member.shares,
            Phase.MASKED: member.masked,
            Phase.AGREE: member.agree,
            Phase.REVEAL: member.reveal,
        }
        answer = self.changes.get((phase, name), bytes)(answers[phase](*more))
        self.seen.sent[phase][name] = answer
        return answer


def federation(
    asked: Session, seed: object = 0, codes: dict[str, Codes] | None = None, min_cohort: int = 1
) -> Federation:
    """Members whose secrets the seed decides, and their server."""
    known = directory(asked.members)
    return Federation(
        session=asked,
        members={
            name: Member(asked, name, identity(name), known, min_cohort, entropy(seed, name))
            for name in asked.members
        },
        server=SumServer(asked, known),
        codes=codes if codes is not None else random_codes(asked, 0),
        seed=seed,
    )


def play(made: Federation, lost: Mapping[str, Phase] | None = None) -> Codes:
    """The whole protocol with an honest server, and members that are gone from a phase on.

    Args:
        lost: member -> the phase in which the server no longer hears of it.

    Raises:
        SecureError: too few are left.
    """
    gone = lost or {}
    server, seen = made.server, made.seen

    def heard(phase: Phase, name: str) -> bool:
        return gone.get(name, Phase.OVER) > phase

    members = [name for name in made.members if heard(Phase.KEYS, name)]
    seen.roster = server.roster({name: made.ask(Phase.KEYS, name) for name in members})
    members = [name for name in members if heard(Phase.SHARES, name) and name not in server.dropped]
    seen.delivered = server.deliveries({name: made.ask(Phase.SHARES, name, seen.roster) for name in members})
    for name in seen.delivered:
        if heard(Phase.MASKED, name):
            server.add(name, made.ask(Phase.MASKED, name, seen.delivered[name], made.codes[name]))
    seen.survivors = server.survivors()
    members = [name for name in survivors_of(seen.survivors) if heard(Phase.AGREE, name)]
    signed = {name: made.ask(Phase.AGREE, name, seen.survivors) for name in members}
    seen.signatures = server.signatures(signed)
    members = [name for name in members if heard(Phase.REVEAL, name)]
    return server.total({name: made.ask(Phase.REVEAL, name, seen.signatures) for name in members})


def total(codes: Mapping[str, Codes], members: tuple[str, ...] | list[str], ring_bits: int) -> Codes:
    """The plain sum of whole numbers in the ring, as signed numbers: what a secure sum must give."""
    exact = [sum(int(codes[name][place]) for name in members) for place in range(len(codes[members[0]]))]
    half = 2 ** (ring_bits - 1)
    return np.array([(value + half) % (2 * half) - half for value in exact], np.int64)


def exposed(made: Federation, bribed: Iterable[str] = ()) -> set[str]:
    """Honest members both of whose secrets the server can compute, which would bare their codes."""
    known = shares_known(made, bribed)
    enough = [dealer for (dealer, _), shares in known.items() if len(shares) >= made.session.threshold]
    return {dealer for dealer in enough if enough.count(dealer) == len(Secret)} - set(bribed)


def shares_known(made: Federation, bribed: Iterable[str] = ()) -> dict[tuple[str, Secret], dict[int, bytes]]:
    """Shares that the server has: those revealed to it, and all that were sent to bribed members.

    Returns:
        (dealer, which secret) -> number -> share.
    """
    digest, numbers = made.session.digest(), share_numbers(made.session)
    found: dict[tuple[str, Secret], dict[int, bytes]] = {}
    for name, message in made.seen.sent[Phase.REVEAL].items():
        for dealer, (which, share) in messages.decode_revealed(digest, message).items():
            found.setdefault((dealer, which), {})[numbers[name]] = share
    keys = messages.decode_roster(digest, made.seen.roster)
    roster = transcript.roster_hash(made.seen.roster)
    for name in bribed:
        private = private_keys(made.seed, name)[1]
        for dealer, message in made.seen.sent[Phase.SHARES].items():
            if dealer == name or dealer not in keys:
                continue
            key = transcript.seal_key(
                primitives.x25519(private, keys[dealer].transport_key), roster, dealer, name
            )
            sealed = messages.decode_shares(digest, message)[name]
            pair = primitives.unseal(key, sealed, transcript.seal_context(roster, dealer, name))
            halves = (pair[: shamir.SHARE_BYTES], pair[shamir.SHARE_BYTES :]) if pair else ()
            for which, share in zip(Secret, halves, strict=False):
                found.setdefault((dealer, which), {})[numbers[name]] = share
    return found


def private_keys(seed: object, name: str) -> tuple[bytes, bytes, bytes]:
    """Private mask key, private transport key and seed of the self-mask of a member with seeded secrets."""
    drawn = entropy(seed, name)
    return drawn(32), drawn(32), drawn(32)


def refusal(attempt: Callable[[], object]) -> str:
    """The sentence with which something was refused; "" if it was not."""
    try:
        attempt()
    except SecureError as error:
        return str(error)
    return ""
