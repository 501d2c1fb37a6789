"""Steps of tuning on the GPU that is not there, for all the tests of the rehearsal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch

from shepherd.algorithms import fedavg
from shepherd.core import Algorithm, Broadcast
from shepherd.model import lora
from shepherd.model.base import Base, tuning_attention
from shepherd.settings import TuningTable
from shepherd.training import stack, tune
from shepherd.training.example_privacy import ExamplePrivacy
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from tests.gpu_rehearsal.fake_gpu import CUDA_BUILD, HOPPER, WHY_SKIPPED, FakeGPU, fake_gpu, on_gpu
from tests.model import bases

REHEARSAL = [pytest.mark.gpu_rehearsal, pytest.mark.skipif(not CUDA_BUILD, reason=WHY_SKIPPED)]
STEPS, PREFIX = 2, 20


@contextmanager
def step_is_never_read() -> Iterator[mock.Mock]:
    """The loss is not read by the clock; yields what counts its readings."""
    with (
        mock.patch.object(tune, "REPORT_INTERVAL_S", 1e9),
        mock.patch.object(tune, "_mean", return_value=0.0) as read,
    ):
        yield read


def rehearse(
    base: Base,
    *,
    clients: int = 2,
    training: LocalTraining = DEFAULT_TRAINING,
    algorithm: Algorithm = fedavg.ALGORITHM,
    privacy: ExamplePrivacy | None = None,
    capability: tuple[int, int] = HOPPER,
) -> tuple[FakeGPU, torch.Tensor]:
    """Run all optimiser steps of some visits; the base's weights are gone afterwards."""
    adapter = base.zero
    data = [bases.beginning_alike(bases.tokens(k, [12, 20, 33]), PREFIX) for k in range(clients)]
    visits = [
        tune.Visit(client=f"client-{k}", data=own, batches=[np.arange(3), np.arange(2)])
        for k, own in enumerate(data)
    ]
    job = tune.Job(
        broadcast=Broadcast(round=0, adapter=adapter, seed=0),
        algorithm=algorithm,
        visits=visits,
        tuning=TuningTable(),
        learning_rate=1e-3,
        micro_batch_tokens=4096,
        training=training,
        privacy=privacy,
    )
    with fake_gpu(capability) as here:
        there = on_gpu(base)
        adapters = stack.build([adapter] * clients, lambda name: True, there.device)
        lora.bind_adapters(there.model, there.targets, adapters.all)
        here.copies.count, here.copies.strict = 0, True
        with tuning_attention(there):
            sums = tune._run(there, adapters, job, {}, [], lambda progress: None)
    return here, sums
