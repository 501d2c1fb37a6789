"""A site's part in secure sums: what it checks, what it records, and the phases that it answers.

A site trains first and keeps its update. It then answers the phases of `silos.secure` for that update, each
attempt of the server with fresh keys, which are in memory alone: a site that restarts counts as dropped. Two
sums over different sites would tell single updates apart, so the sites of a round's sum are written down
before an update leaves, and the survivors before this site agrees to them; neither changes afterwards.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shepherd import plugins
from shepherd.core import Transform, Update
from shepherd.errors import SecureError, SettingsError
from shepherd.io.atomic import disk_errors
from shepherd.settings import RunSettings
from shepherd.silos.protocol.wire import Request, SumAnswer, SumRequest, Trained
from shepherd.silos.site.request_checks import RequestRefused
from shepherd.silos.site.site_settings import PolicyTable, parse_request
from shepherd.silos.site.site_store import AnsweredRound, Store, SumRecord
from shepherd.version import install

if TYPE_CHECKING:
    from shepherd.silos.secure import Directory, Identity, Member, Session

RULE = "secure"
"""Name of the rule by which a site refuses a sum, in its audit log."""
MAX_ATTEMPTS = 8
"""Most runs with an attempt under way; the oldest is given up for another."""
MAX_RUNS = 64
"""Most runs whose last update may be summed; a site trains again for one that is older."""
NO_LIBRARY = f"cannot mask its updates: its installation lacks the extra [silos]; run {install('silos')}"

Signer = Callable[[], "tuple[Identity, Directory]"]


@dataclass(slots=True)
class _Attempt:
    """One attempt of the server at one sum."""

    session: Session
    member: Member
    asked: tuple[str, bytes] = ("", b"")
    """Phase and content of the last message that was answered."""
    answer: bytes = b""
    """The answer to it, which the same message gets again: it may have been lost on its way."""
    end: threading.Timer | None = None
    """Gives the attempt up, with its keys, if the server does not go on with it."""


class Answered(NamedTuple):
    """An answer, and the sites that it is about, for the audit log."""

    reply: SumAnswer
    sites: Sequence[str]


class SecureSums:
    """The secure sums that a site takes part in: one attempt of each run at a time."""

    def __init__(self, name: str, store: Store, policy: PolicyTable, signer: Signer) -> None:
        """`signer` reads the site's key, and who the other sites are; called for the first keys."""
        self._name, self._store, self._policy, self._signer = name, store, policy, signer
        self._lock = threading.Lock()
        self._released: dict[str, str] = {}  # run -> request whose update this process may send under masks
        self._attempts: dict[str, _Attempt] = {}

    def trained(self, request: Request, update: Update) -> Trained:
        """The reply to a request to train that the rules have allowed; its update may be summed from now."""
        with self._lock:
            before = self._attempts.get(request.run)
            if before is not None and before.session.request != request.id:
                self._give_up(before)  # its round is over, and nobody needs its keys
            self._released.pop(request.run, None)  # the newest runs are last
            self._released[request.run] = request.id
            while len(self._released) > MAX_RUNS:
                self._released.pop(next(iter(self._released)))
        return Trained(client=self._name, round=request.round, length=_length(update))

    def answer(self, request: SumRequest) -> Answered:
        """Answer one phase of a sum.

        Raises:
            RequestRefused: this site does not take part in it, or not as it is asked to.
            FolderError: what has to be recorded cannot be written.
        """
        with self._lock:
            try:
                return self._answer(request)
            except SecureError as error:
                raise RequestRefused(RULE, str(error)) from error

    def _answer(self, request: SumRequest) -> Answered:
        session = self._session(request)
        if request.kind == "keys":
            self._begin(request, session)
        attempt = self._attempts.get(request.run)
        if attempt is None or attempt.session != session:
            raise SecureError(f"{self._name} takes part in no such attempt at a sum, as after a restart")
        asked = (request.kind, hashlib.sha256(request.content).digest())
        if attempt.asked != asked:
            attempt.answer = self._content(request, attempt)
            attempt.asked = asked
        self._await(request, attempt)
        reply = SumAnswer(
            client=self._name,
            round=request.round,
            kind=request.kind,
            attempt=request.attempt,
            content=attempt.answer,
        )
        return Answered(reply, self._about(request))

    def _session(self, request: SumRequest) -> Session:
        require_library(self._name)
        from shepherd.silos.secure import Session

        return Session(
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            request=request.id,
            members=request.members,
            length=request.length,
            ring_bits=cast(Any, request.ring_bits),
        )

    def _begin(self, request: SumRequest, session: Session) -> None:
        """Begin an attempt; one of the same run that is under way is given up, with its keys."""
        before = self._attempts.get(request.run)
        if before is not None and before.session.attempt == session.attempt:
            if before.session == session and before.asked[0] == "keys":
                return  # the same message again
            raise SecureError(f"{self._name} was asked twice for keys of one attempt at a sum")
        from shepherd.silos.secure import Member

        kept = self._kept(request)
        _require_fit(self._name, session, kept, self._policy)
        recorded = self._store.sum_of(session.run, session.round)
        if recorded is not None and recorded.members != session.members:
            raise SecureError(
                f"{self._name} takes part in the sum of round {session.round + 1} over"
                f" {', '.join(recorded.members)} only, and is asked for one over"
                f" {', '.join(session.members)}; ask the same sites, or use `shepherd silos new-id`"
            )
        identity, directory = self._signer()
        member = Member(session, self._name, identity, directory, self._policy.min_cohort)
        if before is not None:
            self._give_up(before)
        while len(self._attempts) >= MAX_ATTEMPTS:
            self._give_up(next(iter(self._attempts.values())))
        self._attempts[request.run] = _Attempt(session, member)

    def _await(self, request: SumRequest, attempt: _Attempt) -> None:
        """Keep an attempt for as long as the server may take: it may ask one member after another."""
        if attempt.end is not None:
            attempt.end.cancel()
        if self._attempts.get(request.run) is attempt:
            attempt.end = threading.Timer(len(request.members) * request.deadline, self._expire, [attempt])
            attempt.end.daemon = True
            attempt.end.start()

    def _expire(self, attempt: _Attempt) -> None:
        with self._lock:
            self._give_up(attempt)

    def _give_up(self, attempt: _Attempt) -> None:
        """Drop an attempt with its keys, and the shares of the others' that it holds."""
        if attempt.end is not None:
            attempt.end.cancel()
        if self._attempts.get(attempt.session.run) is attempt:
            del self._attempts[attempt.session.run]

    def _kept(self, request: SumRequest) -> AnsweredRound:
        """The update of the request to train, if it was asked for and allowed in this process."""
        kept = self._store.answered(request.run, request.id)
        if kept is None or kept.round != request.round or self._released.get(request.run) != request.id:
            raise SecureError(
                f"{self._name} has no update for this sum that it was asked to train; ask it to train first"
            )
        return kept

    def _content(self, request: SumRequest, attempt: _Attempt) -> bytes:
        member, session = attempt.member, attempt.session
        match request.kind:
            case "keys":
                return member.keys()
            case "shares":
                return member.shares(request.content)
            case "masked":
                codes = _codes(self._kept(request).update)
                if self._store.sum_of(session.run, session.round) is None:
                    self._store.save_sum(session.run, SumRecord(round=session.round, members=session.members))
                return member.masked(request.content, codes)
            case "agree":
                return self._agreed(request, attempt)
            case "reveal":
                return member.reveal(request.content)

    def _agreed(self, request: SumRequest, attempt: _Attempt) -> bytes:
        """Sign the survivors, once they are recorded as those of the round."""
        session, survivors = attempt.session, _survivors(request.content)
        recorded = self._store.sum_of(session.run, session.round)
        if recorded is None:
            raise SecureError(f"{self._name} has sent no update for this sum")
        if recorded.survivors and recorded.survivors != survivors:
            raise SecureError(
                f"{self._name} has agreed to the sum of round {session.round + 1} over"
                f" {', '.join(recorded.survivors)}, and is asked for one over {', '.join(survivors)}, which"
                " would tell single updates apart; bring the same sites back, or use `shepherd silos new-id`"
            )
        signed = attempt.member.agree(request.content)
        if not recorded.survivors:
            try:
                self._store.save_sum(session.run, replace(recorded, survivors=survivors))
            except BaseException:
                self._give_up(attempt)  # its shares would open a sum that is not recorded
                raise
        return signed

    def _about(self, request: SumRequest) -> Sequence[str]:
        return _survivors(request.content) if request.kind == "agree" else request.members


def _survivors(content: bytes) -> tuple[str, ...]:
    from shepherd.silos.secure import survivors_of

    return survivors_of(content)


# what is checked before anything is sent --------------------------------------------------------------------


def is_secure(tables: Mapping[str, Any]) -> bool:
    """Whether a request's tables ask for secure sums.

    Raises:
        SettingsError: a key is unknown, or a value is invalid.
    """
    return parse_request(tables).secure is not None


def require_library(name: str) -> None:
    """Raise RequestRefused if this installation cannot mask updates."""
    try:
        from shepherd.silos import secure  # noqa: F401
    except ImportError as error:
        raise RequestRefused(RULE, f"{name} {NO_LIBRARY}") from error


def require_trainable(name: str, request: Request, policy: PolicyTable) -> None:
    """Raise RequestRefused, before anything is computed, if the update could be in no secure sum."""
    settings = parse_request(request.settings)
    if settings.secure is None:
        return
    require_library(name)
    try:
        plugins.require_alike(settings, plugins.algorithm(settings.algorithm, policy.algorithms))
    except SettingsError as error:
        raise RequestRefused(RULE, f"{name} takes part in no such sum: {error}") from error
    transform = _transform(settings, policy)
    if request.kind == "train":
        from shepherd.silos.secure import threshold

        try:
            _require_hidden(name, threshold(request.cohort), request.cohort, transform, policy)
        except SecureError as error:
            raise RequestRefused(RULE, str(error)) from error
    if not transform.largest_code:
        raise RequestRefused(
            RULE,
            f"{name} can mask whole numbers only, and the run's transforms send real ones; add [[transforms]]"
            ' name = "fixed_point" or "skellam" to the run file, as the last',
        )


def require_no_downgrade(name: str, request: Request, store: Store) -> None:
    """Raise RequestRefused if a run whose updates left under masks asks for one without."""
    before = store.kept(request.run)
    was = bool(store.record(request.run).sums) or (bool(before) and is_secure(before[-1].settings))
    if was and not is_secure(request.settings):
        raise RequestRefused(
            RULE,
            f"{name} has sent its updates of this run under masks, and is asked for one without; put [secure]"
            " back into the run file, or start another run",
        )


def _require_fit(name: str, session: Session, kept: AnsweredRound, policy: PolicyTable) -> None:
    """Raise SecureError unless the sum is one that this site's update may be in."""
    settings = parse_request(kept.settings)
    if settings.secure is None:
        raise SecureError(f"{name} was asked to train without [secure], so its update is in no secure sum")
    transform, members = _transform(settings, policy), len(session.members)
    length = _length(kept.update)
    asked = (session.ring_bits, session.length)
    if asked != (settings.secure.ring_bits, length):
        raise SecureError(
            f"{name} keeps {length} numbers for a ring of {settings.secure.ring_bits} bits, and is asked for"
            f" {asked[1]} in {asked[0]} bits; install one version of shepherd-fit at both ends"
        )
    codes = _codes(kept.update)
    largest = max(int(codes.max()), -int(codes.min()))
    if members * transform.largest_code >= 2 ** (session.ring_bits - 1) or largest > transform.largest_code:
        raise SecureError(
            f"the numbers of {members} sites do not fit a ring of {session.ring_bits} bits; set"
            " secure.ring_bits = 64, or lower the bits of the last transform"
        )
    _require_hidden(name, session.threshold, members, transform, policy)


def _require_hidden(name: str, opening: int, members: int, transform: Transform, policy: PolicyTable) -> None:
    """Raise SecureError if too few sites can open a sum for this site's rules, or for the noise in it."""
    if opening < policy.min_cohort:
        raise SecureError(
            f"policy min_cohort = {policy.min_cohort} of {name} refuses a sum that {opening} of {members}"
            " sites can open; ask more sites"
        )
    honest = transform.mechanism.honest if transform.mechanism else 0
    if honest > opening - policy.colluding:
        colluding = f", of which {policy.colluding} may collude (policy.colluding of {name})"
        raise SecureError(
            f"the noise of this run needs {honest} honest sites in a sum, and {opening} of {members} can open"
            f" one{colluding if policy.colluding else ''}; lower `honest` of the transform, or ask more sites"
        )


def _transform(settings: RunSettings, policy: PolicyTable) -> Transform:
    return plugins.transform(settings.transforms, policy.transforms)


def _length(update: Update) -> int:
    return sum(tensor.size for part in (update.delta, update.extra) for tensor in part.values())


def _codes(update: Update) -> NDArray[np.int64]:
    """The whole numbers of an update: its change by name, then its extra by name."""
    parts = [part[name].ravel() for part in (update.delta, update.extra) for name in sorted(part)]
    return np.concatenate(parts).astype(np.int64, casting="equiv")


def kit_signer(home: Path, policy: PolicyTable) -> tuple[Identity, Directory]:
    """The key of the kit whose folder of Shepherd's files is `home`, and the sites of its federation.

    Raises:
        SilosError, FolderError: the kit cannot be used.
    """
    from shepherd.silos.flare import kits
    from shepherd.silos.flare.kit_identity import KitDirectory, KitIdentity

    with disk_errors(home.parent):
        kit = kits.read(home.parent, "site")
    allowed = {*policy.secure_with, kit.name} if policy.secure_with else ()
    return KitIdentity(kit), KitDirectory(kit, allowed)
