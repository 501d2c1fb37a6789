"""Runs of the round loop on quadratic clients, for the contracts of every kind of part."""

from __future__ import annotations

from types import ModuleType

from tests.quadratic import Quadratic, bits, chosen, drawn

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.core import Method, ServerState
from shepherd.federation.client_store import OnDisk, StoredMemory
from shepherd.rounds import rounds, start
from shepherd.run.checkpoint import Checkpoint, latest, load, save

ROUNDS = 4


def found(folder: ModuleType, *references: str) -> list[str]:
    """The package's own modules of a kind, and the reference plug-ins of the tests."""
    return [*plugins.names(folder), *(f"tests.plugins.{name}" for name in references)]


def table(name: str) -> PartTable:
    """The table that names a module and leaves its keys at their defaults."""
    return PartTable(name=name)


def run(
    method: Method,
    federation: Quadratic,
    state: ServerState | None = None,
    *,
    until: int = ROUNDS,
    seed: int = 3,
) -> list[ServerState]:
    """Every state of a run with three quarters of the clients a round."""
    loop = rounds(
        method,
        federation,
        state or start(method, drawn(0)),
        until=until,
        select=chosen("uniform", share=0.75),
        quorum=1.0,
        seed=seed,
        root=federation.root,
    )
    return [state for state, _ in loop]


def same(one: ServerState, two: ServerState) -> bool:
    """Whether everything that a checkpoint holds has the same bits."""
    return _bits(one) == _bits(two)


def _bits(state: ServerState) -> list[object]:
    parts = (state.memory, state.optimiser)
    return [bits(state.adapter), *({name: bits(part) for name, part in each.items()} for each in parts)]


def resumed(method: Method, at: int, folder, like: Quadratic | None = None) -> ServerState:
    """The last state of a run that was stopped after round `at`, saved, loaded and gone on with.

    Args:
        like: the clients; by default plain ones.
    """
    like = like or Quadratic(method.algorithm, method.transform)
    before = like.again()
    stopped = [start(method, drawn(0)), *run(method, before, until=at)][-1]
    state, after = again(stopped, before, folder)
    return run(method, after, state)[-1]


def again(state: ServerState, federation: Quadratic, folder) -> tuple[ServerState, Quadratic]:
    """A state and its clients, saved and loaded."""
    store = OnDisk(folder / "clients", checkpoints=1)
    kept = {client: store.put(client, state.round, each) for client, each in federation.memories.items()}
    save(folder, Checkpoint(state=state, notes={"memories": kept}), keep=1)
    saved = load(latest(folder))
    after = federation.again()
    names = {client: StoredMemory(*kept) for client, kept in saved.notes["memories"].items()}
    after.memories = {client: store.get(client, kept) for client, kept in names.items()}
    return saved.state, after
