"""What a run's folder comes to hold, by arithmetic on what is written there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from shepherd.core import Payload, ServerState
from shepherd.data.dataset import Partition
from shepherd.machine.estimate import state_bytes
from shepherd.settings import RunSettings

# Bytes, each measured on run folders of a few clients and of thousands.
STORED_TOKEN, STORED_EXAMPLE = 5, 8
"""Of a token, its id and its mask; of an example, where it begins."""
INDEX_CLIENT = 250
"""Of a client in the index of the data, beside its name: its counts and its categories."""
ROW = 1000
"""Of a line of rounds.jsonl, without its clients."""
NUMBER = 24
"""Of a number by a client's name, beside the name."""
TENSOR = 65
"""Of a tensor in a file of tensors, beside its name: its type, its shape and its place."""
STATE_TENSOR, STATE_CLIENT, STATE_MEMORY = 15, 16, 110
"""In state.json: of a tensor; of a client, its position; and where its memory is with its digest."""
INDENTED = 1.15
"""How much longer a line of rounds.jsonl is in state.json, which is indented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What a run's folder comes to hold, in bytes."""

    data: int
    checkpoints: int
    memories: int
    """What clients remember between visits, such as a control variate or their own factors."""
    adapter: int
    log: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, part.name) for part in fields(self))


def disk(
    settings: RunSettings,
    division: Partition,
    state: ServerState,
    memory: Payload,
    *,
    length: float,
    cohort: float,
) -> Disk:
    """What the folder of a run holds at its end.

    Args:
        memory: what one client remembers after a visit; empty if it remembers nothing.
        length: tokens of an example, on average.
        cohort: clients of a round, on average.
    """
    held = division.of(division.held.heldout.tolist())
    texts = sum(len(turn.text) + len(turn.context) for example in held for turn in example.turns)
    examples = sum(map(len, division.clients.values())) + len(held)
    clients, rounds = len(division.clients), settings.federation.rounds
    name = sum(map(len, division.clients)) / clients
    # coverage and held-out loss of each client; of those that were asked weight, loss and cosine, too
    row = ROW + 2 * clients * (name + NUMBER) + 4 * cohort * (name + NUMBER)
    saved = clients * (name + STATE_CLIENT + (name + STATE_MEMORY if memory else 0)) + INDENTED * row
    saved += state_bytes(state) + sum(_named(part, 2 * TENSOR + STATE_TENSOR) for part in _parts(state))
    kept = min(settings.checkpoints.keep, rounds)
    # a client's last memory, those of the rounds before that a checkpoint may need, and one older
    files = min(cohort * rounds, clients * 2 + cohort * (settings.checkpoints.keep - 1))
    return Disk(
        data=round(examples * (length * STORED_TOKEN + STORED_EXAMPLE) + clients * (name + INDEX_CLIENT))
        + texts,
        checkpoints=round(kept * saved),
        memories=round(files * (memory.nbytes + _named(memory, TENSOR))),
        adapter=state.adapter.nbytes,
        log=round(rounds * row),
    )


def _parts(state: ServerState) -> list[Payload]:
    return [state.adapter, *state.memory.values(), *state.optimiser.values()]


def _named(tensors: Mapping[str, np.ndarray], each: int) -> int:
    """Bytes of the names of tensors, and `each` beside a name."""
    return sum(len(name) + each for name in tensors)
