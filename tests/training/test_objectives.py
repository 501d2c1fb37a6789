"""Local objectives: SFT is the mean over a step's tokens; a preference loss fits the same seam."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.model import bases
from tests.model.in_peft import in_peft

from shepherd.algorithms import fedavg
from shepherd.config import PartTable
from shepherd.core import Broadcast, chain
from shepherd.data.tokens import Tokens
from shepherd.errors import SettingsError
from shepherd.federation.clients import LocalClients
from shepherd.plugins import built
from shepherd.settings import FederationTable, TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING, OBJECTIVE, GivenTraining, local_training
from shepherd.training.objective import Objective, Scored
from shepherd.training.objectives import dpo

NONE = np.zeros(0)
LENGTHS = [9, 7, 13, 6, 8, 11, 5, 10]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_sft_weighs_every_trained_token_of_a_step_alike(targets: list[int]) -> None:
    counts = np.array(targets)
    sft = built(OBJECTIVE, PartTable(name="sft"))
    found = sft.weights(Scored(targets=counts, policy=NONE, reference=NONE))
    assert len(found) == len(targets)
    assert np.dot(found, counts) == pytest.approx(float(counts.sum() > 0))
    assert len(set(found)) == 1


def pair_loss(model: torch.nn.Module, data: Tokens, pairs: int, beta: float) -> torch.Tensor:
    """DPO's loss by its definition, in PEFT, one sequence at a time."""

    def log_probability(example: int) -> torch.Tensor:
        ids, trained = data.example(example)
        tokens = torch.tensor(ids.astype(np.int64))[None]
        scores = torch.log_softmax(model(input_ids=tokens).logits[0, :-1].float(), -1)
        each = scores[torch.arange(len(ids) - 1), tokens[0, 1:]]
        return each[torch.tensor(trained[1:].copy())].sum()

    losses = []
    for pair in range(pairs):
        chosen, rejected = log_probability(2 * pair), log_probability(2 * pair + 1)
        with torch.no_grad(), model.disable_adapter():
            margin = log_probability(2 * pair) - log_probability(2 * pair + 1)
        losses.append(-torch.nn.functional.logsigmoid(beta * (chosen - rejected - margin)))
    return torch.stack(losses).mean()


def gradients(base, data: dict[str, Tokens], sent: Broadcast, beta: float) -> list[dict[str, np.ndarray]]:
    """Each client's gradient in one step over all of its pairs."""
    caught: dict[str, np.ndarray] = {}

    def catch(name, grad, *rest):
        caught[name] = grad.numpy().copy()
        return grad

    visits = [
        tune.Visit(client=client, data=each, batches=[np.arange(len(each))]) for client, each in data.items()
    ]
    bases.tuned(
        base,
        sent,
        replace(fedavg.ALGORITHM, correct=catch),
        visits,
        TuningTable(),
        micro_batch_tokens=24,  # several passes a step
        learning_rate=0.01,
        training=DEFAULT_TRAINING._replace(objective=dpo.build(dpo.Config(beta=beta))),
    )
    return [{name: grad[k] for name, grad in caught.items()} for k in range(len(data))]


@pytest.mark.parametrize("beta", [0.1, 3.0])
def test_a_preference_objectives_gradient_is_that_of_its_definition_in_peft(llama, tmp_path, beta) -> None:
    """Two clients in one stack, whose pairs differ."""
    sent = Broadcast(round=0, adapter=bases.random_adapter(llama, 3), seed=0)
    data = {"ann": bases.tokens(1, LENGTHS[:4]), "bob": bases.tokens(2, LENGTHS)}
    found = gradients(llama, data, sent, beta)
    model = in_peft(llama, sent.adapter, tmp_path)
    for each, client in zip(found, data, strict=True):
        model.zero_grad()
        pair_loss(model, data[client], len(data[client]) // 2, beta).backward()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                grad = parameter.grad.numpy()
                name = name.replace(".default", "")
                tolerance = 2e-6 + 2e-4 * np.abs(grad).max()
                np.testing.assert_allclose(each[name], grad, atol=tolerance, err_msg=name)


def test_groups_are_drawn_whole_and_a_batch_counts_them() -> None:
    local = LocalClients(
        datasets={"ann": bases.tokens(0, [5] * 10)},
        algorithm=fedavg.ALGORITHM,
        transform=chain(),
        tuning=TuningTable(batch_size=2),
        federation=FederationTable(),
        micro_batch_tokens=4096,
        order_seed=1,
        training=DEFAULT_TRAINING._replace(objective=dpo.build(dpo.Config())),
    )
    assert local.info("ann").examples == 5
    steps, position = local.batches("ann", 0)
    assert position == 5
    assert [len(step) for step in steps] == [4, 4, 2]
    pairs = np.concatenate(steps).reshape(-1, 2)
    assert (pairs[:, 1] == pairs[:, 0] + 1).all()
    assert sorted(pairs[:, 0]) == [0, 2, 4, 6, 8]


def test_pairs_are_for_objectives_that_compare_two_answers() -> None:
    assert local_training(TuningTable.model_validate({"objective": {"name": "dpo"}})).paired
    assert not local_training(TuningTable()).paired
    with pytest.raises(SettingsError, match=r'loss_on = "all" trains on prompts.*set tuning.loss_on'):
        local_training(TuningTable.model_validate({"objective": {"name": "dpo"}, "loss_on": "all"}))
    threes = Objective(weights=lambda step: step.policy, group_size=3)
    with pytest.raises(SettingsError, match=r"draws 3 examples together.*in pairs of answers"):
        local_training(TuningTable(), parts=GivenTraining(objective=threes))


@pytest.mark.parametrize("key", ["beta=0.0", "label_smoothing=0.5", "label_smoothing=-0.1", "gamma=1"])
def test_a_wrong_key_of_dpo_is_refused(key: str) -> None:
    name, value = key.split("=")
    with pytest.raises(SettingsError, match=rf"objective 'dpo'.*{name}"):
        built(OBJECTIVE, PartTable(name="dpo", **{name: float(value)}))
