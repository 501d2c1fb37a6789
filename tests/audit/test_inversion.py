"""The attack on updates of the real trainer: what it recovers, what defeats it, and no false alarms."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model import bases

from shepherd.algorithms import fedavg
from shepherd.audit import inversion
from shepherd.audit.inversion_spans import BFLOAT16_ROUNDING
from shepherd.core import Adapter, Broadcast, Payload
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError
from shepherd.model import layer_inputs, lora
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.objectives import sft
from shepherd.training.optimisers import sgd

SGD = LocalTraining(sgd.build(sgd.Config()), sft.build(sft.Config()))
NAMES = ("llama", "gpt2")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return bases.load(bases.save(bases.CONFIGS["gpt2"], tmp_path_factory.mktemp("gpt2")))


@pytest.fixture
def base(request: Any) -> Base:
    found: Base = request.getfixturevalue(request.param)
    return found


def _start(base: Base, rank: int, *, begun: bool) -> Adapter:
    """A fresh adapter, whose B is zero; or, if the run has begun, one whose B is not."""
    fresh = lora.fresh(base.targets, rank, 0)
    if not begun:
        return fresh
    rng = np.random.default_rng(1)
    return Adapter(
        {
            name: rng.normal(0, 0.05, tensor.shape) if ".lora_B." in name else tensor
            for name, tensor in fresh.items()
        }
    )


def _update(
    base: Base,
    start: Adapter,
    data: Tokens,
    steps: Sequence[Sequence[int]] = (),
    training: LocalTraining = SGD,
    rate: float = 0.1,
) -> Adapter:
    """What the trainer sends after these steps, by default one on all the data."""
    batches = [np.array(step) for step in steps or [range(len(data))]]
    broadcast = Broadcast(round=1, adapter=start, seed=0)
    visit = tune.Visit(client="a", data=data, batches=batches)
    algorithm = fedavg.build(fedavg.Config())
    (result,) = bases.tuned(
        base, broadcast, algorithm, [visit], TuningTable(), training=training, learning_rate=rate
    )
    return result.delta


def _noised(delta: Adapter, noise: float) -> Adapter:
    rng = np.random.default_rng(0)
    return Adapter({name: tensor + rng.normal(0, noise, tensor.shape) for name, tensor in delta.items()})


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_one_example_is_recovered_whole_from_a_step_of_sgd(base: Base, begun: bool) -> None:
    data, start = bases.tokens(3, [10]), _start(base, 16, begun=begun)
    found = inversion.recovered(base, start, _update(base, start, data), data)
    assert (found.precision, found.recall, found.examples, found.ordered, found.auc) == (1, 1, 1, 1, 1)


@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_its_span_is_that_of_the_inputs_by_a_dense_computation(base: Base) -> None:
    data, start = bases.tokens(3, [10]), _start(base, 16, begun=True)
    delta = _update(base, start, data)
    first = layer_inputs.groups(base, start)[0]
    inputs = layer_inputs.inputs(base, start, data.ids[None].astype(np.int64), first[0])[0, :-1]
    changes = np.concatenate([delta[target.name_a] for target in first]).astype(np.float64)
    different = np.linalg.matrix_rank(inputs.astype(np.float64), tol=1e-3)
    assert inversion.attack(base, start, delta, longest=10).dimensions == different
    for matrix, other in ((changes, inputs), (inputs, changes)):  # each within the span of the other
        whole = other.astype(np.float64)
        mix, *_ = np.linalg.lstsq(whole.T, matrix.T.astype(np.float64), rcond=1e-4)
        assert np.linalg.norm(matrix.T - whole.T @ mix) < 1e-2 * np.linalg.norm(matrix)


def test_two_examples_are_recovered_apart(llama: Any) -> None:
    data, start = bases.tokens(3, [8, 9]), _start(llama, 16, begun=True)
    found = inversion.recovered(llama, start, _update(llama, start, data), data)
    assert (found.precision, found.recall, found.examples) == (1, 1, 1)


def test_the_mean_of_two_clients_holds_the_tokens_of_both(llama: Any) -> None:
    one, other, start = bases.tokens(3, [8]), bases.tokens(4, [9]), _start(llama, 16, begun=True)
    mean = _update(llama, start, one).plus(_update(llama, start, other)).times(0.5)
    found = inversion.recovered(llama, start, mean, Tokens.pooled([one, other]))
    assert (found.precision, found.recall, found.examples) == (1, 1, 1)


def test_a_visit_of_several_steps_holds_the_tokens_of_all(llama: Any) -> None:
    data, start = bases.tokens(3, [6, 6, 6]), _start(llama, 16, begun=True)
    found = inversion.recovered(llama, start, _update(llama, start, data, [[0], [1], [2]]), data)
    assert (found.precision, found.recall) == (1, 1)


def test_clipping_changes_nothing(llama: Any) -> None:
    data, start = bases.tokens(3, [10]), _start(llama, 16, begun=True)
    clipped = _update(llama, start, data).times(1e-3)
    assert inversion.recovered(llama, start, clipped, data).examples == 1


@pytest.mark.parametrize("factor", [".lora_A.", ".lora_B."])
def test_an_update_of_one_factor_is_enough(llama: Any, factor: str) -> None:
    data, start = bases.tokens(3, [8]), _start(llama, 16, begun=True)
    delta = {name: t for name, t in _update(llama, start, data).items() if factor in name}
    found = inversion.recovered(llama, start, Payload(delta), data)
    assert (found.precision, found.recall) == (1, 1)


def test_a_factor_of_the_smaller_ranks_of_a_client_is_read_as_such(llama: Any) -> None:
    data, start = bases.tokens(3, [8]), _start(llama, 16, begun=False)
    delta = {
        name: t[:12] if ".lora_A." in name else t[:, :12] for name, t in _update(llama, start, data).items()
    }
    assert inversion.recovered(llama, start, Payload(delta), data).examples == 1


@pytest.mark.parametrize(("begun", "rank"), [(True, 2), (False, 6)])
def test_a_small_rank_defeats_it(llama: Any, begun: bool, rank: int) -> None:
    data, start = bases.tokens(3, [10]), _start(llama, rank, begun=begun)
    found = inversion.recovered(llama, start, _update(llama, start, data), data)
    assert (found.found, found.precision, found.recall, found.examples) == (0, None, 0, 0)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_noise_as_long_as_the_update_defeats_it(base: Base, begun: bool) -> None:
    data, start = bases.tokens(3, [10]), _start(base, 16, begun=begun)
    delta = _update(base, start, data)
    noise = delta.norm() / np.sqrt(delta.nbytes / 4)
    found = inversion.recovered(base, start, _noised(delta, noise), data, noise=noise)
    assert (found.found, found.examples) == (0, 0)


def test_a_little_noise_does_not(llama: Any) -> None:
    data, start = bases.tokens(3, [10]), _start(llama, 16, begun=True)
    delta = _update(llama, start, data)
    noise = 1e-4 * delta.norm() / np.sqrt(delta.nbytes / 4)
    found = inversion.recovered(llama, start, _noised(delta, noise), data, noise=noise)
    assert found.precision == 1
    assert found.recall >= 0.5


def test_adamw_hides_the_span(llama: Any) -> None:
    data, start = bases.tokens(3, [10]), _start(llama, 16, begun=True)
    found = inversion.recovered(llama, start, _update(llama, start, data, training=DEFAULT_TRAINING), data)
    assert (found.found, found.examples) == (0, 0)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_it_finds_nothing_in_an_update_of_chance(base: Base, begun: bool) -> None:
    start = _start(base, 8, begun=begun)
    rng = np.random.default_rng(5)
    chance = Adapter({name: rng.normal(0, 0.1, t.shape) for name, t in start.items()})
    few = Adapter(
        {
            name: rng.normal(size=(t.shape[0], 3)) @ rng.normal(size=(3, t.shape[1]))
            for name, t in start.items()
        }
    )
    for delta in (chance, few):
        guess = inversion.attack(base, start, delta, longest=12)
        assert (guess.tokens, guess.sequences) == ((), ())


@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_it_finds_only_the_tokens_of_the_examples_that_were_trained_on(base: Base) -> None:
    mine, start = bases.tokens(3, [10]), _start(base, 16, begun=True)
    others = bases.tokens(4, [11])
    guess = inversion.attack(base, start, _update(base, start, others), longest=12)
    assert set(guess.tokens) == set(others.ids[:-1].tolist())
    scored = inversion.scored(guess, mine)
    assert scored.examples == 0
    assert scored.recall == np.mean([token in guess.tokens for token in set(mine.ids[:-1].tolist())])


def test_where_the_first_adapted_module_mixes_tokens_it_says_so(llama_folder: Path) -> None:
    base = bases.load(llama_folder, targets=("gate_proj", "up_proj"))
    data, start = bases.tokens(3, [10]), _start(base, 16, begun=True)
    found = inversion.recovered(base, start, _update(base, start, data), data)
    assert found.why_none == "the first adapted module reads several tokens mixed"
    assert (found.found, found.auc) == (0, 0.5)


def test_an_update_without_a_linear_module_has_its_reason(llama: Any) -> None:
    guess = inversion.attack(llama, _start(llama, 4, begun=True), Payload(), longest=5)
    assert guess.why_none == "the update changes no linear module"


def test_ordering_ends_in_time_with_what_it_has(llama: Any) -> None:
    data, start = bases.tokens(3, [10]), _start(llama, 16, begun=True)
    found = inversion.recovered(llama, start, _update(llama, start, data), data, seconds=0.0)
    assert (found.recall, found.examples) == (1, 0)
    assert 0 < found.ordered < 1


def test_examples_of_one_token_are_refused(llama: Any) -> None:
    start = _start(llama, 4, begun=True)
    with pytest.raises(DataError, match="two tokens or more"):
        inversion.recovered(llama, start, start, bases.tokens(0, [1]))


def test_a_base_in_bfloat16_is_attacked_with_its_rounding(llama_folder: Path) -> None:
    from shepherd.model.base import load
    from shepherd.settings import AdapterTable, ModelTable

    table = ModelTable(base=str(llama_folder), dtype="bfloat16")
    base = load(table, AdapterTable(rank=3, alpha=6), device="cpu")
    data, start = bases.tokens(3, [4]), _start(base, 16, begun=True)
    delta = _update(base, start, data)
    assert inversion.recovered(base, start, delta, data).precision in (None, 1.0)
    assert inversion.recovered(base, start, delta, data, rounding=BFLOAT16_ROUNDING) == inversion.recovered(
        base, start, delta, data
    )


def test_the_score_counts_tokens_examples_and_pairs() -> None:
    data = Tokens(
        ids=np.array([1, 2, 3, 9, 4, 5, 9], np.int32),
        loss_mask=np.ones(7, bool),
        offsets=np.array([0, 4, 7]),
    )
    scores = np.array([0.5, 0.1, 0.6, 0.2, 0.5, 0.5, 0.7])
    guess = inversion.Guess(tokens=(1, 3, 6), sequences=((1, 2, 3), (4, 6)), log_chances=scores, dimensions=3)
    found = inversion.scored(guess, data)
    assert (found.batch_tokens, found.found) == (5, 3)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 5)
    assert found.examples == 1 / 2
    assert found.ordered == pytest.approx((1 + 1 / 2) / 2)
    pairs = [(own, other) for own in (1, 2, 3, 4, 5) for other in (0, 6)]
    wins = [(scores[own] < scores[other]) + (scores[own] == scores[other]) / 2 for own, other in pairs]
    assert found.auc == pytest.approx(np.mean(wins))
    assert inversion.scored(replace(guess, tokens=()), data).precision is None
