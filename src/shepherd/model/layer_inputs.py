"""Inputs of the adapted linear modules of a base for given tokens, and which modules share one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shepherd.core import Payload
from shepherd.model import lora, pass_plan
from shepherd.model.base import Base, hidden_states, tuning_attention

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

    _bind(base, adapter)
    with _hooks(base.model, list(linear), note):
        _pass(base, pass_plan.padded(*PROBE.shape, 0), PROBE, None)
    return tuple(tuple(group) for group in found.values())


def inputs(base: Base, adapter: Payload, rows: NDArray[np.int64], target: lora.Target) -> NDArray[np.float32]:
    """What a linear target reads in a pass over rows (n, tokens) under one adapter: (n, tokens, in)."""
    each = max(1, PASS_TOKENS // max(1, rows.shape[1]))
    parts = [np.zeros((0, target.inputs), np.float32)]
    with _reading(base, adapter, target) as read:
        for start in range(0, len(rows), each):
            some = rows[start : start + each]
            plan = pass_plan.padded(len(some), rows.shape[1], 0)
            parts.append(read(plan, some, None))
    return np.concatenate(parts).reshape(len(rows), rows.shape[1], target.inputs)


def continued(
    base: Base,
    adapter: Payload,
    prefixes: NDArray[np.int64],
    tokens: NDArray[np.int64],
    target: lora.Target,
) -> NDArray[np.float32]:
    """What a linear target reads for each token (n,) right after each prefix (p, m): (p, n, in).

    A packed base computes a prefix once, for all tokens together.
    """
    (count, length), size = prefixes.shape, len(tokens)
    if not base.packed:
        rows = np.concatenate(
            [np.repeat(prefixes, size, axis=0), np.tile(tokens, count)[:, None]], axis=1, dtype=np.int64
        )
        return inputs(base, adapter, rows, target)[:, -1].reshape(count, size, -1)
    before = min(1, length)  # spans of a prefix
    lengths = [length] * before + [1] * size
    parents = [-1] * before + [before - 1] * size
    segment = pass_plan.Segment(adapter=0, start=0, stop=length + size)
    plan = pass_plan.packed(lengths, [segment], base.device, parents=parents)
    places = pass_plan.positions(lengths, parents)
    with _reading(base, adapter, target) as read, tuning_attention(base):
        found = [read(plan, np.concatenate([prefix, tokens]), places)[length:] for prefix in prefixes]
    return np.stack(found) if found else np.zeros((0, size, target.inputs), np.float32)


Read = Callable[[pass_plan.PassPlan, NDArray[np.int64], NDArray[np.int64] | None], NDArray[np.float32]]


@contextmanager
def _reading(base: Base, adapter: Payload, target: lora.Target) -> Iterator[Read]:
    """A function `(plan, ids, positions) -> what the target reads, (tokens, in)`."""
    found: list[NDArray[np.float32]] = []

    def note(name: str, x: Tensor) -> None:
        found.append(x.float().flatten(0, -2).cpu().numpy())
        raise _Reached

    def read(
        plan: pass_plan.PassPlan, ids: NDArray[np.int64], positions: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        with suppress(_Reached):
            _pass(base, plan, ids, positions)
        return found.pop()

    _bind(base, adapter)
    with _hooks(base.model, [target.module], note):
        yield read


def _bind(base: Base, adapter: Payload) -> None:
    lora.bind_adapters(base.model, base.targets, lora.stacked([adapter], base.device))


def _pass(
    base: Base, plan: pass_plan.PassPlan, ids: NDArray[np.int64], positions: NDArray[np.int64] | None
) -> None:
    places = None if positions is None else torch.from_numpy(positions).to(base.device)
    with torch.no_grad(), pass_plan.use_plan(plan):
        hidden_states(base, torch.from_numpy(ids.astype(np.int64)).to(base.device), places)


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
