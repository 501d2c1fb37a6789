"""What the rehearsal is for is caught: each fault that would show on a GPU alone raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)

from shepherd.model import lora_layers
from shepherd.training import loss, stack, tune
from tests.gpu_rehearsal.fake_gpu import GPU, HostReadError, WaitingCopyError, fake_gpu
from tests.gpu_rehearsal.rehearsing import REHEARSAL, rehearse, step_is_never_read
from tests.model import bases

pytestmark = REHEARSAL

FAULTS: dict[str, tuple[type[BaseException], Callable[[Tensor], Any]]] = {
    "two devices": (FakeTensorDeviceMismatchError, lambda x: x + torch.ones(3, 2)),
    "real values": (
        FakeTensorDeviceMismatchError,
        lambda x: x @ torch.from_numpy(np.ones((2, 2), "f4")),
    ),
    "float": (DataDependentOutputException, lambda x: float(x.sum())),
    "item": (DataDependentOutputException, lambda x: x.sum().item()),
    "tolist": (DataDependentOutputException, lambda x: x.tolist()),
    "if": (DataDependentOutputException, lambda x: 1 if x.isfinite().all() else 0),
    "a boolean mask": (DynamicOutputShapeException, lambda x: x[x > 0]),
    "nonzero": (DynamicOutputShapeException, lambda x: x.nonzero()),
    "bincount": (DynamicOutputShapeException, lambda x: x.long().flatten().bincount()),
    "a copy to the host": (HostReadError, lambda x: x.cpu()),
    "a copy that waits": (WaitingCopyError, lambda x: torch.ones(3).to(GPU)),
    "a new tensor of values": (WaitingCopyError, lambda x: torch.tensor([1.0], device=GPU)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_raises(fault: str) -> None:
    kind, act = FAULTS[fault]
    with fake_gpu() as here:
        here.copies.strict = True
        x = torch.empty(3, 2, device=GPU)
        with pytest.raises(kind):
            act(x)


BROKEN = {
    "a loss that is read": (
        DataDependentOutputException, tune, "capped", lambda every, nats: every * float(every.sum())
    ),
    "a norm that is read": (
        DataDependentOutputException, stack, "clip", lambda stack, norm: stack.grads.norm().item()
    ),
    "a scale on the processor": (
        FakeTensorDeviceMismatchError, stack, "clip",
        lambda stack, norm: stack.grads.mul_(torch.ones(stack.grads.shape))
    ),
    "a mask of tokens": (
        DynamicOutputShapeException, tune, "capped", lambda every, nats: every[every > 0]
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_part_of_the_trainer_is_caught(fault: str, tmp_path, monkeypatch) -> None:
    kind, owner, name, broken = BROKEN[fault]
    base = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path), rank=8)
    monkeypatch.setattr(owner, name, broken)
    with step_is_never_read(), pytest.raises(kind):
        rehearse(base)


@pytest.mark.parametrize(
    ("function", "clients"), [(loss._ChunkedLoss, 2), (lora_layers._Grouped, 2), (lora_layers._Up, 1)]
)
def test_a_broken_backward_of_our_own_is_caught(function, clients, tmp_path, monkeypatch) -> None:
    base = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path), rank=8)
    honest = function.backward

    def reading(ctx: Any, *grads: Tensor) -> Any:
        grads[0].sum().item()
        return honest(ctx, *grads)

    monkeypatch.setattr(function, "backward", staticmethod(reading))
    with step_is_never_read(), pytest.raises(DataDependentOutputException):
        rehearse(base, clients=clients)


def test_the_loss_that_is_read_after_the_last_step_is_seen(tmp_path) -> None:
    base = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path), rank=8)
    with pytest.raises(
        DataDependentOutputException
    ):  # the reading after the last step, which is not replaced
        rehearse(base)
