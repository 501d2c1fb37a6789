"""Fed-SB: after a first round, only a small core R of each module is trained and sent.

    W_0 + s Q R A    with A and the orthonormal Q (out, r) frozen, and R (r, r) trained

In the first `warm_up` rounds A and B are trained and averaged as FedAvg does. From then on A stays, B is
written as Q R with Q an orthonormal basis of its columns, and clients send changes of R alone: r^2 numbers
a module, whatever its width. The mean of R is exact, and noise on it is noise on few numbers. Singhal et
al., arXiv 2502.15436.

The paper finds Q and A as singular vectors of the gradient of the whole weights on some examples. Here they
come from the first rounds of LoRA, which need no gradient of (out, in), no data at the server and no rule
of their own; what they cost is that these rounds send whole factors. With `[server] name = "fedsvd"` A is
orthonormal as well, as in the paper, since that keeps the columns of B and the rows of A where they are.

Server optimisers with a state of their own, such as `fedavgm` and `fedadam`, are refused: the state is of
whole factors, so a step would take B out of the columns of Q.

Limits: what the model can learn after the first rounds lies in the columns of that B and the rows of that
A, so ranks should be larger than for LoRA. The broadcast still sends whole factors down. Q is computed
where it is needed, by the same QR of the same broadcast; two kinds of machine agree on it up to rounding.
"""

from __future__ import annotations

from dataclasses import replace

from shepherd.algorithms import fedavg
from shepherd.config import PositiveInt, Table
from shepherd.core import Algorithm
from shepherd.core.adapter import is_a, is_b


class Config(Table):
    warm_up: PositiveInt = 1
    """Rounds of LoRA on whole factors, before the cores alone are trained."""


def build(config: Config) -> Algorithm:
    """Build FedAvg of the cores."""

    def trainable(name: str, round: int) -> bool:
        return round < config.warm_up or not is_a(name)

    def core(name: str, round: int) -> bool:
        return round >= config.warm_up and is_b(name)

    return replace(fedavg.ALGORITHM, trainable=trainable, core=core)
