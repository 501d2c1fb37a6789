"""A site's side of one secure sum."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shepherd.silos.secure.session import Directory, Identity, Session


class Member:
    """A site's side of one secure sum, used once.

    Each method is called once and in the order given here; anything else is a SecureError, and so is a
    message that this session does not allow. After an error it answers nothing more.
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
        raise NotImplementedError

    def keys(self) -> bytes:
        """Phase 1: signed keys of this session."""
        raise NotImplementedError

    def shares(self, roster: bytes) -> bytes:
        """Phase 2: encrypted shares of this member's secrets, one pair for each other member of the roster."""
        raise NotImplementedError

    def masked(self, delivered: bytes, codes: NDArray[np.int64]) -> bytes:
        """Phase 3: the codes under masks."""
        raise NotImplementedError

    def agree(self, survivors: bytes) -> bytes:
        """Phase 4: a signature over the names whose masked codes the server has."""
        raise NotImplementedError

    def reveal(self, signatures: bytes) -> bytes:
        """Phase 5: for each survivor a share of its self-mask, for each other a share of its mask key."""
        raise NotImplementedError


def survivors_of(survivors: bytes) -> tuple[str, ...]:
    """The names in a message of survivors, for the site's own record.

    Raises:
        SecureError: the message is not one of survivors.
    """
    raise NotImplementedError
