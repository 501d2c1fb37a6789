"""FedSA-LoRA: A is shared and averaged, and each client keeps its own B.

Client k trains A and B_k from the mean of A and the B_k of its last visit, and sends A alone; the server
takes the mean of A, which is exact since it is one factor. The model of client k is W_0 + s B_k A: there is
one model for each client and none at the server. A client that was never asked has B_k = 0, the base alone.
Guo et al., arXiv 2410.01463.

A client sends half of the parameters. A is common to data that differ in their labels, and B is not (section
3 of the paper); where all clients have data of one kind, a common B learns from more examples.
"""

from __future__ import annotations

from dataclasses import replace

from shepherd.algorithms import fedavg
from shepherd.config import Table
from shepherd.core import Adapter, Algorithm, Broadcast, ClientInfo, LocalResult, Payload
from shepherd.core.adapter import is_a


class Config(Table):
    """FedSA-LoRA has no keys."""


def shared(name: str, round: int) -> bool:
    """Share A alone.

    >>> shared("q_proj.lora_A.weight", 0), shared("q_proj.lora_B.weight", 0)
    (True, False)
    """
    return is_a(name)


def start(broadcast: Broadcast, memory: Payload, client: ClientInfo) -> Adapter:
    """Start from A as it was sent, and B as the client left it."""
    return Adapter({**broadcast.adapter, **memory}) if memory else broadcast.adapter


def remember(memory: Payload, broadcast: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
    """Keep B."""
    own = {name: tensor for name, tensor in result.local.items() if not shared(name, broadcast.round)}
    return Payload(own), Payload()


def build(config: Config) -> Algorithm:
    """Build the algorithm that shares A and keeps B."""
    return replace(
        fedavg.ALGORITHM,
        start=start,
        shared=shared,
        remember=remember,
        personal=True,
        server_is_model=False,
    )
