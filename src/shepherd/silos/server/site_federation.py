"""A federation whose clients are sites over a network: requests in waves, replies in the cohort's order.

Does not depend on FLARE: a `Transport` carries the bytes. A wave bounds the server's memory, since only its
updates are held at once; the cohort's order gives the mean the same bits as in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from shepherd.core import Adapter, Broadcast, ClientInfo, Failure, Update
from shepherd.errors import WireError
from shepherd.rounds.ranks import SiteRanks
from shepherd.settings import SilosTable
from shepherd.silos.protocol import schema, wire
from shepherd.silos.protocol.wire import Asked, Ready, Reply, Request, Scores, SumAnswer, Trained

LEAST_SHORT_DEADLINE_S = 300.0
"""Lower bound of the default deadline for joining and scoring, unless silos.deadline_s is shorter."""
MAX_REPLY_RATIO, MAX_REPLY_EXTRA_BYTES = 4, 2**20
"""Upper bound on a reply's size, as a multiple of the request plus a constant; some algorithms return more
than they receive, and scores are sent by category."""
MAX_EXAMPLES = 100_000_000
"""Largest number of examples that a site may report."""
NOT_CONNECTED = "it is not connected; start `shepherd silos site` there"


class Transport(Protocol):
    """Carries requests to sites and brings their replies."""

    def present(self) -> Sequence[str]:
        """The sites that are connected now."""

    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        """Send a message to these sites, and yield (site, reply) as replies arrive, one a site at most.

        Ends when all have replied, when the others have disconnected, or after `seconds`.
        """

    def ask_each(self, messages: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes]]:
        """Like `ask`, with a message of its own for each site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """The fields that all requests of a run share."""

    run: str
    """The run's id."""
    base: str
    """Digest of the base's files."""
    version: str
    """Version of shepherd-fit at the server."""
    settings: Mapping[str, object]
    """Tables of the run file, from `jobspec.settings_for_site`."""
    deadline_s: float
    """Deadline of a request to train."""
    short_deadline_s: float
    """Deadline of a request to join or score; missing it does not fail the round."""
    max_in_flight: int
    """Sites asked concurrently."""


def short_deadline_s(table: SilosTable) -> float:
    """The deadline for joining and scoring, in seconds."""
    if table.short_deadline_s != "auto":
        return table.short_deadline_s
    return min(table.deadline_s, max(LEAST_SHORT_DEADLINE_S, table.deadline_s / 4))


@dataclass(slots=True, kw_only=True)
class SiteFederation:
    """A Federation whose clients are sites; it asks those that have joined and are connected."""

    transport: Transport
    request_context: RequestContext
    sites: Sequence[str]
    ranks: SiteRanks = field(default_factory=SiteRanks)
    """The ranks that sites may train."""
    sizes_fault: Callable[[Mapping[str, int]], str] = lambda sizes: ""
    """`(site -> its number of examples) -> why the run may not have these sites`; empty if it may."""
    on_reply: Callable[[Reply], None] = lambda reply: None
    """Called with each reply of a round as it is read, before it is checked."""
    joined: dict[str, Ready] = field(default_factory=dict)
    """Each site's last reply to a request to join."""
    unresponsive: set[str] = field(default_factory=set)
    """Sites that did not reply to their last request."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Site -> why it did not join."""

    def clients(self) -> Sequence[ClientInfo]:
        """All sites of the run by name, connected or not, so that cohorts do not depend on who is connected.

        A site that has not joined yet is given the average size, so that selection by size can draw it.
        """
        known = [joined.examples for joined in self.joined.values()]
        usual = max(1, round(sum(known) / len(known))) if known else 1
        return [
            replace(_client_info(name, self.joined.get(name), usual), rank=self._rank(name))
            for name in sorted(self.sites)
        ]

    def fewer(self) -> dict[str, int]:
        """Site -> how many ranks it trains; those that have joined and train fewer than the adapter has."""
        found = {name: self._rank(name) for name in sorted(self.joined)}
        whole = self.ranks.whole or 0
        return {name: rank for name, rank in found.items() if rank is not None and rank < whole}

    def _rank(self, site: str) -> int | None:
        joined = self.joined.get(site)
        return self.ranks.of(site, joined.rank if joined else None)

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Have the cohort train; a site that is absent, late, or replies with nonsense yields a Failure.

        A site of the cohort that has connected since joins first. The request names the number of sites
        asked: those that have joined and are connected.
        """
        for reply in self.train(broadcast, cohort):
            yield reply if isinstance(reply, Update | Failure) else unexpected(reply)

    def train(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Reply]:
        """Like `run`, with each site's reply as it is."""
        late = [site for site in self._connected_sites() if site in cohort and site not in self.joined]
        list(self._join(broadcast.round, late))
        asked, others = self._split_reachable(cohort)
        for reply in self._ask_in_waves(self._train_request(broadcast, len(asked)), cohort, others):
            self.on_reply(reply)
            yield reply

    def train_id(self, broadcast: Broadcast) -> str:
        """The id of the request to train on a broadcast."""
        return self._train_request(broadcast, 0).id

    def _train_request(self, broadcast: Broadcast, cohort: int) -> Request:
        return self._request("train", broadcast.round, broadcast, cohort, self.request_context.deadline_s)

    def join(self, round: int) -> list[Ready | Failure]:
        """Have every connected site load its base and its data."""
        return list(self._join(round, self._connected_sites()))

    def score(self, round: int, adapter: Adapter) -> list[Scores | Failure]:
        """Have every connected site score the adapter on its held-out examples.

        A site that did not reply to its last request is left out until it replies again: a site that hangs
        then costs a round one deadline, not two.
        """
        broadcast = Broadcast(round=round, adapter=adapter, seed=0)
        sites = [
            site for site in self._connected_sites() if site in self.joined and site not in self.unresponsive
        ]
        asked, others = self._split_reachable(sites)
        request = self._request("score", round, broadcast, len(asked), self.request_context.short_deadline_s)
        replies = self._ask_in_waves(request, sites, others)
        return [reply if isinstance(reply, Scores | Failure) else unexpected(reply) for reply in replies]

    def _connected_sites(self) -> list[str]:
        here = set(self.transport.present())
        return [site for site in sorted(self.sites) if site in here]

    def _join(self, round: int, sites: Sequence[str]) -> Iterator[Ready | Failure]:
        request = self._request("join", round, None, len(sites), self.request_context.short_deadline_s)
        for reply in map(self._checked, self._ask_in_waves(request, sites, {})):
            if isinstance(reply, Ready):
                self.joined[reply.client] = reply
                yield reply
            else:
                failure = reply if isinstance(reply, Failure) else unexpected(reply)
                self._refused[failure.client] = failure.reason
                yield failure

    def _checked(self, reply: Reply) -> Reply:
        """Refuse what a site says of itself where the run cannot have it: its rank, or its size."""
        if not isinstance(reply, Ready):
            return reply
        if reply.examples > MAX_EXAMPLES:  # unverified, and it decides selection and weight
            fault = (
                f"it reports {reply.examples:,} examples, and the limit is {MAX_EXAMPLES:,}; check its data"
            )
        elif rank_fault := self.ranks.fault(reply.client, reply.rank):
            fault = f"{rank_fault}; check its policy.max_rank"
        else:
            sizes = {name: joined.examples for name, joined in self.joined.items()}
            fault = self.sizes_fault({**sizes, reply.client: reply.examples})
        return Failure(client=reply.client, reason=fault) if fault else reply

    def _split_reachable(self, sites: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The sites that can be asked, and for each other one the reason."""
        here = set(self.transport.present())
        others = {
            site: self._refused.get(site, "it has not joined") for site in sites if site not in self.joined
        }
        others |= {site: NOT_CONNECTED for site in sites if site not in here}
        return [site for site in sites if site not in others], others

    def _request(
        self, kind: wire.Kind, round: int, broadcast: Broadcast | None, cohort: int, deadline: float
    ) -> Request:
        request_context = self.request_context
        request = Request(
            kind=kind,
            run=request_context.run,
            id="",
            round=round,
            deadline=deadline,
            sent=0.0,
            version=request_context.version,
            cohort=cohort,
            base=request_context.base,
            settings=request_context.settings,
            broadcast=broadcast,
        )
        return replace(request, id=wire.request_id(request))

    def _ask_in_waves(
        self, request: Request, sites: Sequence[str], others: Mapping[str, str]
    ) -> Iterator[Reply]:
        """The reply of each site in order; `others` are not asked, and fail for the reason given."""
        for start in range(0, len(sites), self.request_context.max_in_flight):
            yield from self._ask_wave(
                request, sites[start : start + self.request_context.max_in_flight], others
            )

    def _ask_wave(self, request: Request, wave: Sequence[str], others: Mapping[str, str]) -> Iterator[Reply]:
        # encoded for each wave, since a site compares the time in it with its clock
        message = wire.encode_request(replace(request, sent=time.time()))
        present = set(self.transport.present())
        others = {**{site: NOT_CONNECTED for site in wave if site not in present}, **others}
        here = [site for site in wave if site not in others]
        coming = iter(self.transport.ask(message, here, request.deadline) if here else ())
        came: dict[str, bytes] = {}
        for site in wave:
            if site in others:
                yield Failure(client=site, reason=others[site])
                continue
            while site not in came:
                arrived = next(coming, None)
                if arrived is None:
                    break
                came[arrived[0]] = arrived[1]
                del arrived  # frees the last reply
            # popped, so that only replies that wait for their turn are held
            most = MAX_REPLY_RATIO * len(message) + MAX_REPLY_EXTRA_BYTES
            yield self.read_reply(site, came.pop(site, None), request, most)

    def read_reply(self, site: str, answer: bytes | None, request: Asked, most: int) -> Reply:
        """A site's reply, or a Failure: it did not come, is longer than `most` bytes, or cannot be right."""
        if answer is None:
            self.unresponsive.add(site)
            return Failure(
                client=site,
                reason=f"it did not reply within {request.deadline:g} s; see its log, or raise"
                f" silos.{_deadline_key(request)}",
            )
        self.unresponsive.discard(site)
        try:
            reply = wire.decode_reply(answer, max_bytes=most)
        except WireError as error:
            return Failure(client=site, reason=schema.sentence(f"its reply cannot be read ({error})"))
        if isinstance(reply, Scores) and reply.round != request.round:
            return Failure(client=site, reason=f"its scores are of round {reply.round}, not {request.round}")
        if isinstance(reply, Trained | SumAnswer) and reply.round != request.round:
            return Failure(client=site, reason=f"it replies for round {reply.round}, not {request.round}")
        return _of_itself(reply, site)


def _of_itself(reply: Reply, site: str) -> Reply:
    names = reply.clients if isinstance(reply, Update) else (reply.client,)
    if names == (site,):  # its certificate says who it is
        return reply
    return Failure(client=site, reason=f"it replied in the name of {reply.client!r}; check its kit")


def _deadline_key(request: Asked) -> str:
    return "deadline_s" if request.kind in ("train", "masked") else "short_deadline_s"


def _client_info(name: str, joined: Ready | None, usual: int) -> ClientInfo:
    if joined is None:
        return ClientInfo(name=name, examples=usual)
    return ClientInfo(name=name, examples=joined.examples, min_cohort=joined.min_cohort)


def unexpected(reply: Reply) -> Failure:
    """The failure of a site that sent another kind of reply than it was asked for."""
    return Failure(
        client=reply.client,
        reason="it sent the wrong kind of reply; install the server's version of shepherd-fit there",
    )
