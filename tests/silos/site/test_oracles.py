"""What somebody learns of a site's texts who chooses the adapter and asks a real trainer, again and again.

The adapter makes the base say the same of every place, so that a token's loss tells which token it is: a sum
of losses with one token more, or with one example more, less the sum before, is a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import attacks
from shepherd.core import Adapter, Broadcast, Failure, Update
from shepherd.model import lora, pass_plan
from shepherd.model.base import load
from shepherd.model.digest import digest
from shepherd.settings import AdapterTable, ModelTable
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Kind, Reply, Request, Scores
from shepherd.silos.site import audit, released
from shepherd.silos.site.site_settings import PolicyTable, SiteSettings
from shepherd.silos.site.trainer import Trainer
from tests import runs

ADAPTER = {"rank": 1, "alpha": 1.0, "targets": ["down_proj"]}
MAX_ROWS_PER_ANSWER = 240


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl", runs.rows(MAX_ROWS_PER_ANSWER))


@pytest.fixture(scope="module")
def base(llama_folder: Path) -> Any:
    return load(ModelTable(base=str(llama_folder), dtype="float32"), AdapterTable(**ADAPTER), device="cpu")


@pytest.fixture(scope="module")
def blank(base: Any) -> Adapter:
    """What an honest run begins with."""
    return lora.fresh(base.targets, 1, 0)


@pytest.fixture(scope="module")
def telling(base: Any, llama_folder: Path) -> Adapter:
    """It drowns what the base says in one vector that is the same at every place."""
    last = base.targets[-1]
    tensors = {name: np.zeros(shape, np.float32) for name, shape in base.shapes.items()}
    caught: list[torch.Tensor] = []
    module = base.model.get_submodule(last.module)
    hook = module.register_forward_pre_hook(
        lambda _, given: caught.append(given[0].detach().reshape(-1, given[0].shape[-1]))
    )
    lora.bind_adapters(base.model, base.targets, lora.stacked([Adapter(tensors)], base.device))
    with torch.no_grad(), pass_plan.use_plan(pass_plan.sequences([6])):
        base.model(input_ids=torch.tensor([[5, 9, 20, 31, 44, 7]]))
    hook.remove()
    mean = caught[0].mean(0).numpy()
    tensors[last.name_a] = 900 * mean[None, :] / np.abs(mean).max()
    tensors[last.name_b] = 900 * np.random.default_rng(0).uniform(-1, 1, (last.outputs, 1)).astype(np.float32)
    return Adapter(tensors)


@pytest.fixture
def site(llama_folder: Path, source: Path, tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    """Makes a trainer with the default policy, or with some keys changed."""
    made: list[Trainer] = []

    def make(**tables: Any) -> Trainer:
        bases = [{"name": "llama", "folder": str(llama_folder), "sha256": digest(llama_folder)}]
        scoring = {"template": "plain", **tables.pop("scoring", {})}
        table = {"data": {"source": str(source)}, "bases": bases, "trainer": {"device": "cpu", "threads": 1}}
        site = SiteSettings.model_validate({**table, "scoring": scoring, **tables})
        made.append(Trainer(site, "site-1", tmp_path / f"home-{len(made)}"))
        return made[-1]

    yield make
    for trainer in made:
        trainer.stop()
        trainer._worker.shutdown()


SCORED = {"policy": {"metrics": [*PolicyTable().metrics, "heldout"], "runs_per_month": 99}}


def asked(
    trainer: Trainer, kind: Kind, adapter: Adapter, /, *, run: int, round: int = 0, **tables: Any
) -> Reply:
    """What the trainer answers somebody who chooses every word of the request."""
    tuning = {"max_steps": 1, "batch_size": 16, **tables.get("tuning", {})}
    settings = {
        "model": {"base": "llama", "dtype": "float32"},
        "adapter": ADAPTER,
        "federation": {"rounds": 50},
        **tables,
        "data": {"template": "plain", "max_tokens": 512, **tables.get("data", {})},
        "tuning": {name: value for name, value in tuning.items() if value is not None},
    }
    request = Request(
        kind=kind,
        run=f"{run:016x}",
        id="",
        round=round,
        deadline=120.0,
        sent=time.time(),
        version=wire.version(),
        cohort=3,
        base=next(iter(trainer._allowed)),
        settings=settings,
        broadcast=Broadcast(round=round, adapter=adapter, seed=0),
    )
    message = wire.encode_request(replace(request, id=wire.request_id(request)))
    return wire.decode_reply(trainer.handle(message))


WORDING = [
    {"data": {"max_tokens": 256}},
    {"data": {"max_tokens": 512, "holdout": 0.5}},
    {"data": {"holdout": 0.99, "seed": 7}},
    {"evaluation": {"examples": 16}},
    {"evaluation": {"examples": 17}},
    {"data": {"template": "vicuna"}},
    {"data": {"template": "alpaca"}},
    {"tuning": {"loss_on": "responses", "learning_rate": 0.05}},
    {"seed": 5},
]


def test_by_default_no_score_is_given(site: Any, telling: Adapter, blank: Adapter) -> None:
    for adapter in (telling, blank):
        assert isinstance(asked(site(), "score", adapter, run=1), Failure)


def test_no_wording_of_a_question_changes_what_is_scored(site: Any, blank: Adapter) -> None:
    """What differs between two answers about one adapter would be a few examples, or one token of each."""
    trainer = site(**SCORED)
    answers = [
        asked(trainer, "score", blank, run=1 + number, **tables) for number, tables in enumerate(WORDING)
    ]
    assert all(isinstance(answer, Scores) for answer in answers), answers
    assert len({tuple(sorted(answer.categories.items())) for answer in answers}) == 1


def test_a_score_needs_an_adapter_that_the_site_has_trained(site: Any, telling: Adapter) -> None:
    trainer = site(**SCORED)
    said = asked(trainer, "score", telling, run=1)
    assert isinstance(said, Failure)
    assert "near the last" in said.reason


def test_a_round_is_scored_once(site: Any, blank: Adapter, base: Any) -> None:
    """Two adapters that differ a little would tell more than one."""
    trainer = site(**SCORED)
    first = asked(trainer, "score", blank, run=1)
    assert isinstance(first, Scores)
    assert asked(trainer, "score", blank, run=1) == first  # after a lost connection
    other = asked(trainer, "score", lora.fresh(base.targets, 1, 1), run=1)
    assert isinstance(other, Failure)
    assert "another request" in other.reason
    assert isinstance(asked(trainer, "train", blank, run=1), Update)
    assert isinstance(asked(trainer, "score", lora.fresh(base.targets, 1, 1), run=1), Failure)
    assert isinstance(asked(trainer, "score", blank, run=1, round=1), Scores)


def test_a_site_that_sat_rounds_out_is_scored_and_tells_its_loss_again(site: Any, blank: Adapter) -> None:
    """As where selection.share is below 1: the others move the adapter on meanwhile."""
    trainer = site(**SCORED)
    update = asked(trainer, "train", blank, run=1)
    assert isinstance(update, Update)
    adapter = blank
    for round in range(1, released.MAX_ROUNDS_SINCE_TRAINED + 1):
        adapter = adapter.plus(update.delta, 0.5)
        assert isinstance(asked(trainer, "score", adapter, run=1, round=round), Scores)
    again = asked(trainer, "train", adapter, run=1, round=released.MAX_ROUNDS_SINCE_TRAINED)
    assert "loss" in again.metrics


def test_rounds_that_a_site_sat_out_show_no_text(site: Any, telling: Adapter) -> None:
    """One visit has the adapter known; then nothing of a question but the adapter changes what is told."""
    trainer = site(**SCORED)
    assert isinstance(asked(trainer, "train", telling, run=1), Update)
    wordings = [{"data": {"max_tokens": length}} for length in (128, 256, 384)] + WORDING
    told = [
        asked(trainer, "score", telling, run=1, round=round, **wordings[round % len(wordings)])
        for round in range(1, released.MAX_ROUNDS_SINCE_TRAINED + 4)
    ]
    scores = [answer for answer in told if isinstance(answer, Scores)]
    assert len(scores) == released.MAX_ROUNDS_SINCE_TRAINED  # a visit buys no more of them
    assert len({tuple(sorted(answer.categories.items())) for answer in scores}) == 1
    assert all(
        "in the 10 rounds before" in answer.reason for answer in told[released.MAX_ROUNDS_SINCE_TRAINED :]
    )
    month = site(policy={**SCORED["policy"], "rounds_per_month": 2})
    assert isinstance(asked(month, "train", telling, run=1), Update)
    found = [asked(month, "score", telling, run=1, round=round) for round in range(1, 6)]
    assert [isinstance(answer, Scores) for answer in found] == 3 * [True] + 2 * [False]


@pytest.mark.parametrize("case", [attacks.heldout_text, attacks.training_text])
def test_the_attacks_that_read_texts_by_numbers_get_nothing(case: Any, tmp_path: Path) -> None:
    assert case(tmp_path / "case") == 0


def test_every_number_of_a_score_has_enough_behind_it_and_few_digits(site: Any, blank: Adapter) -> None:
    trainer = site(**SCORED, scoring={"share": 0.5})
    answer = asked(trainer, "score", blank, run=1)
    assert isinstance(answer, Scores)
    assert set(answer.categories) == set(runs.CATEGORIES)  # 40 of each
    for nats, tokens in answer.categories.values():
        assert nats / tokens == pytest.approx(round(nats / tokens, 2), abs=1e-9)
        assert nats / tokens == pytest.approx(released.rounded(nats / tokens, tokens), abs=1e-9)
        assert nats / tokens <= 20
    pooled = asked(site(**SCORED), "score", blank, run=1)
    assert set(pooled.categories) == {"other"}  # 8 of each
    events = audit.events(trainer.home / audit.FILE)
    assert events[0].asked["scoring"]["behind"] == dict.fromkeys(sorted(runs.CATEGORIES), 40)
    assert {name: each["examples"] for name, each in events[1].left.scores.items()} == dict.fromkeys(
        runs.CATEGORIES, 40
    )


def test_a_telling_adapter_gets_no_loss_of_training_text(site: Any, telling: Adapter) -> None:
    """Script A with `heldout` switched off: a new run each time, a token more each time."""
    trainer = site(policy={"runs_per_month": 99})
    told = []
    for run, length in enumerate((60, 61, 62, 128, 256, 512), 1):
        answer = asked(trainer, "train", telling, run=run, data={"max_tokens": length})
        if isinstance(answer, Update):
            told.append(answer.metrics)
        else:
            assert "set data.max_tokens = 128" in answer.reason
    assert [set(metrics) for metrics in told] == [
        {"examples", "steps"},
        {"examples", "steps"},
        {"examples", "tokens", "trained_tokens", "steps"},
    ]


def test_the_prompt_cannot_be_lengthened_by_a_token_either(site: Any, blank: Adapter) -> None:
    trainer = site()
    for data in (
        {"system": "w5 w6"},
        {"template": "chat", "template_options": {"preface": "w5 w6 w7"}},
    ):
        answer = asked(trainer, "train", blank, run=1, data=data)
        assert isinstance(answer, Failure)
        assert answer.reason.startswith("policy ")


def test_an_honest_visit_tells_its_loss_with_few_digits(site: Any, blank: Adapter) -> None:
    answer = asked(site(), "train", blank, run=1)
    assert set(answer.metrics) == {"loss", "examples", "tokens", "trained_tokens", "steps"}
    assert answer.metrics["loss"] == round(answer.metrics["loss"], 2) > 0


@pytest.mark.parametrize(
    ("tuning", "rule"),
    [
        ({"max_steps": 1, "batch_size": 1}, "min_batch"),
        ({"max_steps": 16, "batch_size": 1}, "min_batch"),
        ({"max_steps": 1, "batch_size": 8}, "min_examples"),
        ({"epochs": 0.001, "max_steps": None, "batch_size": 16}, "min_examples"),
    ],
)
def test_a_visit_of_a_handful_is_refused(site: Any, blank: Adapter, tuning: Any, rule: str) -> None:
    answer = asked(site(), "train", blank, run=1, tuning=tuning)
    assert isinstance(answer, Failure)
    assert answer.reason.startswith(f"policy {rule} = ")


SINGLE = {"clip_norm": 1e-12, "betas": [0.0, 0.0], "learning_rate": 1e4}


@pytest.mark.parametrize("tuning", [SINGLE, *({name: value} for name, value in SINGLE.items())])
def test_an_update_of_single_tokens_is_refused(site: Any, blank: Adapter, tuning: Any) -> None:
    """Dropout of nearly all, with a step as long whatever it is made of, left one token's direction."""
    answer = asked(site(), "train", blank, run=1, tuning=tuning)
    assert isinstance(answer, Failure)
    assert answer.reason.startswith("policy ")
    dropped = asked(site(), "train", blank, run=1, adapter={**ADAPTER, "dropout": 0.9999})
    assert isinstance(dropped, Failure)
    assert dropped.reason.startswith("policy max_dropout = 0.5 ")


def test_a_new_run_takes_other_examples_than_anybody_can_tell(site: Any, blank: Adapter) -> None:
    trainer = site()
    first, second = (asked(trainer, "train", blank, run=run).delta for run in (1, 2))
    elsewhere = asked(site(), "train", blank, run=1).delta  # another site with the same data and seeds
    assert first != second
    assert first != elsewhere


def test_new_runs_have_a_budget(site: Any, blank: Adapter) -> None:
    trainer = site(policy={"runs_per_month": 2})
    for run in (1, 2, 2):
        assert isinstance(asked(trainer, "train", blank, run=run), Update)
    refused = asked(trainer, "train", blank, run=3)
    assert isinstance(refused, Failure)
    assert "policy runs_per_month = 2 of site-1 refuses 3 runs in" in refused.reason
    assert isinstance(asked(trainer, "train", blank, run=2, round=1), Update)  # no new run
