"""Scores against PEFT's loss of each example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.model import bases
from tests.model.in_peft import in_peft, peft_loss

from shepherd.core import Adapter
from shepherd.data import shared_prefix
from shepherd.errors import AdapterError
from shepherd.training import score, tune

DATA = bases.tokens(3, [9, 2, 13, 3, 22, 5])  # the first token of a short one predicts


def test_each_examples_sum_is_pefts(llama, tmp_path) -> None:
    adapter = bases.random_adapter(llama, 1)
    model = in_peft(llama, adapter, tmp_path)
    counts = tune.predictions(DATA)
    expected = [peft_loss(model, DATA.take([i])).item() * counts[i] for i in range(len(DATA))]
    (sums,) = score.losses(llama, [adapter], DATA, micro_batch=25)
    np.testing.assert_allclose(sums, expected, rtol=1e-5)


def test_a_prefix_that_examples_share_changes_no_score(llama, monkeypatch) -> None:
    data, adapters = bases.beginning_alike(DATA, 20), [bases.random_adapter(llama, seed) for seed in range(2)]
    shared = score.losses(llama, adapters, data, micro_batch=200)
    monkeypatch.setattr(shared_prefix, "MIN_PREFIX_TOKENS", 999)
    np.testing.assert_allclose(shared, score.losses(llama, adapters, data, micro_batch=200), rtol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 30, 10_000])
def test_adapters_together_score_as_each_alone_whatever_the_pass(llama, micro_batch) -> None:
    adapters = [bases.random_adapter(llama, seed) for seed in range(3)]
    together = score.losses(llama, adapters, DATA, micro_batch=micro_batch)
    assert together.shape == (3, len(DATA))
    for adapter, row in zip(adapters, together, strict=True):
        np.testing.assert_allclose(row, score.losses(llama, [adapter], DATA, micro_batch=40)[0], rtol=1e-5)
    assert np.abs(together[0] - together[1]).min() > 1e-3


def test_scoring_drops_nothing_out(llama, dropping) -> None:
    adapter = bases.random_adapter(llama, 1)
    plain, other = (score.losses(base, [adapter], DATA, micro_batch=99) for base in (llama, dropping))
    np.testing.assert_allclose(plain, other, rtol=1e-6)


def test_no_example_scores_nothing(llama) -> None:
    assert score.losses(llama, [bases.random_adapter(llama, 1)], DATA.take([]), micro_batch=9).shape == (1, 0)


def test_an_adapter_of_another_base_is_refused(llama) -> None:
    with pytest.raises(AdapterError, match="is missing in an adapter for base"):
        score.losses(llama, [Adapter()], DATA, micro_batch=99)


def test_a_token_counts_no_more_than_the_cap(llama) -> None:
    data, adapter = DATA, bases.random_adapter(llama, 1)
    (whole,) = score.losses(llama, [adapter], data, micro_batch=100)
    capped = {
        cap: score.losses(llama, [adapter], data, micro_batch=100, cap_nats=cap)[0] for cap in (0.1, 1e6)
    }
    assert np.array_equal(capped[1e6], whole)
    assert capped[0.1] == pytest.approx(0.1 * tune.predictions(data))  # no token is that sure


@pytest.mark.parametrize("micro_batch", [1, 30, 10_000])
def test_tokens_scored_one_by_one_are_those_of_the_whole_distribution(llama, tmp_path, micro_batch) -> None:
    """Against PEFT's logits: log-probability, and mean and deviation over the vocabulary at each place."""
    adapters = [bases.random_adapter(llama, seed) for seed in (1, 2)]
    found = score.token_scores(llama, adapters, DATA, micro_batch=micro_batch)
    sums = score.losses(llama, adapters, DATA, micro_batch=99)
    assert found.offsets.tolist() == [0, *np.cumsum(tune.predictions(DATA)).tolist()]
    for k, adapter in enumerate(adapters):
        model = in_peft(llama, adapter, tmp_path / str(k))
        for i in range(len(DATA)):
            ids, trained = DATA.example(i)
            own = slice(found.offsets[i], found.offsets[i + 1])
            assert -found.logs[k, own].sum() == pytest.approx(sums[k, i], rel=1e-5)
            with torch.no_grad():
                logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double()
            logs = logits.log_softmax(-1).numpy()[trained[1:]]
            shares = np.exp(logs)
            mean = (shares * logs).sum(-1)
            deviation = np.sqrt((shares * logs**2).sum(-1) - mean**2)
            np.testing.assert_allclose(found.means[k, own], mean, rtol=1e-4)
            np.testing.assert_allclose(found.deviations[k, own], deviation, rtol=1e-3)


def test_tokens_of_a_base_that_cannot_be_packed_are_the_same(llama, monkeypatch) -> None:
    adapters = [bases.random_adapter(llama, seed) for seed in (1, 2)]
    packed = score.token_scores(llama, adapters, DATA, micro_batch=60)
    monkeypatch.setattr(type(llama), "packed", property(lambda base: False))
    padded = score.token_scores(llama, adapters, DATA, micro_batch=60)
    for name in ("logs", "means", "deviations"):
        np.testing.assert_allclose(getattr(packed, name), getattr(padded, name), rtol=1e-3, atol=1e-5)
