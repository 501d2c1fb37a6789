"""The chunked loss against cross-entropy over all the logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.model import bases
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import tiny
from shepherd.model import base as loading
from shepherd.model.base import Base
from shepherd.settings import AdapterTable, ModelTable
from shepherd.training import loss, score

M = 53  # four chunks of 16, 16, 16 and 5


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_VALUES", 1)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def base(request, tmp_path_factory) -> Base:
    return bases.load(bases.save(bases.CONFIGS[request.param], tmp_path_factory.mktemp(request.param)))


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, 32, generator=generator)
    targets = torch.randint(0, bases.VOCABULARY, (M,), generator=generator)
    return hidden, targets, torch.rand(M, generator=generator)


def whole(base: Base, hidden: Tensor, targets: Tensor) -> Tensor:
    scores = hidden @ base.model.get_output_embeddings().weight.T
    if base.model.config.model_type == "gemma2":
        scores = 30 * torch.tanh(scores / 30)  # arXiv 2408.00118, section 2
    return F.cross_entropy(scores, targets, reduction="none")


def test_the_chunks_losses_are_those_of_the_whole(base: Base) -> None:
    hidden, targets, weights = drawn()
    expected = whole(base, hidden, targets)
    torch.testing.assert_close(loss.token_losses(base, hidden, targets), expected)
    total, every = loss.weighted_loss(base, hidden, targets, weights)
    torch.testing.assert_close(every, expected)
    torch.testing.assert_close(total, (expected * weights).sum())


def test_the_gradient_is_that_of_the_whole(base: Base) -> None:
    hidden, targets, weights = drawn()
    hidden.requires_grad_()
    (expected,) = torch.autograd.grad(3 * (whole(base, hidden, targets) * weights).sum(), hidden)
    total, every = loss.weighted_loss(base, hidden, targets, weights)
    assert not every.requires_grad
    (got,) = torch.autograd.grad(3 * total, hidden)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_leaves_the_other_gradients_alone(base: Base) -> None:
    hidden, targets, weights = drawn()
    hidden.requires_grad_()
    before, _ = loss.weighted_loss(base, hidden, targets, weights)
    (clean,) = torch.autograd.grad(before, hidden)
    with torch.no_grad():
        hidden[20] = torch.nan
    after, _ = loss.weighted_loss(base, hidden, targets, weights)
    (poisoned,) = torch.autograd.grad(after, hidden)
    others = torch.arange(M) != 20
    assert poisoned[20].isnan().all()
    assert poisoned[others].equal(clean[others])


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "hy_v4"])
def test_states_in_another_dtype_than_the_heads_are_scored_as_the_model_itself_would(kind, tmp_path) -> None:
    folder = tiny.save(tiny.config(kind), tmp_path)
    table = ModelTable(base=str(folder), dtype="bfloat16")
    base = loading.load(table, AdapterTable(rank=2), device="cpu", longest=20)
    data = bases.tokens(0, [9, 14])
    ours = score.losses(base, [base.zero], data, micro_batch=100)[0]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for i, found in enumerate(ours):
        ids, trained = (torch.from_numpy(part.copy()) for part in data.example(i))
        with torch.no_grad():
            scores = plain(input_ids=ids[None].long(), use_cache=False).logits[0].float()
        wanted = trained[1:]
        own = F.cross_entropy(scores[:-1][wanted], ids[1:][wanted].long(), reduction="sum")
        assert found == pytest.approx(float(own), rel=0.02)
    hidden = torch.randn(5, tiny.SIZES["hidden_size"], requires_grad=True)  # float32, as those states are
    total, _ = loss.weighted_loss(base, hidden, torch.arange(5), torch.ones(5))
    total.backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_what_is_no_number_counts_as_the_cap() -> None:
    losses = torch.tensor([1.0, 30.0, float("nan"), float("inf")])
    assert loss.capped(losses, 20.0).tolist() == [1.0, 20.0, 20.0, 20.0]
    assert loss.capped(losses, float("inf")) is losses
