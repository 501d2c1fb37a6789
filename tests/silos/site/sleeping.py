"""FedAvg that takes its time: a visit that can be caught in the middle."""

from __future__ import annotations

import threading
from dataclasses import replace

from shepherd.algorithms import fedavg
from shepherd.config import Table
from shepherd.core import Algorithm

begun = threading.Event()
slept: list[str] = []


class Config(Table):
    seconds: float = 0.02


def build(config: Config) -> Algorithm:
    def correct(name: str, grad, param, broadcast, memory, step):
        if name.endswith("layers.0.self_attn.q_proj.lora_A.weight"):
            slept.append(name)
            begun.set()
            threading.Event().wait(config.seconds)
        return grad

    return replace(fedavg.ALGORITHM, correct=correct)
