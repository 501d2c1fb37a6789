"""The chunked loss against cross-entropy over all the logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shepherd.model import loss
from shepherd.model.base import Base
from tests.model import bases

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
