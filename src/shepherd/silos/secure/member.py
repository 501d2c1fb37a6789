"""A site's side of one secure sum."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import SecureError
from shepherd.silos.secure import masks, messages, primitives, shamir, transcript
from shepherd.silos.secure.messages import Keys, Revealed, Secret
from shepherd.silos.secure.roster import roster_faults, share_numbers
from shepherd.silos.secure.session import Directory, Identity, Session
from shepherd.visible import shown_line


class Phase(IntEnum):
    """What a member answers next."""

    KEYS = 1
    SHARES = 2
    MASKED = 3
    AGREE = 4
    REVEAL = 5
    OVER = 6


class Member:
    """A site's side of one secure sum, used once.

    Each method is called once and in the order given here; another call is a SecureError and changes nothing.
    A message that the session does not allow is a SecureError after which this member answers nothing more.

    Args:
        session: as this site understands what it is asked.
        name: this site, one of the session's members.
        identity: its long-term key.
        directory: who the others are.
        min_cohort: fewest sites in a sum that includes this one; the session's threshold holds as well.
        entropy: gives this many random bytes; anything but the operating system's is for tests.

    Raises:
        SecureError: the session has no such member, or too few for `min_cohort`.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        identity: Identity,
        directory: Directory,
        min_cohort: int = 1,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if name not in session.members:
            raise SecureError(
                f"site {shown_line(name)} is not a member of the secure sum that it is asked for"
            )
        if min_cohort > len(session.members):
            raise SecureError(
                f"site {name} asks for {min_cohort} sites in a sum, and {len(session.members)} are asked; ask"
                " more of them"
            )
        self._session, self._digest, self._name = session, session.digest(), name
        self._identity, self._directory = identity, directory
        self._fewest = max(session.threshold, min_cohort)
        self._entropy = entropy
        self._mask_private, self._transport_private, self._seed = (entropy(32) for _ in range(3))
        self._next = Phase.KEYS
        self._mine: Keys
        self._roster: dict[str, Keys] = {}
        self._roster_hash = b""
        self._dealers_hash = b""
        self._opening_keys: dict[str, bytes] = {}  # other member -> key of the shares that it sends
        self._pair_keys: dict[str, bytes] = {}  # other member -> key of the mask between the two
        self._held: dict[str, dict[Secret, bytes]] = {}  # dealer -> this member's shares of its secrets
        self._survivors: tuple[str, ...] = ()

    def keys(self) -> bytes:
        """Phase 1: the public keys of this session and the commitment to the self-mask, signed."""
        with self._answering(Phase.KEYS):
            unsigned = Keys(
                mask_key=primitives.x25519_public(self._mask_private),
                transport_key=primitives.x25519_public(self._transport_private),
                commitment=transcript.commitment(self._seed, self._digest, self._name),
                certificate=self._identity.certificate,
                signature=b"",
            )
            signature = self._identity.sign(transcript.keys_statement(self._digest, self._name, unsigned))
            self._mine = replace(unsigned, signature=signature)
            return messages.encode_keys(self._digest, self._mine)

    def shares(self, roster: bytes) -> bytes:
        """Phase 2: for each other member of the roster, sealed shares of this member's two secrets.

        Args:
            roster: the same for all members that sent keys.

        Raises:
            SecureError: too few members, or one that was not asked; a key that its member did not sign,
                that occurs twice or gives no secret; this member's own keys are not there as it sent them.
        """
        with self._answering(Phase.SHARES):
            self._roster = messages.decode_roster(self._digest, roster)
            self._roster_hash = transcript.roster_hash(roster)
            self._require_sound_roster()
            self_mask, mask_key = self._split(self._seed), self._split(self._mask_private)
            self._held[self._name] = self._pair(self_mask[self._name] + mask_key[self._name])
            sealed = {}
            for other, theirs in self._roster.items():
                if other == self._name:
                    continue
                shared = primitives.x25519(self._transport_private, theirs.transport_key)
                key = transcript.seal_key(shared, self._roster_hash, self._name, other)
                context = transcript.seal_context(self._roster_hash, self._name, other)
                sealed[other] = primitives.seal(key, self_mask[other] + mask_key[other], context)
                self._opening_keys[other] = transcript.seal_key(shared, self._roster_hash, other, self._name)
                shared = primitives.x25519(self._mask_private, theirs.mask_key)
                self._pair_keys[other] = transcript.pair_mask_key(
                    shared, self._roster_hash, self._name, other
                )
            return messages.encode_shares(self._digest, sealed)

    def masked(self, delivered: bytes, codes: NDArray[np.int64]) -> bytes:
        """Phase 3: the codes under this member's own mask and one with each other whose shares arrived.

        Args:
            delivered: the shares for this member.
            codes: (length,), each at most 2^(ring_bits - 1) - 1 in size. That their sum over all members is
                no larger is up to the encoding.

        Raises:
            SecureError: too few shares, or some that are not from a member of the roster to this one; codes
                of another shape, type or size.
        """
        with self._answering(Phase.MASKED):
            vector = masks.in_ring(codes, self._session.length, self._session.ring_bits)
            sealed = messages.decode_delivered(self._digest, delivered)
            self._require_known(sealed, self._opening_keys, "as one that sent it shares")
            for dealer, shares in sealed.items():
                context = transcript.seal_context(self._roster_hash, dealer, self._name)
                pair = primitives.unseal(self._opening_keys[dealer], shares, context)
                if pair is None:
                    raise self._refusal(f"the shares from {dealer} were changed, or are not meant for it")
                self._held[dealer] = self._pair(pair)
                if not all(map(shamir.is_share, self._held[dealer].values())):
                    raise self._refusal(f"what {dealer} sent it are no shares")
            self._require_enough(self._held, "sent shares")
            self._dealers_hash = transcript.dealers_hash(self._roster_hash, self._held)
            masks.mask(
                vector,
                plus=[
                    transcript.self_mask_key(self._seed, self._roster_hash, self._name),
                    *(self._pair_keys[other] for other in sealed if other > self._name),
                ],
                minus=[self._pair_keys[other] for other in sealed if other < self._name],
            )
            self._forget_keys()
            return messages.encode_masked(self._digest, self._dealers_hash, vector)

    def agree(self, survivors: bytes) -> bytes:
        """Phase 4: a signature over the survivors, the members whose masked codes the server has.

        Raises:
            SecureError: too few of them, one that sent no shares, or this member is missing.
        """
        with self._answering(Phase.AGREE):
            names = messages.decode_survivors(survivors, self._digest)
            self._require_known(names, self._held, "in the sum, which sent it no shares")
            self._require_enough(names, "are in the sum")
            if self._name not in names:
                raise self._refusal("it is not in the sum itself")
            self._survivors = names
            return messages.encode_agreed(self._digest, self._identity.sign(self._statement()))

    def reveal(self, signatures: bytes) -> bytes:
        """Phase 5: of each survivor a share of its self-mask, of each other dealer one of its mask key.

        Raises:
            SecureError: fewer than the threshold have signed the survivors that this member signed.
        """
        with self._answering(Phase.REVEAL):
            signed = messages.decode_signatures(self._digest, signatures)
            self._require_known(signed, self._survivors, "as one that signed the survivors")
            if len(signed) < self._session.threshold:
                raise self._refusal(
                    f"{len(signed)} sites signed the survivors, and {self._session.threshold} must"
                )
            for name, signature in signed.items():
                self._directory.verify(name, self._roster[name].certificate, self._statement(), signature)
            revealed: dict[str, Revealed] = {}
            for dealer, held in self._held.items():
                which = Secret.SELF_MASK if dealer in self._survivors else Secret.MASK_KEY
                revealed[dealer] = (which, held[which])
            self._forget()
            return messages.encode_revealed(self._digest, revealed)

    @contextmanager
    def _answering(self, phase: Phase) -> Iterator[None]:
        """One phase: entered once, and over with all secrets gone if anything in it fails."""
        if self._next is not phase:
            state = "is over" if self._next is Phase.OVER else f"answers {self._next.name.lower()} next"
            raise SecureError(
                f"site {self._name} was asked for {phase.name.lower()} twice or out of turn: its secure sum"
                f" {state}"
            )
        self._next = Phase.OVER
        try:
            yield
        except BaseException:
            self._forget()
            raise
        self._next = Phase(phase + 1)

    def _require_sound_roster(self) -> None:
        for name, fault in roster_faults(self._session, self._roster, self._directory).items():
            raise self._refusal(f"{shown_line(name)} {fault}")
        if self._roster.get(self._name) != self._mine:
            raise self._refusal("its own keys are not in the roster as it sent them")
        self._require_enough(self._roster, "sent keys")

    def _require_known(self, names: Iterable[str], known: Collection[str], place: str) -> None:
        for name in names:
            if name not in known:
                raise self._refusal(f"the server names {name} {place}")

    def _require_enough(self, names: Collection[str], did: str) -> None:
        if len(names) < self._fewest:
            raise self._refusal(f"{len(names)} sites {did}, and {self._fewest} must")

    def _split(self, secret: bytes) -> dict[str, bytes]:
        """Shares of a secret, one for each member of the roster."""
        numbers = share_numbers(self._session)
        holders = list(self._roster)
        shares = shamir.split(
            secret, [numbers[name] for name in holders], self._session.threshold, self._entropy
        )
        return dict(zip(holders, shares, strict=True))

    def _pair(self, pair: bytes) -> dict[Secret, bytes]:
        """The two shares that travel together."""
        return {Secret.SELF_MASK: pair[: shamir.SHARE_BYTES], Secret.MASK_KEY: pair[shamir.SHARE_BYTES :]}

    def _statement(self) -> bytes:
        return transcript.survivors_statement(self._roster_hash, self._dealers_hash, self._survivors)

    def _refusal(self, reason: str) -> SecureError:
        return SecureError(f"site {self._name} leaves the secure sum: {reason}")

    def _forget(self) -> None:
        """Drop every secret; Python frees them at once, and cannot overwrite them."""
        self._forget_keys()
        self._held = {}

    def _forget_keys(self) -> None:
        """Drop all secrets but shares: when the codes are masked, nothing else is needed."""
        self._mask_private = self._transport_private = self._seed = b""
        self._opening_keys, self._pair_keys = {}, {}


def survivors_of(survivors: bytes) -> tuple[str, ...]:
    """The names in a message of survivors, for the site's own record.

    Raises:
        SecureError: the message is not one of survivors.
    """
    return messages.decode_survivors(survivors)
