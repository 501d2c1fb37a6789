"""Inputs of the adapted linear modules of a base for given tokens, and which modules share one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shepherd.core import Payload
from shepherd.model import lora, pass_plan
from shepherd.model.base import Base, hidden_states

PASS_TOKENS = 4096
PROBE = np.zeros((1, 2), np.int64)


class _Reached(Exception):
    """The module was reached, so the rest of the pass is left out."""


def groups(base: Base, adapter: Payload) -> tuple[tuple[lora.Target, ...], ...]:
    """The linear targets in the order of the pass; those that read the same tensor are in one group.

    In a Llama q_proj, k_proj and v_proj of a layer are one group, and gate_proj and up_proj another.
    """
    linear = {target.module: target for target in base.targets if not target.parameter}
    found: dict[tuple[int, tuple[int, ...]], list[lora.Target]] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def note(name: str, x: Tensor) -> None:
        kept.append(x)
        found.setdefault((x.data_ptr(), tuple(x.shape)), []).append(linear[name])

    with _hooks(base.model, list(linear), note):
        _pass(base, adapter, PROBE)
    return tuple(tuple(group) for group in found.values())


def inputs(base: Base, adapter: Payload, rows: NDArray[np.int64], target: lora.Target) -> NDArray[np.float32]:
    """What a linear target reads in a pass over rows (n, tokens) under one adapter: (n, tokens, in)."""
    parts: list[NDArray[np.float32]] = []

    def note(name: str, x: Tensor) -> None:
        parts.append(x.float().cpu().numpy())
        raise _Reached

    each = max(1, PASS_TOKENS // max(1, rows.shape[1]))
    with _hooks(base.model, [target.module], note):
        for start in range(0, len(rows), each):
            with suppress(_Reached):
                _pass(base, adapter, rows[start : start + each])
    whole = [part.reshape(-1, rows.shape[1], target.inputs) for part in parts]
    return np.concatenate([np.zeros((0, rows.shape[1], target.inputs), np.float32), *whole])


def _pass(base: Base, adapter: Payload, rows: NDArray[np.int64]) -> None:
    lora.bind_adapters(base.model, base.targets, lora.stacked([adapter], base.device))
    plan = pass_plan.padded(len(rows), rows.shape[1], 0)
    with torch.no_grad(), pass_plan.use_plan(plan):
        hidden_states(base, torch.from_numpy(np.array(rows, np.int64)).to(base.device), None)


@contextmanager
def _hooks(model: nn.Module, names: Sequence[str], note: Any) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda module, given: note(name, given[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
