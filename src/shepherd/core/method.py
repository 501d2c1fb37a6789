"""A federated method, made of parts that can be combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from shepherd.core.aggregation import Aggregation
from shepherd.core.algorithm import Algorithm, Expected
from shepherd.core.messages import Broadcast, ClientInfo
from shepherd.core.selection import Selection
from shepherd.core.server_optimiser import ServerOptimiser
from shepherd.core.soundness import faults
from shepherd.core.stragglers import Stragglers
from shepherd.core.transform import Transform
from shepherd.errors import SettingsError

IN_PYTHON = "given_in_python"
"""Name, in a run file, of a part that was given as a value in Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An algorithm, an aggregation, a server optimiser and a transform that fit together.

    Raises:
        SettingsError: two parts are incompatible.
    """

    algorithm: Algorithm
    aggregation: Aggregation
    server: ServerOptimiser
    transform: Transform
    stragglers: Stragglers | None = None
    """How long a round waits; None: for every client."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the run file calls its parts, by the part; for messages."""

    def expects(self, broadcast: Broadcast, client: ClientInfo) -> Expected:
        """The layout that a client's update must have: the algorithm's, and what the transform adds."""
        expected = self.algorithm.expects(broadcast, client)
        if not self.transform.adds:
            return expected
        return Expected(delta=expected.delta, extra={**expected.extra, **self.transform.adds})

    @property
    def is_private(self) -> bool:
        """Whether noise hides each client, so that nothing else may leave that depends on one."""
        return self.transform.mechanism is not None

    @property
    def more_ranks(self) -> int:
        """Ranks of a client's adapter in addition to the run's: side ranks, or the algorithm's own."""
        return self.aggregation.side_rank + self.algorithm.adds_ranks

    def __post_init__(self) -> None:
        for fault in faults(self):
            raise SettingsError(fault)

    def called(self, part: str) -> str:
        """A part by what it is, and by its name if the run file names it; for messages."""
        kind = {"server": "server optimiser"}.get(part, part)
        return f"the {kind} {self.names[part]!r}" if part in self.names else f"this {kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Parts of a run given as values, each in place of the one that the run file names.

    Raises:
        SettingsError: a value is of another type.
    """

    algorithm: Algorithm | None = None
    aggregation: Aggregation | None = None
    server: ServerOptimiser | None = None
    transform: Transform | None = None
    selection: Selection | None = None

    def __post_init__(self) -> None:
        for name, type_ in PART_TYPES.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, type_):
                several = "; combine several with shepherd.chain(first, second)" * (type_ is Transform)
                raise SettingsError(
                    f"{name}= got a {type(value).__name__}; give a value of shepherd.core.{type_.__name__},"
                    f" such as build(Config()) of a plug-in returns, or name a module in the run file"
                    f"{several}"
                )

    @property
    def given(self) -> list[str]:
        """Names of the parts that are given."""
        return [each.name for each in fields(self) if getattr(self, each.name) is not None]


PART_TYPES: dict[str, type] = {
    "algorithm": Algorithm,
    "aggregation": Aggregation,
    "server": ServerOptimiser,
    "transform": Transform,
    "selection": Selection,
}
"""Type of each part of a run that can be given as a value."""
NAMED = Parts()
"""No part is given: the run file names them all."""
