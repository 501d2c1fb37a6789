"""Clients that are sites behind a network: requests go out in waves, answers come in the cohort's order.

Knows no engine: a `Transport` carries the bytes. A wave bounds the server's memory, since at most so many
updates are held; the cohort's order makes the mean the same bits as in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from shepherd.core import Adapter, Broadcast, ClientInfo, Failure, Update
from shepherd.errors import WireError
from shepherd.settings import SilosTable
from shepherd.silos.protocol import schema, wire
from shepherd.silos.protocol.wire import Joined, Request, Scores

LEAST_SHORT_DEADLINE_S = 300.0
"""For a site to join or to score, where the run file leaves it open and the deadline is no shorter."""
MAX_REPLY_RATIO, MAX_REPLY_EXTRA_BYTES = 4, 2**20
"""Upper bound on a reply's size, as a multiple of the request plus a constant; some algorithms return more
than they receive, and scores are sent by category."""
MAX_EXAMPLES = 100_000_000
"""That a site may say it holds."""
AWAY = "it is not connected; start `shepherd silos site` there"

Reply = Update | Failure | Joined | Scores
Text = Callable[[str], None]


class Transport(Protocol):
    """What carries requests to sites and answers back."""

    def present(self) -> Sequence[str]:
        """The sites that can be asked now."""

    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        """Send to each of the sites; yield (site, answer) as they come, each site at most once.

        Ends when all have answered, when those that have not are gone, or after `seconds`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """What every request of a run says, whoever is asked."""

    run: str
    base: str
    """Digest of the base."""
    version: str
    settings: Mapping[str, object]
    """The tables of the run file that travel."""
    deadline_s: float
    """For an update."""
    short_deadline_s: float
    """To join or to score: a round does without, and a site keeps what it has loaded by then."""
    max_in_flight: int
    """Sites asked at once."""


def short_deadline_s(table: SilosTable) -> float:
    """Seconds in which a site has to join or to score."""
    if table.short_deadline_s != "auto":
        return table.short_deadline_s
    return min(table.deadline_s, max(LEAST_SHORT_DEADLINE_S, table.deadline_s / 4))


@dataclass(slots=True, kw_only=True)
class Silos:
    """A Federation whose clients are sites; it asks those that have joined and are there."""

    post: Transport
    terms: RequestContext
    sites: Sequence[str]
    on_reply: Callable[[Reply], None] = lambda reply: None
    """Hears every answer of a round as it is taken; none of it is checked yet."""
    joined: dict[str, Joined] = field(default_factory=dict)
    """What each site said of itself."""
    silent: set[str] = field(default_factory=set)
    """Sites that gave no answer when they were asked last."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Why a site did not join."""

    def clients(self) -> Sequence[ClientInfo]:
        """Every site of the run, by name, also those that are away: a run's cohorts must not depend on it.

        One that has not joined yet counts as an average one, so that it may still be drawn by its size.
        """
        known = [joined.examples for joined in self.joined.values()]
        usual = max(1, round(sum(known) / len(known))) if known else 1
        return [_info(name, self.joined.get(name), usual) for name in sorted(self.sites)]

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Have the cohort train; a site that is away, late, or answers nonsense is a Failure.

        Who comes late joins first. A site is told how many are asked: sites that joined and are there.
        """
        late = [site for site in self._here() if site in cohort and site not in self.joined]
        list(self._join(broadcast.round, late))
        asked, others = self._members(cohort)
        request = self._request("train", broadcast.round, broadcast, len(asked), self.terms.deadline_s)
        for reply in self._asked(request, cohort, others):
            self.on_reply(reply)
            yield reply if isinstance(reply, Update | Failure) else _unexpected(reply)

    def join(self, round: int) -> list[Joined | Failure]:
        """Have every site that is there load its base and its data."""
        return list(self._join(round, self._here()))

    def score(self, round: int, adapter: Adapter) -> list[Scores | Failure]:
        """Have every site that is there score the adapter on the examples that it holds out.

        One that gave no answer last is left out until it answers again: a site that hangs costs a round
        its deadline, and not another one for its score.
        """
        broadcast = Broadcast(round=round, adapter=adapter, seed=0)
        sites = [site for site in self._here() if site in self.joined and site not in self.silent]
        asked, others = self._members(sites)
        request = self._request("score", round, broadcast, len(asked), self.terms.short_deadline_s)
        replies = self._asked(request, sites, others)
        return [reply if isinstance(reply, Scores | Failure) else _unexpected(reply) for reply in replies]

    def _here(self) -> list[str]:
        here = set(self.post.present())
        return [site for site in sorted(self.sites) if site in here]

    def _join(self, round: int, sites: Sequence[str]) -> Iterator[Joined | Failure]:
        request = self._request("join", round, None, len(sites), self.terms.short_deadline_s)
        for reply in map(_of_a_size, self._asked(request, sites, {})):
            if isinstance(reply, Joined):
                self.joined[reply.client] = reply
                yield reply
            else:
                failure = reply if isinstance(reply, Failure) else _unexpected(reply)
                self._refused[failure.client] = failure.reason
                yield failure

    def _members(self, sites: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Of these sites those that can be asked, and of each other one why it cannot."""
        here = set(self.post.present())
        others = {
            site: self._refused.get(site, "it has not joined") for site in sites if site not in self.joined
        }
        others |= {site: AWAY for site in sites if site not in here}
        return [site for site in sites if site not in others], others

    def _request(
        self, kind: wire.Kind, round: int, broadcast: Broadcast | None, cohort: int, deadline: float
    ) -> Request:
        terms = self.terms
        request = Request(
            kind=kind,
            run=terms.run,
            id="",
            round=round,
            deadline=deadline,
            sent=0.0,
            version=terms.version,
            cohort=cohort,
            base=terms.base,
            settings=terms.settings,
            broadcast=broadcast,
        )
        return replace(request, id=wire.request_id(request))

    def _asked(self, request: Request, sites: Sequence[str], others: Mapping[str, str]) -> Iterator[Reply]:
        """The answer of each site in order; `others` are not asked, and fail for that reason."""
        for start in range(0, len(sites), self.terms.max_in_flight):
            yield from self._wave(request, sites[start : start + self.terms.max_in_flight], others)

    def _wave(self, request: Request, wave: Sequence[str], others: Mapping[str, str]) -> Iterator[Reply]:
        # encoded for each wave: the time in it is what a site compares its clock with
        message = wire.encode_request(replace(request, sent=time.time()))
        present = set(self.post.present())
        others = {**{site: AWAY for site in wave if site not in present}, **others}
        here = [site for site in wave if site not in others]
        coming = iter(self.post.ask(message, here, request.deadline) if here else ())
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
                del arrived  # else the last answer would wait here as well
            # popped, so that no more than the answers that wait for their turn are held
            yield self._read(site, came.pop(site, None), request, len(message))

    def _read(self, site: str, answer: bytes | None, request: Request, asked: int) -> Reply:
        if answer is None:
            self.silent.add(site)
            return Failure(
                client=site,
                reason=f"it gave no answer within {request.deadline:g} s; see its log, or raise"
                f" silos.{_deadline_key(request)}",
            )
        self.silent.discard(site)
        try:
            reply = wire.decode_reply(answer, most_bytes=MAX_REPLY_RATIO * asked + MAX_REPLY_EXTRA_BYTES)
        except WireError as error:
            return Failure(client=site, reason=schema.sentence(f"its answer cannot be read ({error})"))
        if isinstance(reply, Scores) and reply.round != request.round:
            return Failure(client=site, reason=f"its scores are of round {reply.round}, not {request.round}")
        if (reply.clients if isinstance(reply, Update) else (reply.client,)) != (
            site,
        ):  # who it is, the certificate says; an answer cannot
            return Failure(client=site, reason=f"it answered in the name of {reply.client!r}; check its kit")
        return reply


def _deadline_key(request: Request) -> str:
    return "deadline_s" if request.kind == "train" else "short_deadline_s"


def _info(name: str, joined: Joined | None, usual: int) -> ClientInfo:
    if joined is None:
        return ClientInfo(name=name, examples=usual)
    return ClientInfo(name=name, examples=joined.examples, min_cohort=joined.min_cohort)


def _of_a_size(reply: Reply) -> Reply:
    """A size is a site's own word, and decides how often it is drawn and may decide what it counts for."""
    if isinstance(reply, Joined) and reply.examples > MAX_EXAMPLES:
        return Failure(
            client=reply.client,
            reason=f"it says that it holds {reply.examples:,} examples, and {MAX_EXAMPLES:,} is the most that"
            " is believed; check its data",
        )
    return reply


def _unexpected(reply: Reply) -> Failure:
    return Failure(client=reply.client, reason="it answered another question; install the server's version")
