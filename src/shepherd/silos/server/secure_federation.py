"""A federation that merges: its sites mask their updates, and the server learns their sum alone.

A round trains as in `site_federation`, but a site's reply says only that it has trained. Then come the five
phases of `silos.secure`, in requests of their own: keys, shares, masked, agree, reveal. A site that fails in
one of the first three is left out of the sum, and one that fails later is in it. The cohort's sites are the
members of the sum, whether or not they have trained, so that the threshold is the same in every attempt.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Broadcast, ClientInfo, Expected, Failure, Payload, Update
from shepherd.errors import QuorumNotMet, SecureError
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.rounds.acceptance import failure_list
from shepherd.silos.protocol import schema, wire
from shepherd.silos.protocol.wire import Phase, SumAnswer, SumRequest, Trained
from shepherd.silos.secure import Directory, Session, SumServer, survivors_of
from shepherd.silos.server.site_federation import (
    MAX_REPLY_EXTRA_BYTES,
    NOT_CONNECTED,
    SiteFederation,
    unexpected,
)

log = logging.getLogger(__name__)

BYTES_PER_MEMBER = 2048
"""Largest part of a reply that is about one member, in bytes: shares take some hundreds."""

LEFT_OUT = "it was left out of the sum, which the other sites had agreed to without it before"
"""Why a site that is back is not in a sum that is repeated."""
QUIET = "too few of the sites that were asked took part to the end"
"""What an error says where noise hides who was asked."""


@dataclass(slots=True, kw_only=True)
class SecureFederation:
    """A Federation of sites that yields one merged update a round: the sum of their whole numbers."""

    merges: ClassVar[bool] = True
    silos: SiteFederation
    ring_bits: Literal[32, 64]
    layout: Callable[[Broadcast], Expected]
    """The tensors of a site's update."""
    fewest: Callable[[int], int]
    """Size of a cohort -> fewest sites whose sum the round can use; a smaller sum is never opened."""
    agreed: Path
    """File with the sites that were asked to agree to a sum last, and its round."""
    directory: Directory | None = None
    """Verifies the sites' certificates, so that a bad one costs its own site the round and nobody else."""
    names_sites: bool = True
    """Whether an error may say which sites were asked; not where noise hides that."""
    too_heavy: Callable[[Mapping[str, int]], Mapping[str, str]] = lambda sizes: {}
    """Site -> its number of examples, of those to be asked -> the sites whose update their sum would show,
    and why; they are not asked."""
    _lost: dict[str, str] = field(default_factory=dict)
    """Site -> why it is not in the round's sum, or did not help to open it."""
    _late: set[str] = field(default_factory=set)
    """Sites that were still training when the round ended."""
    _server: SumServer | None = None
    """The server's side of the sum that is under way."""

    def clients(self) -> Sequence[ClientInfo]:
        """All sites of the run by name; see `SiteFederation.clients`."""
        return self.silos.clients()

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Have the cohort train and sum; yield a Failure for each site that is not in the sum, and the sum.

        Raises:
            QuorumNotMet: fewer sites than the sum needs are left; nothing of the round is revealed then.
        """
        members, number = tuple(sorted(cohort)), broadcast.round
        self._lost, self._late, self._server = {}, set(), None
        with self._counted(number, cohort):
            expected = self.layout(broadcast)
            session = Session(
                run=self.silos.request_context.run,
                round=number,
                attempt=secrets.token_hex(16),
                request=self.silos.train_id(broadcast),
                members=members,
                length=_size(expected),
                ring_bits=self.ring_bits,
            )
            least = max(session.threshold, self.fewest(len(members)))
            others = self._not_asked(session, cohort, least)
            trained = self._trained(session, broadcast, cohort, others)
            names, total = self._sum(session, least, trained)
        for site in cohort:
            if site not in names:
                yield Failure(client=site, reason=self._lost[site], late=site in self._late)
        delta, extra = _parts(total, expected)
        yield Update(round=number, delta=delta, extra=extra, weight=float(len(names)), clients=names)

    def _not_asked(self, session: Session, cohort: Sequence[str], least: int) -> dict[str, str]:
        """The sites of the cohort that are not asked, and why: nobody trains for a sum that cannot be opened.

        Raises:
            SecureError: too few are left.
        """
        asked, others = self.silos.reach(session.round, cohort)
        for site in asked:
            own = self.silos.joined[site].min_cohort
            if own > session.threshold:
                others[site] = (
                    f"its min_cohort is {own}, and {session.threshold} sites can open the sum; raise"
                    " selection.share, or add sites"
                )
        sizes = {site: self.silos.joined[site].examples for site in asked if site not in others}
        others |= self.too_heavy(sizes)
        self._lost |= others
        _require_enough([site for site in asked if site not in others], least)
        return others

    def _trained(
        self, session: Session, broadcast: Broadcast, cohort: Sequence[str], others: Mapping[str, str]
    ) -> list[str]:
        """The sites of the cohort that have trained on the broadcast."""
        found = []
        for reply in self.silos.train(broadcast, cohort, others, len(session.members)):
            match reply:
                case Trained() if reply.length == session.length:
                    found.append(reply.client)
                case Trained():
                    self._lost[reply.client] = (
                        f"its update has {reply.length} numbers, and those of this run have {session.length};"
                        " install the server's version of shepherd-fit there"
                    )
                case Failure():
                    self._lost[reply.client] = reply.reason
                    self._late |= {reply.client} if reply.late else set()
                case _:
                    self._lost[reply.client] = unexpected(reply).reason
        return found

    def _sum(
        self, session: Session, least: int, trained: Sequence[str]
    ) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The sites of the sum, and their sum: (length,) whole numbers."""
        self._server = server = SumServer(session, self.directory)
        context = self.silos.request_context
        _require_enough(trained, least)
        keys = self._answers(session, "keys", dict.fromkeys(trained, b""))
        roster = server.roster(keys)
        shares = self._answers(session, "shares", _without(dict.fromkeys(keys, roster), server))
        bundles = _without(server.deliveries(shares), server)
        before = self._agreed_before(session.round)
        if before is not None and before <= bundles.keys():
            self._lost |= dict.fromkeys(bundles.keys() - before, LEFT_OUT)
            bundles = {site: bundles[site] for site in sorted(before)}
        _require_enough(bundles, least)
        many = max(1, context.max_in_flight)  # bounds the vectors that are held at once
        for start in range(0, len(bundles), many):
            wave = dict(list(bundles.items())[start : start + many])
            for site, masked in self._ask(session, "masked", wave, context.deadline_s):
                with suppress(SecureError):  # the site is dropped, and `server` says why
                    server.add(site, masked)
                del masked
        survivors = server.survivors()
        names = survivors_of(survivors)
        self._lost = {**server.dropped, **self._lost}
        _require_enough(names, least)
        if before is None:
            self._keep(session.round, names)
        signed = self._answers(session, "agree", dict.fromkeys(names, survivors))
        signatures = server.signatures(signed)
        if before not in (None, set(names)):
            self._keep(session.round, names)
        opened = self._answers(session, "reveal", dict.fromkeys(signed, signatures))
        total = server.total(opened)
        for site, fault in server.faulty.items():
            log.warning("round %d: %s is in the sum, and %s", session.round + 1, site, fault)
        return names, total

    def _answers(self, session: Session, kind: Phase, contents: Mapping[str, bytes]) -> dict[str, bytes]:
        return dict(self._ask(session, kind, contents, self.silos.request_context.short_deadline_s))

    def _ask(
        self, session: Session, kind: Phase, contents: Mapping[str, bytes], seconds: float
    ) -> Iterator[tuple[str, bytes]]:
        """Ask each site for one phase; yield what the protocol sent, as it comes."""
        transport, here = self.silos.transport, set(self.silos.transport.present())
        self._lost |= dict.fromkeys((site for site in contents if site not in here), NOT_CONNECTED)
        asked = SumRequest(
            kind=kind,
            run=session.run,
            id=session.request,
            round=session.round,
            attempt=session.attempt,
            members=session.members,
            length=session.length,
            ring_bits=session.ring_bits,
            deadline=seconds,
            sent=time.time(),
            version=self.silos.request_context.version,
            content=b"",
        )
        messages = {
            site: wire.encode_sum_request(replace(asked, content=content))
            for site, content in contents.items()
            if site in here
        }
        vector = session.length * session.ring_bits // 8 if kind == "masked" else 0
        most = vector + MAX_REPLY_EXTRA_BYTES + BYTES_PER_MEMBER * len(session.members)
        waiting = dict.fromkeys(messages)
        for site, answer in transport.ask_each(messages, seconds) if messages else ():
            waiting.pop(site, None)
            content = self._read(site, answer, asked, most)
            del answer
            if content is not None:
                yield site, content
            del content
        for site in waiting:
            self._read(site, None, asked, most)

    def _read(self, site: str, answer: bytes | None, asked: SumRequest, most: int) -> bytes | None:
        """What the protocol sent, or None with the reason in `_lost`."""
        reply = self.silos.read_reply(site, answer, asked, most)
        if isinstance(reply, SumAnswer) and (reply.kind, reply.attempt) == (asked.kind, asked.attempt):
            return reply.content
        failure = reply if isinstance(reply, Failure) else unexpected(reply)
        self._lost[site] = f"{asked.kind}: {failure.reason}"
        return None

    # one set of sites a round -----------------------------------------------------------------------------

    def _agreed_before(self, round: int) -> frozenset[str] | None:
        """The sites that an earlier attempt at this round's sum asked to agree; None if none did.

        A site agrees to one set of sites in a round. So a server that was killed after it had asked repeats
        the sum over the same sites if all of them are there, although others may be back.
        """
        with disk_errors(self.agreed.parent):
            if not self.agreed.exists():
                return None
            text = self.agreed.read_text(encoding="utf8")
        try:
            kept = json.loads(text)
            return frozenset(map(str, kept["sites"])) if kept["round"] == round else None
        except (ValueError, TypeError, KeyError):
            return None  # the sites know, and refuse another set

    def _keep(self, round: int, names: Sequence[str]) -> None:
        write_atomic(self.agreed, json.dumps({"round": round, "sites": list(names)}))

    @contextmanager
    def _counted(self, round: int, cohort: Sequence[str]) -> Iterator[None]:
        """Turn what ends a sum into a failed round, which says why each site was lost."""
        try:
            yield
        except SecureError as error:
            known = {**(self._server.problems if self._server else {}), **self._lost}
            lost = {site: known[site] for site in cohort if site in known}
            why = f"{error} ({failure_list(lost)})" if lost else str(error)
            if not self.names_sites:
                why = QUIET
            raise QuorumNotMet(
                f"round {round + 1} has no secure sum, and nothing of it is revealed: {schema.sentence(why)};"
                " fix those sites, and resume"
            ) from error


def _without(contents: Mapping[str, bytes], server: SumServer) -> dict[str, bytes]:
    """The messages to sites that the protocol has not dropped."""
    return {site: content for site, content in contents.items() if site not in server.dropped}


def _require_enough(sites: Collection[str], least: int) -> None:
    if len(sites) < least:
        raise SecureError(f"{len(sites)} sites are left, and its sum needs {least}")


def _size(expected: Expected) -> int:
    return sum(math.prod(shape) for part in (expected.delta, expected.extra) for shape in part.values())


def _parts(total: NDArray[np.int64], expected: Expected) -> tuple[Payload, Payload]:
    """The sum as tensors, which are views of it: those of the change by name, then those of the extra."""
    total.flags.writeable = False
    parts, place = [], 0
    for layout in (expected.delta, expected.extra):
        tensors = {}
        for name in sorted(layout):
            end = place + math.prod(layout[name])
            tensors[name] = total[place:end].reshape(layout[name])
            place = end
        parts.append(Payload(tensors))
    return parts[0], parts[1]
