"""The server's side of one secure sum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shepherd.silos.secure.session import Directory, Session


class SumServer:
    """The server's side of one secure sum, used once and in the order of its methods.

    Answers that cannot be used cost their sender its place in the sum (`dropped`); too few of them are a
    SecureError.
    """

    def __init__(self, session: Session, directory: Directory | None = None) -> None:
        raise NotImplementedError

    @property
    def dropped(self) -> Mapping[str, str]:
        """Member -> why it is not in the sum."""
        raise NotImplementedError

    def roster(self, answers: Mapping[str, bytes]) -> bytes:
        """Phase 1 to 2: the keys of all that answered; the same bytes for each of them."""
        raise NotImplementedError

    def deliveries(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """Phase 2 to 3: for each member that sent shares, those for it."""
        raise NotImplementedError

    def add(self, name: str, masked: bytes) -> None:
        """Phase 3: add one member's masked codes to the running sum."""
        raise NotImplementedError

    def survivors(self) -> bytes:
        """Phase 3 to 4: the names in the running sum."""
        raise NotImplementedError

    def signatures(self, answers: Mapping[str, bytes]) -> bytes:
        """Phase 4 to 5: the survivors' signatures over their names."""
        raise NotImplementedError

    def total(self, answers: Mapping[str, bytes]) -> NDArray[np.int64]:
        """Sum of the survivors' codes: (length,), signed."""
        raise NotImplementedError
