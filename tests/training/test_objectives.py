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
from shepherd.training.objectives import dpo, ipo
from shepherd.training.packed_batch import pack_batch

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


def log_probabilities(pairs: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-40, 0), min_size=2 * pairs, max_size=2 * pairs)


OBJECTIVES = {
    "dpo": dpo.build(dpo.Config(beta=0.3)),
    "smoothed": dpo.build(dpo.Config(beta=0.7, label_smoothing=0.2)),
    "ipo": ipo.build(ipo.Config(beta=0.4)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    policy=log_probabilities(3),
    reference=log_probabilities(3),
    targets=st.lists(st.integers(1, 9), min_size=6, max_size=6),
)
def test_weights_are_the_slopes_of_the_mean_loss(name, policy, reference, targets) -> None:
    """By a difference quotient: a cross-entropy is minus a log-probability."""
    objective = OBJECTIVES[name]

    def scored(own: np.ndarray) -> Scored:
        return Scored(targets=np.array(targets), policy=own, reference=np.array(reference))

    weights = objective.weights(scored(np.array(policy)))
    for place in range(6):
        step = np.zeros(6)
        step[place] = 1e-4
        up, down = (objective.losses(scored(np.array(policy) + s)).mean() for s in (step, -step))
        assert -weights[place] == pytest.approx((up - down) / 2e-4, rel=1e-4, abs=1e-6)


def test_dpo_at_the_reference_and_far_from_it() -> None:
    """By hand: log 2 at a margin of 0, and no overflow at a large one."""
    objective = dpo.build(dpo.Config(beta=2.0))
    step = Scored(
        targets=np.array([3, 2, 1, 1]),
        policy=np.array([-4.0, -6.0, -1.0, -1001.0]),
        reference=np.array([-4.0, -6.0, -2.0, -2.0]),
    )
    assert objective.margins(step).tolist() == [0.0, 2000.0]
    assert objective.losses(step) == pytest.approx([np.log(2), 0.0])
    assert objective.weights(step) == pytest.approx([0.5, -0.5, 0.0, 0.0])
    smoothed = dpo.build(dpo.Config(beta=2.0, label_smoothing=0.25))
    assert smoothed.losses(step) == pytest.approx([np.log(2), 500.0])
    assert smoothed.weights(step) == pytest.approx([0.25, -0.25, -0.25, 0.25])


def tuned_pairs(base, clients: list[str], micro_batch: int = 48) -> dict[str, tune.TuningResult]:
    """Two steps of two pairs for each client, whose pairs begin alike."""
    sent = Broadcast(round=0, adapter=bases.random_adapter(base, 3), seed=0)
    visits = [
        tune.Visit(
            client=name,
            data=bases.beginning_alike(bases.tokens(ord(name), LENGTHS), 17 + ord(name) % 3),
            batches=[np.arange(4), np.arange(4, 8)],
        )
        for name in clients
    ]
    found = bases.tuned(
        base,
        sent,
        fedavg.ALGORITHM,
        visits,
        TuningTable(),
        micro_batch_tokens=micro_batch,
        learning_rate=0.01,
        training=DEFAULT_TRAINING._replace(objective=OBJECTIVES["dpo"]),
        reference=bases.random_adapter(base, 5),
    )
    return {result.client: result for result in found}


def test_clients_of_a_stack_do_not_reach_each_other_through_their_pairs(llama) -> None:
    """Law 1: in any order the same bits, and alone the same within rounding."""
    both, turned = tuned_pairs(llama, ["a", "b"]), tuned_pairs(llama, ["b", "a"])
    for name in "ab":
        assert both[name].delta == turned[name].delta
        assert both[name].report == turned[name].report
        alone = tuned_pairs(llama, [name])[name]
        for tensor, value in alone.delta.items():
            np.testing.assert_allclose(
                both[name].delta[tensor], value, atol=3e-4 * np.abs(value).max() + 1e-6
            )
        assert both[name].report.loss == pytest.approx(alone.report.loss, rel=1e-4)
        assert both[name].report.examples == 4


def test_how_pairs_are_laid_out_changes_nothing(llama) -> None:
    one, other = (
        tuned_pairs(llama, ["a"], micro_batch=30)["a"],
        tuned_pairs(llama, ["a"], micro_batch=4096)["a"],
    )
    for tensor, value in one.delta.items():
        np.testing.assert_allclose(other.delta[tensor], value, atol=1e-3 * np.abs(value).max() + 1e-6)


def test_both_answers_of_a_pair_are_in_one_row_so_that_their_prompt_is_computed_once(llama) -> None:
    data = bases.beginning_alike(bases.tokens(0, LENGTHS), 20)
    visit = tune.Visit(client="a", data=data, batches=[np.array([4, 5, 0, 1, 6, 7])])
    rows = [row for group in tune.passes([visit], 0, 64, group=2) for row in group]
    assert len(rows) == 3
    for row in rows:
        assert row.examples[1] == row.examples[0] + 1
        batch = pack_batch([data], [row], llama.device, training=True)
        assert len(batch.ids) == row.tokens - 20
    apart = [row for group in tune.passes([visit], 0, 64, packed=False, group=2) for row in group]
    assert sorted(i for row in apart for i in row.examples.tolist()) == [0, 1, 4, 5, 6, 7]
