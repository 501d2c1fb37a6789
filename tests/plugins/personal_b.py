"""Shared A, personal B: FedSA-LoRA's division of the factors (Guo et al., arXiv 2410.01463)."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core import Adapter, Algorithm, Broadcast, ClientInfo, LocalResult, Payload


class Config(Table):
    """Nothing to set."""


def is_shared(name: str, round: int) -> bool:
    """A alone."""
    return "lora_A" in name.split(".")


def start(broadcast: Broadcast, memory: Payload, client: ClientInfo) -> Adapter:
    """A as it was sent, B as the client left it."""
    return Adapter({**broadcast.adapter, **memory})


def remember(memory: Payload, broadcast: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
    """The client keeps its B."""
    own = {name: tensor for name, tensor in result.local.items() if not is_shared(name, broadcast.round)}
    return Payload(own), Payload()


def build(config: Config) -> Algorithm:
    """Both factors are trained, and A alone leaves."""
    return Algorithm(start=start, shared=is_shared, remember=remember)
