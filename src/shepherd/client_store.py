"""What clients remember between their visits: one file a client and round, not in memory and not in a checkpoint.

    clients/
      9f3c.../                    one client, by a digest of its name
        round-00007.safetensors   what it remembered after round 7

A round reads what was there when it began, and writes beside it. So a round that is interrupted or asked again
leaves no trace (law 3), and going back to an earlier checkpoint finds what belonged to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from shepherd.core import Payload

NOTHING = Payload()


class ClientStore(Protocol):
    """Keeps each client's memory by the round after which it held."""

    def get(self, client: str, round: int) -> Payload:
        """What the client remembered after its last visit among the first `round` rounds; empty before it."""

    def put(self, client: str, round: int, memory: Payload) -> None:
        """Keep what a client remembers after round `round`."""

    def begin(self, round: int) -> None:
        """Forget what rounds after the first `round` left: one of them ended without being done."""

    def forget(self, before: int) -> None:
        """Let go of what no round from `before` on reads."""


@dataclass(slots=True)
class InMemory:
    """A store for federations that end with their process."""

    kept: dict[str, dict[int, Payload]] = field(default_factory=dict)

    def get(self, client: str, round: int) -> Payload:
        """See `ClientStore`."""
        own = self.kept.get(client, {})
        return own[max(found)] if (found := [each for each in own if each <= round]) else NOTHING

    def put(self, client: str, round: int, memory: Payload) -> None:
        """See `ClientStore`."""
        if memory or client in self.kept:
            self.kept.setdefault(client, {})[round] = memory

    def begin(self, round: int) -> None:
        """See `ClientStore`."""
        for own in self.kept.values():
            for late in [each for each in own if each > round]:
                del own[late]

    def forget(self, before: int) -> None:
        """See `ClientStore`."""
        for own in self.kept.values():
            for old in _unread(own, before):
                del own[old]
