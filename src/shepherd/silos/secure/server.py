"""The server's side of one secure sum."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import SecureError
from shepherd.silos.secure import masks, messages, primitives, shamir, transcript
from shepherd.silos.secure.messages import Keys, Revealed, Secret
from shepherd.silos.secure.roster import roster_faults, share_numbers
from shepherd.silos.secure.session import Directory, Session
from shepherd.visible import shown_line


class Step(IntEnum):
    """What the server does next."""

    ROSTER = 1
    DELIVERIES = 2
    ADD = 3
    SIGNATURES = 4
    TOTAL = 5
    OVER = 6


class SumServer:
    """The server's side of one secure sum, used once and in the order of its methods.

    An answer that cannot be used costs its sender its place (`dropped`), or is left out where the sum can do
    without it (`faulty`). Where too few are left the sum fails with a SecureError, and nothing is known of
    any member's codes.

    Args:
        session: what the members are asked for.
        directory: who the members are. Without it a member whose keys do not verify is not dropped, and every
            other member refuses the roster that has them.
    """

    def __init__(self, session: Session, directory: Directory | None = None) -> None:
        self._session, self._digest, self._directory = session, session.digest(), directory
        self._next = Step.ROSTER
        self._roster: dict[str, Keys] = {}
        self._roster_hash = b""
        self._dealers: tuple[str, ...] = ()
        self._dealers_hash = b""
        self._sum = np.zeros(session.length, masks.dtype(session.ring_bits))
        self._survivors: list[str] = []
        self._dropped: dict[str, str] = {}
        self._faulty: dict[str, str] = {}

    @property
    def dropped(self) -> Mapping[str, str]:
        """Member -> why it is not in the sum."""
        return dict(self._dropped)

    @property
    def faulty(self) -> Mapping[str, str]:
        """Member of the sum -> what was wrong with a later answer of it."""
        return dict(self._faulty)

    @property
    def problems(self) -> Mapping[str, str]:
        """Member -> what was wrong with it, whether or not it is in the sum."""
        return {**self._faulty, **self._dropped}

    def roster(self, answers: Mapping[str, bytes]) -> bytes:
        """Phase 1 to 2: the keys of all that answered; the same bytes for each of them.

        Args:
            answers: member -> what its `keys` returned.

        Raises:
            SecureError: fewer than the threshold sent keys that can be used.
        """
        with self._taking(Step.ROSTER):
            found: dict[str, Keys] = {}
            for name, answer in self._answers(answers, self._session.members, "sent no keys"):
                try:
                    found[name] = messages.decode_keys(self._digest, answer)
                except SecureError as error:
                    self._dropped[name] = str(error)
            self._dropped |= roster_faults(self._session, found, self._directory)
            self._roster = {name: keys for name, keys in found.items() if name not in self._dropped}
            self._require_enough(self._roster, "sent keys")
            message = messages.encode_roster(self._digest, self._roster)
            self._roster_hash = transcript.roster_hash(message)
            return message

    def deliveries(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """Phase 2 to 3: for each member that sent shares, those for it.

        Args:
            answers: member -> what its `shares` returned.

        Raises:
            SecureError: fewer than the threshold sent shares for all others.
        """
        with self._taking(Step.DELIVERIES):
            dealt: dict[str, dict[str, bytes]] = {}
            for name, answer in self._answers(answers, self._roster, "sent no shares"):
                try:
                    shares = messages.decode_shares(self._digest, answer)
                except SecureError as error:
                    self._dropped[name] = str(error)
                    continue
                if shares.keys() != self._roster.keys() - {name}:
                    self._dropped[name] = "sent shares for other sites than the roster's"
                    continue
                dealt[name] = shares
            self._require_enough(dealt, "sent shares")
            self._dealers = tuple(sorted(dealt))
            self._dealers_hash = transcript.dealers_hash(self._roster_hash, self._dealers)
            return {
                to: messages.encode_delivered(
                    self._digest, {name: dealt[name][to] for name in self._dealers if name != to}
                )
                for to in self._dealers
            }

    def add(self, name: str, masked: bytes) -> None:
        """Phase 3: add one member's masked codes to the running sum; may be called until `survivors`.

        Raises:
            SecureError: this member sent no shares, or has answered; a vector of another length, or masked
                for other members. A first answer that cannot be used costs the member its place.
        """
        self._require_step(Step.ADD)
        if name not in self._dealers:
            raise SecureError(f"{shown_line(name)} sent masked codes and no shares; leave them out")
        if name in self._survivors or name in self._dropped:
            raise SecureError(f"site {name} sent masked codes twice; the first are what counts")
        try:
            dealers, vector = messages.decode_masked(self._digest, masked, self._sum.nbytes)
            if dealers != self._dealers_hash:
                raise SecureError(f"site {name} masked its codes for other sites")
        except SecureError as error:
            self._dropped[name] = str(error)
            raise
        np.add(self._sum, np.frombuffer(vector, self._sum.dtype), out=self._sum)
        self._survivors.append(name)

    def survivors(self) -> bytes:
        """Phase 3 to 4: the names in the running sum, to which nothing can be added from here on.

        Raises:
            SecureError: fewer than the threshold sent masked codes.
        """
        with self._taking(Step.ADD):
            for name in self._dealers:
                if name not in self._survivors:
                    self._dropped.setdefault(name, "sent no masked codes")
            self._survivors.sort()
            self._require_enough(self._survivors, "sent masked codes")
            return messages.encode_survivors(self._digest, self._survivors)

    def signatures(self, answers: Mapping[str, bytes]) -> bytes:
        """Phase 4 to 5: the survivors' signatures over their names; the same bytes for each of them.

        Args:
            answers: survivor -> what its `agree` returned.

        Raises:
            SecureError: fewer than the threshold signed.
        """
        with self._taking(Step.SIGNATURES):
            statement = transcript.survivors_statement(self._roster_hash, self._dealers_hash, self._survivors)
            signed: dict[str, bytes] = {}
            for name, answer in self._late(answers, "signed no survivors"):
                try:
                    signature = messages.decode_agreed(self._digest, answer)
                    if self._directory is not None:
                        self._directory.verify(name, self._roster[name].certificate, statement, signature)
                    signed[name] = signature
                except SecureError as error:
                    self._faulty[name] = str(error)
            self._require_enough(signed, "signed the survivors")
            return messages.encode_signatures(self._digest, signed)

    def total(self, answers: Mapping[str, bytes]) -> NDArray[np.int64]:
        """The sum of the survivors' codes, as signed numbers: (length,).

        Args:
            answers: survivor -> what its `reveal` returned.

        Raises:
            SecureError: fewer than the threshold revealed shares, or those of one member do not give the
                secret that it committed to; names it.
        """
        with self._taking(Step.TOTAL):
            revealed: dict[str, dict[str, Revealed]] = {}
            for name, answer in self._late(answers, "revealed no shares"):
                try:
                    shares = messages.decode_revealed(self._digest, answer)
                except SecureError as error:
                    self._faulty[name] = str(error)
                    continue
                if {dealer: which for dealer, (which, _) in shares.items()} != self._asked():
                    self._faulty[name] = "revealed other shares than those that were asked for"
                    continue
                revealed[name] = shares
            self._require_enough(revealed, "revealed shares")
            self._unmask(revealed)
            return masks.from_ring(self._sum)

    def _asked(self) -> dict[str, Secret]:
        """Which secret of each dealer is needed."""
        return {
            dealer: Secret.SELF_MASK if dealer in self._survivors else Secret.MASK_KEY
            for dealer in self._dealers
        }

    def _unmask(self, revealed: Mapping[str, Mapping[str, Revealed]]) -> None:
        """Take every mask that is left out of the running sum.

        The self-masks of the survivors are in it, and the masks between each survivor and each member that
        sent shares but no codes.
        """
        plus: list[bytes] = []
        minus: list[bytes] = []
        for dealer, which in self._asked().items():
            secret = self._opened(
                dealer, which, {name: shares[dealer][1] for name, shares in revealed.items()}
            )
            if which is Secret.SELF_MASK:
                minus.append(transcript.self_mask_key(secret, self._roster_hash, dealer))
                continue
            for name in self._survivors:
                shared = primitives.x25519(secret, self._roster[name].mask_key)
                key = transcript.pair_mask_key(shared, self._roster_hash, name, dealer)
                (minus if name < dealer else plus).append(key)
        masks.mask(self._sum, plus, minus)

    def _opened(self, dealer: str, which: Secret, shares: Mapping[str, bytes]) -> bytes:
        """A dealer's secret, and a note of whose share of it was wrong."""
        numbers = share_numbers(self._session)
        trusted_first = sorted(shares, key=lambda name: (name in self._faulty, name))
        by_number = {numbers[name]: shares[name] for name in trusted_first}
        for tried, (secret, used) in enumerate(shamir.candidates(by_number, self._session.threshold)):
            if self._fits(dealer, which, secret):
                wrong = shamir.disagreeing(by_number, used) if tried else []
                for number in wrong:
                    self._faulty[self._session.members[number - 1]] = (
                        f"its share of a secret of {dealer} is wrong: one of the two sent another"
                    )
                return secret
        what = "self-mask" if which is Secret.SELF_MASK else "mask key"
        raise SecureError(
            f"the shares of the {what} of site {dealer} do not give what it committed to: it dealt wrong"
            f" ones, or one or more of {', '.join(sorted(shares))} revealed wrong ones"
        )

    def _fits(self, dealer: str, which: Secret, secret: bytes) -> bool:
        if which is Secret.MASK_KEY:
            return primitives.x25519_public(secret) == self._roster[dealer].mask_key
        return transcript.commitment(secret, self._digest, dealer) == self._roster[dealer].commitment

    @contextmanager
    def _taking(self, step: Step) -> Iterator[None]:
        """One step: taken once, and the sum is over if it fails."""
        self._require_step(step)
        self._next = Step.OVER
        yield
        self._next = Step(step + 1)

    def _require_step(self, step: Step) -> None:
        if self._next is not step:
            raise SecureError(
                f"the server went on with {step.name.lower()} of a secure sum, and {self._next.name.lower()}"
                " was next"
            )

    def _answers(
        self, answers: Mapping[str, bytes], expected: Iterable[str], otherwise: str
    ) -> Iterator[tuple[str, bytes]]:
        """The answers of those expected, in order; who did not answer is dropped."""
        self._require_expected(answers, expected)
        for name in expected:
            if name in answers:
                yield name, answers[name]
            else:
                self._dropped[name] = otherwise

    def _late(self, answers: Mapping[str, bytes], otherwise: str) -> Iterator[tuple[str, bytes]]:
        """The answers of survivors; who did not answer is in the sum all the same."""
        self._require_expected(answers, self._survivors)
        for name in self._survivors:
            if name in answers:
                yield name, answers[name]
            else:
                self._faulty.setdefault(name, otherwise)

    def _require_expected(self, answers: Mapping[str, bytes], expected: Iterable[str]) -> None:
        for name in answers.keys() - set(expected):
            raise SecureError(f"{shown_line(name)} answered in a secure sum and was not asked; leave it out")

    def _require_enough(self, names: Collection[str], did: str) -> None:
        if len(names) < self._session.threshold:
            raise SecureError(
                f"{len(names)} of {len(self._session.members)} sites {did}, and a secure sum needs"
                f" {self._session.threshold}"
            )
