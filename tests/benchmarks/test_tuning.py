"""The two sides of the comparison do the same work and learn the same; the figures are computed right."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import engine, flops, large, recipe, setting, tuning
from benchmarks import work as works
from shepherd.core import Adapter
from shepherd.model import base as bases
from shepherd.model import lora
from shepherd.settings import AdapterTable


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> works.Work:
    base = large.write(tmp_path_factory.mktemp("base"), 0, large.SMALL)
    tables = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"source": "none"},
        "federation": {},
        "tuning": {"max_steps": 2, "batch_size": 3, "learning_rate": 1e-3},
        "machine": {"device": "cpu", "threads": torch.get_num_threads()},
    }
    settings = setting.parsed(tables)
    shape = flops.shape_of(str(base), settings.adapter)
    return works.Work(
        settings=settings, clients=large.clients(2, 6, large.SMALL, 0), start=lora.fresh(shape.targets, 8, 1)
    )


def test_both_sides_end_with_the_same_adapter(work: works.Work) -> None:
    ours = engine.engine(work)(work)
    theirs = recipe.recipe(work, bfloat16=False)(work)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
    changes = [each.adapter.plus(work.start, -1.0) for each in (ours, theirs)]
    assert tuning.cosine(*changes) > 0.999
    assert changes[0].norm() == pytest.approx(changes[1].norm(), rel=1e-2)


def test_warming_up_takes_fewer_steps_of_the_same_work(work: works.Work) -> None:
    first = work.shortened(1)
    assert [len(first.steps(name)) for name in first.clients] == [1, 1]
    np.testing.assert_array_equal(first.steps("client_00")[0], work.steps("client_00")[0])
    assert work.tokens == sum(int(data.lengths.sum()) for data in work.clients.values())


def test_labels_repeat_what_is_trained(work: works.Work) -> None:
    data = work.clients["client_00"]
    first = recipe.rows(data)[0]
    ids, trained = data.example(0)
    assert first["input_ids"] == ids.tolist()
    assert (
        np.flatnonzero(np.array(first["labels"]) != recipe.MASKED).tolist()
        == np.flatnonzero(trained).tolist()
    )
    assert [i for i in first["labels"] if i != recipe.MASKED] == ids[trained].tolist()


def test_useful_work_is_what_pytorch_counts(work: works.Work, tmp_path: Path) -> None:
    """Forward and backward of one unpadded example, counted by PyTorch in the engine's own layers."""
    from torch.utils.flop_counter import FlopCounterMode

    from shepherd.model import pass_plan
    from shepherd.model.attention import PACKED
    from shepherd.training import stack

    settings = work.settings
    base = bases.load(settings.model, settings.adapter, device="cpu")
    shape = flops.shape_of(settings.model.base, settings.adapter)
    cohort = stack.build([work.start], lambda name: True, base.device)
    lora.bind_adapters(base.model, base.targets, cohort.all)
    length, predicted = 40, 10
    plan = pass_plan.packed([length], [pass_plan.Segment(adapter=0, start=0, stop=length)], base.device)
    ids = torch.arange(length)
    with (
        FlopCounterMode(display=False) as counter,
        pass_plan.use_plan(plan),
        bases.attention_impl(base, PACKED),
    ):
        scores = bases.logits(base, bases.hidden_states(base, ids, ids)[-predicted:])
        scores.backward(torch.ones_like(scores))
    expected = flops.useful(shape, np.array([length]), predicted)
    first = [site for site in shape.targets if re.search(r"\.0\.self_attn\.[qkv]_proj", site.module)]
    unneeded = length * sum(2 * site.inputs * (site.outputs + 8) for site in first)
    # products that are added in place are not counted
    unneeded += length * sum(2 * 8 * site.outputs for site in shape.targets)
    unneeded += length * sum(2 * 8 * site.inputs for site in shape.targets if site not in first)
    # PyTorch counts attention as if it were not causal, or on a processor not at all
    attention = 12 * shape.attention * length * (length + 1) // 2
    assert expected - unneeded - attention <= 1.05 * counter.get_total_flops()
    assert counter.get_total_flops() <= 1.05 * (expected + 2 * attention)


def test_the_shape_is_counted_by_hand(tmp_path: Path) -> None:
    sizes = {**large.SMALL, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    shape = flops.shape_of(str(large.write(tmp_path, 0, sizes)), AdapterTable(rank=4, targets=("q_proj",)))
    assert shape.linear == 2 * (4 * 64 * 64 + 3 * 64 * 96)
    assert shape.adapter == 2 * 4 * (64 + 64)
    assert shape.head == 256 * 64
    assert shape.attention == 2 * 32 * 2


def test_the_peak_is_a_speed() -> None:
    assert 1e6 < flops.peak(torch.float32, torch.device("cpu"), (32, 64), 0.01) < 1e15


def test_examples_are_as_long_as_dollys() -> None:
    data = large.clients(1, 4000, large.SMALL, 0)["client_00"]
    assert data.lengths.max() <= large.MOST_TOKENS
    assert data.lengths.mean() == pytest.approx(210, rel=0.05)  # of the ten ready-made clients
    assert data.loss_mask.sum() / 4000 == pytest.approx(88, rel=0.15)
    responses = np.add.reduceat(data.loss_mask, data.offsets[:-1])
    assert responses.min() >= 2


def test_sides_that_differ_are_told() -> None:
    same = {"loss": 4.0, "heldout_loss": 3.9, "cosine_to_recipe": 1.0}
    assert tuning.agree([same, {**same, "loss": 4.1, "cosine_to_recipe": 0.95}])
    assert not tuning.agree([same, {**same, "loss": 4.2}])
    assert not tuning.agree([same, {**same, "heldout_loss": 4.1}])
    assert not tuning.agree([same, {**same, "cosine_to_recipe": 0.1}])


def test_cosine_of_changes() -> None:
    one, other = Adapter({"a": np.array([[1.0, 0.0]])}), Adapter({"a": np.array([[1.0, 1.0]])})
    assert tuning.cosine(one, other) == pytest.approx(0.5**0.5)


def test_the_large_base_needs_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    with pytest.raises(SystemExit):
        tuning.main(["--llama-1b"])
    assert "--llama-1b needs CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(("native", "more"), [(True, (tuning.RECIPE_BF16,)), (False, ())])
def test_the_recipe_in_bfloat16_is_left_out_where_that_is_emulated(
    native: bool, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shepherd.model.base._cpu_has_bfloat16", lambda: native)
    assert tuple(tuning._default_sides("cpu")) == more
