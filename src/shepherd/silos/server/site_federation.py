"""A federation whose clients are sites over a network: requests in waves, replies in the cohort's order.

Does not depend on FLARE: a `Transport` carries the bytes. A wave bounds the server's memory, since only its
updates are held at once; the cohort's order gives the mean the same bits as in one process.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from shepherd.core import Adapter, Broadcast, ClientInfo, Failure, Update, Usable, any_update
from shepherd.core.stragglers import Stragglers
from shepherd.errors import WireError
from shepherd.io import private
from shepherd.io.atomic import disk_errors, write_atomic
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
STILL_AT_WORK = "it was still at work when the round ended; raise stragglers.wait_s"
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

    def ask_until(
        self, message: bytes, sites: Sequence[str], until: Until, keep: bool
    ) -> Iterator[tuple[str, bytes]]:
        """Like `ask`, to an end that the caller may bring forward.

        Args:
            keep: whether a site that has not replied by then may do so later; see `late`.
        """

    def late(self) -> Iterator[tuple[str, bytes]]:
        """The replies that have come since to requests that were kept; does not wait."""


@dataclass(slots=True)
class Until:
    """When to stop waiting, on the monotonic clock."""

    at: float
    """Seconds; it may be brought forward while somebody waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """A request whose reply is late, and still welcome."""

    request: Request
    """Without its broadcast."""
    most: int
    """Longest reply, in bytes."""
    until: float
    """The end of its deadline, on the monotonic clock."""


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
    stragglers: Stragglers | None = None
    """How long a round waits for its sites; None: for all of them, until their deadline."""
    late_folder: Path | None = None
    """Folder of late updates that a round has taken, until it is finished."""
    joined: dict[str, Ready] = field(default_factory=dict)
    """Each site's last reply to a request to join."""
    unresponsive: set[str] = field(default_factory=set)
    """Sites that did not reply to their last request."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Site -> why it did not join."""
    _at_work: dict[str, Awaited] = field(default_factory=dict)
    """Site -> the request that it has yet to reply to, where late updates are carried."""
    _came: dict[str, bytes] = field(default_factory=dict)
    """Site -> the late reply that an earlier attempt at this round had got."""

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
        return self.run_early(broadcast, cohort, any_update)

    def run_early(
        self, broadcast: Broadcast, cohort: Sequence[str], usable: Usable
    ) -> Iterator[Update | Failure]:
        """Like `run`; `usable` says which updates count towards those that [stragglers] waits for."""
        asked, others = self.reach(broadcast.round, cohort)
        for reply in self.train(broadcast, cohort, others, len(asked), usable):
            yield reply if isinstance(reply, Update | Failure) else unexpected(reply)

    def reach(self, round: int, cohort: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The sites of the cohort that can be asked, and for each other one the reason.

        One that has connected since joins first.
        """
        late = [site for site in self._connected_sites() if site in cohort and site not in self.joined]
        list(self._join(round, late))
        return self._split_reachable(cohort)

    def train(
        self,
        broadcast: Broadcast,
        cohort: Sequence[str],
        others: Mapping[str, str],
        named: int,
        usable: Usable = any_update,
    ) -> Iterator[Reply]:
        """Like `run_early`, with each site's reply as it is.

        Args:
            others: sites that are not asked, with the reason, as `reach` gives them.
            named: number of sites that the request names.
        """
        request = self._train_request(broadcast, named)
        replies = (
            self._ask_in_waves(request, cohort, others)
            if self.stragglers is None
            else self._ask_not_all(self.stragglers, request, cohort, others, usable)
        )
        for reply in replies:
            self.on_reply(reply)
            yield reply

    def at_work(self, round: int) -> dict[str, int]:
        """Sites that are not asked in a round, since an update of theirs is yet to come -> its round."""
        return {site: each.request.round for site, each in sorted(self._at_work.items())}

    def restore(self, round: int) -> None:
        """Find the late updates that an earlier job had got in this round before it died."""
        if self.late_folder is None or self.stragglers is None or not self.stragglers.carry:
            return
        self._sweep(round)
        for path in sorted(self._late_of(round).glob("*.reply")):
            answer = path.read_bytes()
            reply = wire.decode_reply(answer, max_bytes=len(answer))
            if isinstance(reply, Update) and reply.client in self.sites and reply.round < round:
                self._came[reply.client] = answer
                request = self._request("train", reply.round, None, 0, self.request_context.deadline_s)
                self._at_work[reply.client] = Awaited(request=request, most=len(answer), until=math.inf)

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

    def _ask_not_all(
        self,
        stragglers: Stragglers,
        request: Request,
        cohort: Sequence[str],
        others: Mapping[str, str],
        usable: Usable,
    ) -> Iterator[Reply]:
        """The replies that come in time, in the cohort's order, then late ones to earlier requests.

        All sites are asked at once. The round waits for as many as the min_cohort of any of them, too.
        """
        began = time.monotonic()
        message = wire.encode_request(replace(request, sent=time.time()))
        here = [site for site in cohort if site not in others]
        most = MAX_REPLY_RATIO * len(message) + MAX_REPLY_EXTRA_BYTES
        owners = [self.joined[site].min_cohort for site in here]
        least = max([stragglers.min_updates, *(fewest for fewest in owners if fewest <= len(here))])
        until, found, counted = Until(began + request.deadline), dict[str, Reply](), 0
        coming = self.transport.ask_until(message, here, until, stragglers.carry) if here else ()
        for site, answer in coming:
            found[site] = self.read_reply(site, answer, request, most)
            del answer
            counted += _counts(found[site], usable)
            if counted == least:
                until.at = min(until.at, time.monotonic() + stragglers.wait_s)
        present = set(self.transport.present())
        awaited = Awaited(request=replace(request, broadcast=None), most=most, until=began + request.deadline)
        for site in cohort:
            if site in found:
                yield found.pop(site)
            elif site in others or site not in present:
                yield Failure(client=site, reason=others.get(site, NOT_CONNECTED))
            elif counted < least:
                yield self.read_reply(site, None, request, most)
            else:
                yield self._left_at_work(site, awaited, stragglers.carry)
        if stragglers.carry:
            yield from self._late_replies(request.round, present)

    def _left_at_work(self, site: str, awaited: Awaited, carry: bool) -> Failure:
        """The failure of a site without which a round ended; it is awaited where late updates are carried."""
        self.unresponsive.add(site)  # it would not score before it is done
        if carry:
            self._at_work[site] = awaited
        return Failure(client=site, reason=STILL_AT_WORK, late=True)

    def _late_replies(self, round: int, present: Collection[str]) -> Iterator[Reply]:
        """Replies to requests of earlier rounds, and a Failure for each that will not come any more."""
        came = {**self._came, **dict(self.transport.late())}
        self._came = {}
        for site, awaited in sorted(self._at_work.items()):
            if awaited.request.round == round:
                continue
            if site in came:
                self._keep_late(round, site, came[site])
                yield self.read_reply(site, came.pop(site), awaited.request, awaited.most)
            elif site not in present:
                yield Failure(client=site, reason=NOT_CONNECTED)
            elif time.monotonic() > awaited.until:
                yield self.read_reply(site, None, awaited.request, awaited.most)
            else:
                continue
            del self._at_work[site]

    def _keep_late(self, round: int, site: str, answer: bytes) -> None:
        """Keep a late reply that a round takes, until the round is finished."""
        if self.late_folder is not None:
            self._sweep(round)
            folder = self._late_of(round)
            with disk_errors(folder):
                private.make(folder.parent)
                private.make(folder)
            write_atomic(folder / f"{sorted(self.sites).index(site)}.reply", answer)

    def _late_of(self, round: int) -> Path:
        assert self.late_folder is not None
        return self.late_folder / f"round-{round + 1:05d}"

    def _sweep(self, round: int) -> None:
        """Delete what other rounds have kept: they are finished, or lost."""
        assert self.late_folder is not None
        with disk_errors(self.late_folder):
            for folder in self.late_folder.glob("round-*"):
                if folder != self._late_of(round):
                    shutil.rmtree(folder)

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


def _counts(reply: Reply, usable: Usable) -> bool:
    """Whether a reply is one of those that a round waits for; of a sum, no single update is seen."""
    return isinstance(reply, Trained) or (isinstance(reply, Update) and usable(reply))


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
