"""Tuning steps and answers of every architecture of the tests, as if on a GPU."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from shepherd.model import attention, generate, lora_layers
from shepherd.model.base import Base
from shepherd.training import local
from shepherd.training.example_privacy import ExamplePrivacy
from shepherd.training.optimisers import sgd
from tests.gpu_rehearsal.fake_gpu import AMPERE, BLACKWELL, GPU, HOPPER, WaitingCopyError, fake_gpu, on_gpu
from tests.gpu_rehearsal.rehearsing import REHEARSAL, STEPS, rehearse, step_is_never_read
from tests.model import bases

pytestmark = REHEARSAL
KINDS = {**bases.CONFIGS, **bases.MIXTURES}
EXPLICIT = ("gemma2", "gpt_oss")  # soft caps and sinks, which the variable-length kernel lacks


def loaded(kind: str, folder: Path, **more: object) -> Base:
    return bases.load(bases.save(KINDS[kind], folder), rank=8, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_of_a_visit_wait_for_nothing_and_send_one_copy_a_pass(kind: str, tmp_path: Path) -> None:
    base = loaded(kind, tmp_path)
    with (
        step_is_never_read() as read,
        mock.patch.object(attention, "varlen_attention", wraps=attention.varlen_attention) as varlen,
        mock.patch.object(lora_layers, "grouped_lora", wraps=lora_layers.grouped_lora) as grouped,
    ):
        here, sums = rehearse(base)
    assert sums.device == GPU
    assert here.copies.count == 1 + STEPS  # the learning rates, and then each step's only pass
    assert read.call_count == 1  # after the last step
    assert here.leaves == STEPS * len(base.shapes)  # each factor got a gradient in each step
    assert (varlen.call_count == 0) == (kind in EXPLICIT)
    assert grouped.call_count > 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_client_alone_takes_no_grouped_product(kind: str, tmp_path: Path) -> None:
    with step_is_never_read(), mock.patch.object(lora_layers, "grouped_lora") as grouped:
        here, _ = rehearse(loaded(kind, tmp_path), clients=1)
    assert grouped.call_count == 0
    assert here.copies.count == 1 + STEPS


@pytest.mark.parametrize(("capability", "takes"), [(AMPERE, False), (HOPPER, True), (BLACKWELL, True)])
def test_grouped_products_are_taken_where_their_kernel_waits_for_nothing(
    capability: tuple[int, int], takes: bool, tmp_path: Path
) -> None:
    with (
        step_is_never_read(),
        mock.patch.object(lora_layers, "grouped_lora", wraps=lora_layers.grouped_lora) as grouped,
    ):
        here, _ = rehearse(loaded("llama", tmp_path), capability=capability)
    assert (grouped.call_count > 0) == takes
    assert here.copies.count == 1 + STEPS


def test_dropout_draws_on_the_gpu(tmp_path: Path) -> None:
    with step_is_never_read():
        rehearse(loaded("llama", tmp_path, dropout=0.1))


def test_sgd_steps_there(tmp_path: Path) -> None:
    training = local.DEFAULT_TRAINING._replace(optimiser=sgd.build(sgd.Config(momentum=0.9)))
    with step_is_never_read():
        rehearse(loaded("llama", tmp_path), training=training)


def test_examples_clipped_one_by_one_wait_only_for_the_noise(tmp_path: Path) -> None:
    """Noise is drawn by the operating system's generator, so it comes from the host in each step."""
    base, privacy = loaded("llama", tmp_path), ExamplePrivacy(norm=1.0, noise=1.0)
    with (
        step_is_never_read(),
        mock.patch("shepherd.training.example_privacy.ClippedSums.release"),
        mock.patch.object(lora_layers, "_add_by_example", wraps=lora_layers._add_by_example) as added,
        mock.patch.object(lora_layers, "grouped_lora", wraps=lora_layers.grouped_lora) as grouped,
    ):
        here, _ = rehearse(base, privacy=privacy)
    assert here.copies.count == 1 + STEPS
    assert added.call_count == STEPS * len(base.shapes)  # the rows of each factor are written in each step
    assert grouped.call_count == 0


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2", "mixtral"])
def test_answers_read_their_tokens_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """Each row's token once, all of a step in one copy; whether a row has ended, the host knows by itself.

    Not seen here: transformers asks once a pass whether the mask has padding, and skips that for tensors
    without values, as for those that are traced.
    """
    base = loaded(kind, tmp_path)
    adapter = bases.random_adapter(base, 1)
    with fake_gpu() as here:
        there = on_gpu(base)
        here.copies.answers_reads = True
        for tokens in (2, 5):
            here.copies.reads = 0
            out = generate.answer(there, [adapter, None], [[5, 6, 7], [8, 9]], tokens, [2])
            assert [[len(row) for row in rows] for rows in out] == [[tokens] * 2] * 2
            assert here.copies.reads == 4 * tokens  # each read value is 0, and so ends no answer


def test_in_float32_the_buckets_are_used(tmp_path: Path) -> None:
    with fake_gpu():
        q = torch.empty(4, 2, 8, device=GPU)
        assert not attention.varlen_takes(q, q)
        assert attention.varlen_takes(q.bfloat16(), q.bfloat16())
        wide = torch.empty(4, 2, 512, device=GPU, dtype=torch.bfloat16)
        assert not attention.varlen_takes(wide, wide)


def test_adapted_experts_wait_for_the_router_in_each_layer(tmp_path: Path) -> None:
    """Known and documented: their products are cut by counts that the host reads (docs/performance.md)."""
    base = loaded("mixtral", tmp_path, target_parameters=list(bases.STACKS))
    with step_is_never_read(), pytest.raises((DynamicOutputShapeException, WaitingCopyError)):
        rehearse(base)
