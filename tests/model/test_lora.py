"""Cohort layers against a dense formula under autograd, and their names and scaling against PEFT's."""

from __future__ import annotations

import math

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from shepherd.core import Adapter
from shepherd.errors import AdapterError, BaseError
from shepherd.model import files, lora, lora_layers, pass_plan
from shepherd.model.pass_plan import Segment
from shepherd.settings import AdapterTable
from tests.model import bases

INPUTS, OUTPUTS, RANK = 6, 5, 2


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(bases.CONFIGS[name])


# --- targets and names


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), ("layers.1.self_attn.v_proj",)])
def test_a_llamas_names_and_shapes_are_pefts(targets: str | tuple[str, ...]) -> None:
    assert_same_layout_as_peft("llama", targets)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3"])
def test_all_linear_is_pefts_all_linear(name: str) -> None:
    assert_same_layout_as_peft(name, "all-linear")


def assert_same_layout_as_peft(name: str, targets: str | tuple[str, ...]) -> None:
    attached = lora.attach(model_of(name), AdapterTable(rank=RANK, targets=targets))
    chosen = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(r=RANK, target_modules=chosen, task_type="CAUSAL_LM")
    config.fan_in_fan_out = name == "gpt2"
    theirs = peft.get_peft_model(model_of(name), config)
    expected = {k: tuple(v.shape) for k, v in peft.get_peft_model_state_dict(theirs).items()}
    assert lora.shapes(attached, RANK) == expected


def test_all_linear_leaves_the_head_out_and_sites_stand_in_the_models_order() -> None:
    model = model_of("llama")
    targets = [target.module for target in lora.attach(model, AdapterTable())]
    assert "lm_head" not in targets
    assert not isinstance(model.lm_head, lora_layers.StackedLinear)
    assert targets[:2] == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    assert len(targets) == 14
    assert [target.module for target, _ in lora.layers(model, lora_targets(model))] == targets


def lora_targets(model: nn.Module) -> list[lora.Target]:
    return [
        lora.Target(module=name, inputs=0, outputs=0)
        for name, module in model.named_modules()
        if isinstance(module, lora_layers.StackedLinear)
    ]


def test_a_target_that_the_base_lacks_is_named_beside_what_it_has() -> None:
    with pytest.raises(BaseError, match=r"names 'query', which this base lacks; it has .*'q_proj'"):
        lora.attach(model_of("llama"), AdapterTable(targets=("q_proj", "query")))
    with pytest.raises(BaseError, match=r"a pattern, which is not supported; list the names of .*'q_proj'"):
        lora.attach(model_of("llama"), AdapterTable(targets=(r".*\.(q|v)_proj",)))
    with pytest.raises(BaseError, match="'proj'"):  # part of a name is not a name
        lora.attach(model_of("llama"), AdapterTable(targets=("proj",)))


# --- fresh adapters


TARGETS = (
    lora.Target(module="wide", inputs=256, outputs=32),
    lora.Target(module="narrow", inputs=16, outputs=8),
)


def test_a_fresh_adapter_changes_nothing_and_is_drawn_by_seed_and_name() -> None:
    adapter = lora.fresh(TARGETS, 64, seed=1)
    assert {name: tensor.shape for name, tensor in adapter.items()} == lora.shapes(TARGETS, 64)
    assert all(not tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert lora.fresh(TARGETS, 64, seed=1) == adapter
    assert lora.fresh(TARGETS, 64, seed=2) != adapter
    alone = lora.fresh(TARGETS[1:], 64, seed=1)  # other targets change no draw
    assert np.array_equal(alone[TARGETS[1].name_a], adapter[TARGETS[1].name_a])


@pytest.mark.parametrize("target", TARGETS)
def test_a_is_drawn_as_pefts_default_draws_it(target: lora.Target) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=64, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(nn.Linear(target.inputs, target.outputs)), config)
    (theirs,) = (p.detach().numpy() for n, p in model.named_parameters() if "lora_A" in n)
    ours = lora.fresh(TARGETS, 64, seed=0)[target.name_a]
    bound = 1 / math.sqrt(target.inputs)
    for drawn in (ours, theirs):
        assert np.abs(drawn).max() <= bound * (1 + 1e-6)
        assert np.abs(drawn).max() > 0.98 * bound
        assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(drawn.mean()) < 0.06 * bound


def test_stacking_keeps_the_order_and_refuses_what_does_not_fit() -> None:
    first, second = (lora.fresh(TARGETS, 2, seed) for seed in (1, 2))
    together = lora.stacked([first, second], torch.device("cpu"))
    for name in first:
        assert np.array_equal(together[name], np.stack([first[name], second[name]]))
    with pytest.raises(AdapterError, match="at least one"):
        lora.stacked([], torch.device("cpu"))


# --- the layer


def layer_of(*, dropout: float = 0.0, index: int = 1, inputs: int = INPUTS, rank: int = RANK, k: int = 3):
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(inputs, OUTPUTS).requires_grad_(False)
    layer = lora_layers.StackedLinear(base, scale=1.5, dropout=dropout, index=index)
    layer.a = torch.randn(k, rank, inputs, generator=generator).requires_grad_()
    layer.b = torch.randn(k, OUTPUTS, rank, generator=generator).requires_grad_()
    return layer


def line(*segments: tuple[int, int, int], training: bool = True) -> pass_plan.PassPlan:
    """Segments as (adapter, tokens, dropout seed)."""
    found, start = [], 0
    for adapter, tokens, seed in segments:
        found.append(Segment(adapter=adapter, start=start, stop=start + tokens, dropout_seed=seed))
        start += tokens
    return pass_plan.PassPlan(segments=tuple(found), size=start, training=training)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).requires_grad_()


def dense(layer: lora_layers.StackedLinear, x: Tensor, plan: pass_plan.PassPlan, mask: Tensor) -> Tensor:
    parts = [
        layer.base(x[s.start : s.stop])
        + layer.scale * (x * mask)[s.start : s.stop] @ layer.a[s.adapter].T @ layer.b[s.adapter].T
        for s in plan.segments
    ]
    return torch.cat(parts)


def assert_same_values_and_gradients(
    layer: lora_layers.StackedLinear, plan: pass_plan.PassPlan, mask: Tensor
) -> None:
    x, outer = drawn(plan.size, layer.a.shape[2]), drawn(plan.size, OUTPUTS).detach()
    inputs = (x, layer.a, layer.b)
    with pass_plan.use_plan(plan):
        y = layer(x)
        got = torch.autograd.grad((y * outer).sum(), inputs)
    expected = dense(layer, x, plan, mask)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(got, torch.autograd.grad((expected * outer).sum(), inputs))


def test_each_row_meets_its_own_adapter() -> None:
    plan = line((0, 4, 0), (2, 3, 0), (0, 2, 0), (1, 1, 0))
    assert_same_values_and_gradients(layer_of(), plan, torch.ones(10, INPUTS))


def test_outside_a_pass_it_is_the_base() -> None:
    layer, x = layer_of(), drawn(2, 3, INPUTS)
    assert layer(x).equal(layer.base(x))
    assert layer.weight is layer.base.weight
    assert layer.bias is layer.base.bias


def test_a_batch_of_sequences_has_as_many_tokens_a_sequence_as_it_has() -> None:
    layer, x = layer_of(k=2), drawn(3, 4, INPUTS)
    with pass_plan.use_plan(pass_plan.sequences([1, 2])):
        y = layer(x)
    flat = dense(layer, x.reshape(12, INPUTS), line((0, 4, 0), (1, 8, 0)), torch.ones(12, INPUTS))
    torch.testing.assert_close(y, flat.view(3, 4, OUTPUTS))


def test_tokens_that_a_base_routes_elsewhere_are_refused() -> None:
    with pass_plan.use_plan(line((0, 4, 0), (1, 3, 0))), pytest.raises(BaseError, match="mixture of experts"):
        layer_of()(drawn(9, INPUTS))


def test_a_bfloat16_base_trains_float32_factors() -> None:
    layer, x = layer_of(), drawn(6, INPUTS).detach().bfloat16()
    layer.base.bfloat16()
    plan = line((1, 6, 0))
    with pass_plan.use_plan(plan):
        y = layer(x)
    y.float().sum().backward()
    assert (y.dtype, layer.a.grad.dtype, layer.b.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(
        y.float(),
        dense(layer.float(), x.float(), plan, torch.ones(6, INPUTS)),
        rtol=0.03,
        atol=0.1,
    )


# --- dropout


def masks(plan: pass_plan.PassPlan, *, p: float = 0.4, index: int = 1, width: int = INPUTS) -> Tensor:
    """What the layer's own dropout multiplies its input by, seen from outside: A and B the identity."""
    base = nn.Linear(width, width, bias=False).requires_grad_(False)
    nn.init.zeros_(base.weight)
    layer = lora_layers.StackedLinear(base, scale=1.0, dropout=p, index=index)
    layer.a = layer.b = torch.eye(width).expand(3, width, width)
    with pass_plan.use_plan(plan):
        return layer(torch.ones(plan.size, width))


def test_gradients_under_dropout_are_autograds_under_the_same_mask() -> None:
    plan = line((0, 4, 11), (2, 3, 12), (1, 5, 13))
    mask = masks(plan)
    assert {0.0} < set(mask.unique().tolist())
    assert_same_values_and_gradients(layer_of(dropout=0.4), plan, mask)


def test_a_rows_mask_is_its_own_whatever_the_cohort_and_the_rows_before_it() -> None:
    alone = masks(line((0, 5, 12)))
    assert masks(line((1, 4, 11), (2, 5, 12), (1, 3, 13)))[4:9].equal(alone)
    assert not masks(line((0, 5, 13))).equal(alone)
    assert not masks(line((0, 5, 12)), index=2).equal(alone)


def test_dropout_keeps_the_mean_and_only_while_training() -> None:
    mask = masks(line((0, 2000, 1)), width=16)
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert mask.mean().item() == pytest.approx(1, abs=0.02)
    assert masks(line((0, 5, 1), training=False)).eq(1).all()


def test_no_global_generator_decides_a_mask() -> None:
    torch.manual_seed(1)
    first = masks(line((0, 5, 1)))
    torch.manual_seed(2)
    assert masks(line((0, 5, 1))).equal(first)


# --- scaling


def test_scaling_is_alpha_over_r_or_over_its_root() -> None:
    assert lora.scaling(AdapterTable(rank=16, alpha=8)) == 0.5
    assert lora.scaling(AdapterTable(rank=16, alpha=8, rank_stabilised=True)) == 2.0


def test_a_rank_stabilised_conv1d_adapter_gives_pefts_logits(tmp_path) -> None:
    folder = bases.save(bases.CONFIGS["gpt2"], tmp_path / "base")
    base = bases.load(folder, rank=4, rank_stabilised=True, targets=["c_attn", "c_proj"])
    adapter: Adapter = bases.random_adapter(base, 1)
    files.write(tmp_path / "adapter", adapter, base)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(4, 14).unsqueeze(0)
    untouched = plain(ids).logits
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(ids).logits
    lora.bind_adapters(base.model, base.targets, lora.stacked([adapter], base.device))
    with torch.no_grad(), pass_plan.use_plan(pass_plan.sequences([1])):
        ours = base.model(ids).logits
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, untouched, atol=1e-2)


def test_the_head_as_a_target_is_refused_with_the_true_reason(llama_folder) -> None:
    with pytest.raises(BaseError, match=r"names 'lm_head', the head, which cannot be adapted: the loss"):
        bases.load(llama_folder, targets=["q_proj", "lm_head"])
