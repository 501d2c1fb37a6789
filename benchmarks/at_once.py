"""A transport whose sites answer within this process, as they are asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from shepherd.silos.server.site_federation import Until


class AtOnce(ABC):
    """A `Transport` on which nobody waits, so that no round ends early and no answer is late."""

    @abstractmethod
    def present(self) -> Sequence[str]:
        """See `Transport`."""

    @abstractmethod
    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        """See `Transport`."""

    def ask_each(self, messages: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes]]:
        """See `Transport`."""
        for site, message in messages.items():
            yield from self.ask(message, [site], seconds)

    def ask_until(
        self, message: bytes, sites: Sequence[str], until: Until, keep: bool
    ) -> Iterator[tuple[str, bytes]]:
        """See `Transport`."""
        return self.ask(message, sites, 0.0)

    def late(self) -> Iterator[tuple[str, bytes]]:
        """See `Transport`."""
        return iter(())
