"""What is not sound together: each rule looks at what two parts of a method declare, and is one sentence.

A rule returns the sentence that refuses the method, with both names and what to write instead, or None.
`docs/decisions/0039-what-is-sound-together.md` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shepherd.core.algorithm import Algorithm, as_accepted, no_core
from shepherd.core.server_optimiser import no_state

if TYPE_CHECKING:
    from shepherd.core.method import Method

Rule = Callable[["Method"], str | None]
FACTORS = ("module.lora_A.weight", "module.lora_B.weight")
"""The two factors of a module, for asking an algorithm about them."""
PARITIES = (0, 1)
"""An even round and an odd one: some algorithms alternate."""
DROP = "set stragglers.carry = false, which drops it"


def faults(method: Method) -> Iterator[str]:
    """One sentence for each rule that a method breaks."""
    return (fault for rule in RULES if (fault := rule(method)) is not None)


def noise_needs_a_mean(method: Method) -> str | None:
    """A mechanism's noise is calibrated for a mean."""
    if method.transform.mechanism is None or method.aggregation.is_mean:
        return None
    return (
        f"{method.called('transform')}, which spends privacy budget, adds its noise to a mean, and"
        f' {method.called("aggregation")} is not a mean; set [aggregation] name = "mean", or remove the'
        " transform"
    )


def noise_needs_the_update_that_was_checked(method: Method) -> str | None:
    """A mechanism hides updates of a norm that is checked on arrival, and not what is made of them later."""
    if method.transform.mechanism is None or method.algorithm.accept is as_accepted:
        return None
    return (
        f"{method.called('algorithm')} changes an update after its norm was checked, and"
        f" {method.called('transform')} hides no longer one; remove the transform, or set [algorithm] name ="
        ' "fedavg"'
    )


def noise_hides_each_update(method: Method) -> str | None:
    """A bound that follows the norms of single updates tells of them, and alters the sum."""
    if method.transform.mechanism is None or not method.transform.needs_each:
        return None
    return (
        f"{method.called('transform')} reads single updates at the server, and hides them with noise; remove"
        ' the one that reads them, and bound norms by [[transforms]] name = "gaussian_adaptive"'
    )


def correlated_noise_needs_the_same_tensors(method: Method) -> str | None:
    """The noise of a tensor goes on from that of the round before."""
    algorithm = method.algorithm
    same = algorithm.core is no_core and len({sent(algorithm, each) for each in range(4)}) == 1
    if not method.transform.needs_same_tensors or same:
        return None
    return (
        f"{method.called('transform')} continues the noise of each tensor from round to round, and"
        f" {method.called('algorithm')} sends other tensors in other rounds; set [algorithm] name ="
        ' "ffa_lora", or [[transforms]] name = "gaussian"'
    )


def rotation_needs_both_factors(method: Method) -> str | None:
    """A rotation of A and B leaves their product the same only if both are sent."""
    algorithm = method.algorithm
    alone = algorithm.core is not no_core or any(sends_one_factor(algorithm, each) for each in PARITIES)
    if not (method.transform.needs_both_factors and alone):
        return None
    return (
        f"{method.called('transform')} rotates A and B together, and with {method.called('algorithm')} a"
        " client sends only one of them in a round; remove the transform, or set [algorithm] name ="
        ' "fedavg"'
    )


def new_factors_need_a_whole_step(method: Method) -> str | None:
    """Half a step along the change of two factors is not half a step of their product."""
    if method.aggregation.keeps_basis or method.server.whole_step:
        return None
    return (
        f"{method.called('aggregation')} factorises the sum of the products again in each round, so the"
        " adapter can only move to its result, by a whole step and without a momentum, and"
        f' {method.called("server")} moves it otherwise; set [server] name = "sgd" with learning_rate = 1,'
        " or another aggregation"
    )


def a_factor_at_the_client_needs_its_basis(method: Method) -> str | None:
    """The factor that a client keeps belongs to the ranks of the other one."""
    if method.aggregation.keeps_basis or method.algorithm.server_is_model:
        return None
    return (
        f"{method.called('algorithm')} leaves one factor with each client, and"
        f" {method.called('aggregation')} turns the basis that the factors share; set [aggregation] name ="
        ' "mean"'
    )


def products_need_both_factors(method: Method) -> str | None:
    """A rule that reads products at the server needs a model there."""
    if not method.aggregation.needs_model or method.algorithm.server_is_model:
        return None
    return (
        f"{method.called('algorithm')} leaves one factor with each client, and"
        f" {method.called('aggregation')} needs the products of both at the server; set [aggregation] name ="
        ' "mean"'
    )


def a_restart_needs_b(method: Method) -> str | None:
    """Where B is zero, A has no gradient."""
    alone = any(trains_a_alone(method.algorithm, each) for each in PARITIES)
    if not (method.aggregation.restarts and alone):
        return None
    return (
        f"{method.called('algorithm')} trains A alone in some rounds, and with"
        f" {method.called('aggregation')} each round begins with B = 0, where the gradient of A is zero; set"
        ' [algorithm] name = "fedavg", or [aggregation] name = "product"'
    )


def side_ranks_need_one_model(method: Method) -> str | None:
    """Side ranks come after the trained ones, where a client would have its own."""
    if not (method.aggregation.side_rank and method.algorithm.personal):
        return None
    return (
        f"{method.called('algorithm')} leaves a part of its model with each client, and"
        f" {method.called('aggregation')} keeps frozen ranks beside the trained ones; set [aggregation] name"
        ' = "mean"'
    )


def a_rebase_keeps_no_state(method: Method) -> str | None:
    """State of an optimiser belongs to the factors before they were rewritten."""
    if method.server.rebase is None or method.server.init is no_state:
        return None
    return (
        f"{method.called('server')} rewrites the factors, and its own state would belong to the old ones;"
        " remove its init or its rebase"
    )


def cores_need_a_mean(method: Method) -> str | None:
    """Only means are the same for cores and for factors."""
    if method.algorithm.core is no_core or method.aggregation.is_mean:
        return None
    return (
        f"with {method.called('algorithm')} clients send cores of the factors, which only a mean combines,"
        f' and {method.called("aggregation")} is not a mean; set [aggregation] name = "mean"'
    )


def cores_need_a_server_without_state(method: Method) -> str | None:
    """A momentum of whole factors leaves the columns of the core."""
    if method.algorithm.core is no_core or method.server.init is no_state:
        return None
    return (
        f"with {method.called('algorithm')} B moves along its core alone, and the state of"
        f" {method.called('server')} is of whole factors and would move B out of the core's columns; set"
        ' [server] name = "sgd"'
    )


def memory_outlives_no_rebase(method: Method) -> str | None:
    """What is remembered of factors is of the old ones."""
    if not method.algorithm.remembers_factors or method.server.rebase is None:
        return None
    return _forgotten(method, "server", '[server] name = "sgd"')


def memory_outlives_no_new_factors(method: Method) -> str | None:
    """What is remembered of factors is of the old ones."""
    if not method.algorithm.remembers_factors or method.aggregation.keeps_basis:
        return None
    return _forgotten(method, "aggregation", '[aggregation] name = "mean"')


def _forgotten(method: Method, other: str, instead: str) -> str:
    return (
        f"what {method.called('algorithm')} remembers from round to round belongs to the factors, and"
        f' {method.called(other)} rewrites them; set {instead}, or [algorithm] name = "fedavg"'
    )


def what_was_left_out_outlives_no_new_basis(method: Method) -> str | None:
    """What a client's transform keeps for the next round is of this round's factors, number by number."""
    turned = (
        ("server", method.server.rebase is not None, '[server] name = "sgd"'),
        ("aggregation", not method.aggregation.keeps_basis, '[aggregation] name = "mean"'),
        ("algorithm", method.algorithm.core is not no_core, '[algorithm] name = "fedavg"'),
    )
    for part, turns, instead in turned:
        if method.transform.remember is not None and turns:
            return (
                f"what {method.called('transform')} keeps with a client for its next change belongs to the"
                f" numbers of the factors one by one, and {method.called(part)} gives these another meaning;"
                f" set feedback = false for it, or set {instead}"
            )
    return None


def a_server_may_need_a_mean(method: Method) -> str | None:
    """Adaptive server optimisers assume that the aggregate is a mean."""
    if not method.server.needs_mean or method.aggregation.is_mean:
        return None
    return (
        f"{method.called('server')} requires a mean, and {method.called('aggregation')} is not a mean; set"
        ' [aggregation] name = "mean", or [server] name = "sgd"'
    )


def an_algorithm_may_need_a_mean(method: Method) -> str | None:
    """What travels beside the change is averaged with it."""
    if not method.algorithm.needs_mean or method.aggregation.is_mean:
        return None
    return (
        f"what {method.called('algorithm')} sends in addition to the change has to be averaged with it, and"
        f' {method.called("aggregation")} is not a mean; set [aggregation] name = "mean", or [algorithm] name'
        ' = "fedavg"'
    )


def an_algorithm_may_need_exact_updates(method: Method) -> str | None:
    """Both ends add the same changes, or what they keep drifts apart."""
    if not (method.algorithm.needs_exact and method.transform.alters):
        return None
    return (
        f"{method.called('algorithm')} is right only where the server gets what the clients sent, and"
        f" {method.called('transform')} changes it on its way; remove the transform, or set [algorithm] name"
        ' = "fedavg"'
    )


def noise_needs_everybody(method: Method) -> str | None:
    """Who is in a sum whose noise hides each client must not depend on how fast the others were."""
    if method.stragglers is None or method.transform.mechanism is None:
        return None
    return (
        "[stragglers] leaves a client out because others were faster, which alters a sum by more than"
        f" {method.called('transform')} hides; remove [stragglers], and over silos lower silos.deadline_s,"
        " which holds for each site by itself"
    )


def a_late_update_needs_a_mean(method: Method) -> str | None:
    """Its weight has to count, and its numbers have to mean the same in a later round."""
    if not carries(method) or (method.aggregation.is_mean and method.aggregation.keeps_basis):
        return None
    return (
        f"stragglers.carry = true adds a late update with a smaller weight, and"
        f" {method.called('aggregation')} is no mean of what the clients sent;"
        f' {DROP}, or set [aggregation] name = "mean"'
    )


def a_late_update_outlives_no_rebase(method: Method) -> str | None:
    """A late change is of the factors before they were rewritten."""
    if not carries(method) or method.server.rebase is None:
        return None
    return (
        f"stragglers.carry = true adds a late update to the factors of a later round, and"
        f' {method.called("server")} rewrites these; {DROP}, or set [server] name = "sgd"'
    )


def a_late_update_needs_the_same_tensors(method: Method) -> str | None:
    """What a client sends for one round has to be what another one takes."""
    algorithm = method.algorithm
    same = algorithm.core is no_core and len({sent(algorithm, each) for each in range(4)}) == 1
    if not carries(method) or same:
        return None
    return (
        f"stragglers.carry = true adds a late update to a later round, and {method.called('algorithm')} sends"
        f' something else in each; {DROP}, or set [algorithm] name = "fedavg"'
    )


def a_late_update_comes_alone(method: Method) -> str | None:
    """What both ends remember or send beside a change belongs to the round that it was made in."""
    algorithm = method.algorithm
    more = algorithm.personal or algorithm.remembers_factors or not algorithm.server_is_model
    if not carries(method) or not (more or algorithm.needs_equal_weights):
        return None
    return (
        f"stragglers.carry = true adds a late update to a later round, and what {method.called('algorithm')}"
        f" keeps or sends beside the change belongs to the round it was made in; {DROP}, or set [algorithm]"
        ' name = "fedavg"'
    )


def a_late_update_is_of_itself(method: Method) -> str | None:
    """A transform may tie an update to its own round."""
    transform = method.transform
    tied = transform.remember is not None or transform.relative is not None or transform.largest_code > 0
    if not carries(method) or not tied:
        return None
    return (
        f"stragglers.carry = true adds a late update to a later round, and {method.called('transform')} ties"
        " an update to its own, by what it keeps with the client, by the factors that it reads, or by a sum"
        f" of whole numbers; {DROP}, or remove the transform (or set feedback = false for it)"
    )


RULES: tuple[Rule, ...] = (
    noise_needs_a_mean,
    noise_needs_the_update_that_was_checked,
    noise_hides_each_update,
    correlated_noise_needs_the_same_tensors,
    rotation_needs_both_factors,
    new_factors_need_a_whole_step,
    a_factor_at_the_client_needs_its_basis,
    products_need_both_factors,
    a_restart_needs_b,
    side_ranks_need_one_model,
    a_rebase_keeps_no_state,
    cores_need_a_mean,
    cores_need_a_server_without_state,
    memory_outlives_no_rebase,
    memory_outlives_no_new_factors,
    what_was_left_out_outlives_no_new_basis,
    a_server_may_need_a_mean,
    an_algorithm_may_need_a_mean,
    an_algorithm_may_need_exact_updates,
    noise_needs_everybody,
    a_late_update_needs_a_mean,
    a_late_update_outlives_no_rebase,
    a_late_update_needs_the_same_tensors,
    a_late_update_comes_alone,
    a_late_update_is_of_itself,
)
"""In the order in which a person hears of them: the first one that is broken is the message."""


def carries(method: Method) -> bool:
    """Whether an update may be part of a later round than it was asked for."""
    return method.stragglers is not None and method.stragglers.carry


def trains_a_alone(algorithm: Algorithm, round: int) -> bool:
    """Whether of a module's two factors only A is trained in this round."""
    a, b = (algorithm.trainable(name, round) for name in FACTORS)
    return a and not b


def sent(algorithm: Algorithm, round: int) -> tuple[bool, ...]:
    """Which of a module's two factors leave a client in this round: A, B."""
    return tuple(algorithm.leaves(name, round) for name in FACTORS)


def sends_one_factor(algorithm: Algorithm, round: int) -> bool:
    """Whether of a module's two factors only one leaves a client in this round."""
    return len(set(sent(algorithm, round))) > 1
