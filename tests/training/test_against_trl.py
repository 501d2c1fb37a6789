"""Preference objectives against TRL's trainer: the same loss and gradients, of the same batch and adapter."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.model import bases
from tests.model.in_peft import in_peft, peft_gradients

from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Broadcast
from shepherd.data.tokens import Tokens
from shepherd.settings import TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING
from shepherd.training.objective import Objective
from shepherd.training.objectives import dpo, ipo

PAIRS = 5


def rows() -> list[dict[str, str]]:
    rng = np.random.default_rng(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{n}" for n in rng.integers(4, bases.VOCABULARY, rng.integers(low, high)))

    return [
        {"prompt": f"{words(2, 20)} ", "chosen": words(1, 6), "rejected": words(1, 9)} for _ in range(PAIRS)
    ]


def trainer(model: Any, tokenizer: Any, folder: Path, loss: str, beta: float) -> Any:
    import datasets
    import trl

    # TRL keeps a copy of an adapter that is trained further, as the reference; here it is the base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trl.DPOTrainer(
            model=model,
            args=trl.DPOConfig(
                output_dir=str(folder),
                beta=beta,
                loss_type=[loss],
                per_device_train_batch_size=PAIRS,
                report_to=[],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_dropout=True,
            ),
            train_dataset=datasets.Dataset.from_list(rows()),
            processing_class=tokenizer,
        )
    return made


def as_pairs(batch: dict[str, torch.Tensor]) -> Tokens:
    """TRL's batch, all chosen answers before all rejected ones, as pairs one after another."""
    mask, trained = batch["attention_mask"].bool(), batch["completion_mask"].bool()
    order = [place for pair in range(PAIRS) for place in (pair, PAIRS + pair)]
    ids = [batch["input_ids"][place][mask[place]].numpy().astype(np.int32) for place in order]
    return Tokens(
        ids=np.concatenate(ids),
        loss_mask=np.concatenate([trained[place][mask[place]].numpy() for place in order]),
        offsets=np.cumsum([0, *map(len, ids)]),
    )


def ours(
    base: Any, objective: Objective, data: Tokens, adapter: Adapter, reference: Adapter | None
) -> tuple[float, dict[str, np.ndarray]]:
    """The reported loss of a step over all pairs, and its gradient."""
    caught: dict[str, np.ndarray] = {}

    def catch(name, grad, *rest):
        caught[name] = grad[0].numpy().copy()
        return grad

    (result,) = bases.tuned(
        base,
        Broadcast(round=0, adapter=adapter, seed=0),
        replace(fedavg.ALGORITHM, correct=catch),
        [tune.Visit(client="ann", data=data, batches=[np.arange(len(data))])],
        TuningTable(),
        micro_batch_tokens=40,  # several passes a step
        learning_rate=0.01,
        training=DEFAULT_TRAINING._replace(objective=objective),
        reference=reference,
    )
    assert result.report.examples == PAIRS
    return result.report.loss, caught


OBJECTIVES = {
    "sigmoid": lambda beta: dpo.build(dpo.Config(beta=beta)),
    "ipo": lambda beta: ipo.build(ipo.Config(beta=beta)),
}


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.1), ("sigmoid", 2.0), ("ipo", 0.3)])
@pytest.mark.parametrize("from_start", [False, True], ids=["base", "start"])
def test_loss_and_gradients_are_those_of_trl(llama, tmp_path, loss, beta, from_start) -> None:
    """The reference is the base alone, or the adapter that the training starts from."""
    start, now = (bases.random_adapter(llama, seed) for seed in (3, 4))
    model = in_peft(llama, start if from_start else now, tmp_path / "adapter")
    theirs = trainer(model, llama.tokenizer, tmp_path / "out", loss, beta)
    if from_start:  # the copy is there; move the one that is trained
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".default." in name:
                    parameter.copy_(torch.from_numpy(now[name.replace(".default", "")].copy()))
    else:
        model.delete_adapter("ref")
    batch = next(iter(theirs.get_train_dataloader()))
    model.eval()
    model.zero_grad()
    expected = theirs.compute_loss(model, dict(batch))
    expected.backward()
    found, gradients = ours(
        llama, OBJECTIVES[loss](beta), as_pairs(batch), now, start if from_start else None
    )
    assert found == pytest.approx(expected.item(), rel=2e-4)
    wanted = {name: grad for name, grad in peft_gradients_of(model).items() if name in gradients}
    assert wanted.keys() == gradients.keys()
    for name, grad in wanted.items():
        tolerance = 2e-6 + 5e-4 * np.abs(grad).max()
        np.testing.assert_allclose(gradients[name], grad, atol=tolerance, err_msg=name)


def peft_gradients_of(model: Any) -> dict[str, np.ndarray]:
    for name, parameter in model.named_parameters():
        if ".ref." in name:
            assert parameter.grad is None
            parameter.grad = torch.zeros_like(parameter)
    return peft_gradients(model)
