"""A federated method, made of parts that can be combined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from shepherd.core.aggregation import Aggregation
from shepherd.core.algorithm import Algorithm, Expected, as_accepted, no_core
from shepherd.core.messages import Broadcast, ClientInfo
from shepherd.core.selection import Selection
from shepherd.core.server_optimiser import ServerOptimiser, no_state
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

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise SettingsError(fault)

    def _faults(self) -> Iterator[str]:
        """One sentence for each two parts that are not sound together."""
        algorithm, aggregation = self._called("algorithm"), self._called("aggregation")
        server, transform = self._called("server"), self._called("transform")
        if self.transform.mechanism is not None and not self.aggregation.is_mean:
            yield (
                f"{transform}, which spends privacy budget, adds its noise to a mean, and {aggregation} is"
                ' not a mean; set [aggregation] name = "mean", or remove the transform'
            )
        if self.transform.mechanism is not None and self.algorithm.accept is not as_accepted:
            yield (
                f"{algorithm} changes an update after its norm was checked, and {transform} hides no longer"
                ' one; remove the transform, or set [algorithm] name = "fedavg"'
            )
        if self.transform.needs_same_tensors and (
            self.algorithm.core is not no_core or len(set(map(self._sent, range(4)))) > 1
        ):
            yield (
                f"{transform} continues the noise of each tensor from round to round, and {algorithm} sends"
                ' other tensors in other rounds; set [algorithm] name = "ffa_lora", or [[transforms]] name ='
                ' "gaussian"'
            )
        if self.transform.needs_both_factors and (
            self.algorithm.core is not no_core or any(map(self._sends_one_factor, range(2)))
        ):
            yield (
                f"{transform} rotates A and B together, and with {algorithm} a client sends only one of them"
                ' in a round; remove the transform, or set [algorithm] name = "fedavg"'
            )
        if not self.aggregation.keeps_basis and not self.server.whole_step:
            yield (
                f"{aggregation} factorises the sum of the products anew in each round, so the adapter can"
                f" only move to its result, by a whole step and without a momentum, and {server} moves it"
                ' otherwise; set [server] name = "sgd" with learning_rate = 1, or another aggregation'
            )
        if not self.aggregation.keeps_basis and not self.algorithm.server_is_model:
            yield (
                f"{algorithm} leaves one factor with each client, and {aggregation} turns the basis that the"
                ' factors share; set [aggregation] name = "mean"'
            )
        if self.aggregation.needs_model and not self.algorithm.server_is_model:
            yield (
                f"{algorithm} leaves one factor with each client, and {aggregation} needs the products of"
                ' both at the server; set [aggregation] name = "mean"'
            )
        if self.aggregation.restarts and any(map(self._trains_a_alone, range(2))):
            yield (
                f"{algorithm} trains A alone in some rounds, and with {aggregation} each round begins with B"
                ' = 0, where the gradient of A is zero; set [algorithm] name = "fedavg", or [aggregation]'
                ' name = "product"'
            )
        if self.aggregation.side_rank and self.algorithm.personal:
            yield (
                f"{algorithm} leaves a part of its model with each client, and {aggregation} keeps frozen"
                ' ranks beside the trained ones; set [aggregation] name = "mean"'
            )
        if self.server.rebase is not None and self.server.init is not no_state:
            yield (
                f"{server} writes the factors anew, and its own state would belong to the old ones; remove"
                " its init or its rebase"
            )
        if self.algorithm.core is not no_core and not self.aggregation.is_mean:
            yield (
                f"with {algorithm} clients send cores of the factors, which only a mean combines, and"
                f' {aggregation} is not a mean; set [aggregation] name = "mean"'
            )
        if self.algorithm.core is not no_core and self.server.init is not no_state:
            yield (
                f"with {algorithm} B moves along its core alone, and the state of {server} is of whole"
                ' factors and would move B out of the core\'s columns; set [server] name = "sgd"'
            )
        if self.algorithm.remembers_factors and self.server.rebase is not None:
            yield _forgotten(algorithm, server, '[server] name = "sgd"')
        if self.algorithm.remembers_factors and not self.aggregation.keeps_basis:
            yield _forgotten(algorithm, aggregation, '[aggregation] name = "mean"')
        if self.server.needs_mean and not self.aggregation.is_mean:
            yield (
                f"{server} requires a mean, and {aggregation} is not a mean; set"
                ' [aggregation] name = "mean", or [server] name = "sgd"'
            )
        if self.algorithm.needs_mean and not self.aggregation.is_mean:
            yield (
                f"what {algorithm} sends in addition to the change has to be averaged with it, and"
                f' {aggregation} is not a mean; set [aggregation] name = "mean", or [algorithm] name ='
                ' "fedavg"'
            )
        if self.algorithm.needs_exact and self.transform.alters:
            yield (
                f"{algorithm} is right only where the server gets what the clients sent, and {transform}"
                ' changes it on its way; remove the transform, or set [algorithm] name = "fedavg"'
            )

    def _called(self, part: str) -> str:
        kind = {"server": "server optimiser"}.get(part, part)
        return f"the {kind} {self.names[part]!r}" if part in self.names else f"this {kind}"

    def _trains_a_alone(self, round: int) -> bool:
        """Whether of a module's two factors only A is trained in this round."""
        a, b = (self.algorithm.trainable(f"module.{part}.weight", round) for part in ("lora_A", "lora_B"))
        return a and not b

    def _sent(self, round: int) -> tuple[bool, ...]:
        """Which of a module's two factors leave a client in this round."""
        return tuple(self.algorithm.leaves(f"module.{part}.weight", round) for part in ("lora_A", "lora_B"))

    def _sends_one_factor(self, round: int) -> bool:
        """Whether of a module's two factors only one leaves a client in this round."""
        a, b = self._sent(round)
        return a != b


def _forgotten(algorithm: str, other: str, instead: str) -> str:
    return (
        f"what {algorithm} remembers from round to round belongs to the factors, and {other} writes them"
        f' anew; set {instead}, or [algorithm] name = "fedavg"'
    )


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
