"""Stacked experts with a stack of adapters: against PEFT, and against every token computed for itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from shepherd.algorithms import fedprox, ffa_lora
from shepherd.core import Adapter, Broadcast
from shepherd.errors import BaseError
from shepherd.model import files, generate, lora, lora_layers, meta_shapes, pass_plan
from shepherd.model.base import Base
from shepherd.settings import AdapterTable, ModelTable, TuningTable
from shepherd.training import tune
from tests.model import bases
from tests.model.in_peft import in_peft, peft_gradients

RANK = 3
TABLE = AdapterTable(rank=RANK, alpha=6, targets=("q_proj",), target_parameters=bases.STACKS)


def network(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False).eval()


def random(targets: tuple[lora.Target, ...], seed: int) -> Adapter:
    rng = np.random.default_rng(seed)
    return Adapter({name: rng.normal(0, 0.1, shape) for name, shape in lora.shapes(targets, RANK).items()})


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = bases.save(bases.MIXTURES["mixtral"], tmp_path_factory.mktemp("mixtral"))
    return bases.load(folder, target_parameters=bases.STACKS)


# --- against PEFT


@pytest.mark.parametrize("targets", [bases.STACKS, bases.STACKS[::-1], bases.STACKS[1:]])
@pytest.mark.parametrize("kind", bases.MIXTURES)
def test_names_and_shapes_are_pefts(kind: str, targets: tuple[str, ...]) -> None:
    attached = lora.attach(
        network(bases.MIXTURES[kind]), TABLE.model_copy(update={"target_parameters": targets})
    )
    config = peft.LoraConfig(
        r=RANK, target_modules=["q_proj"], target_parameters=list(targets), task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(network(bases.MIXTURES[kind]), config)
    expected = {k: tuple(v.shape) for k, v in peft.get_peft_model_state_dict(theirs).items()}
    assert lora.shapes(attached, RANK) == expected


@pytest.mark.parametrize("kind", bases.MIXTURES)
def test_two_adapters_in_one_pass_are_each_alone_in_peft(kind: str, tmp_path: Path) -> None:
    folder = bases.save(bases.MIXTURES[kind], tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
    targets = lora.attach(model, TABLE)
    base: Any = SimpleNamespace(model=model, targets=targets, adapter=TABLE, name=str(folder), fingerprint="")
    base.table, base.hub_name = ModelTable(base=str(folder)), ""
    base.shapes = lora.shapes(targets, RANK)
    adapters, rows = [random(targets, seed) for seed in (1, 2)], [slice(0, 1), slice(1, 4)]
    ids = torch.randint(4, bases.VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(3))
    stack = lora.stacked(adapters, torch.device("cpu"))
    lora.bind_adapters(model, targets, {name: factor.requires_grad_() for name, factor in stack.items()})
    with pass_plan.use_plan(pass_plan.sequences([1, 3])):
        logits = model(ids, use_cache=False).logits
    loss_of(logits).backward()
    for k, (adapter, row) in enumerate(zip(adapters, rows, strict=True)):
        theirs = in_peft(base, adapter, tmp_path / f"adapter-{k}")
        expected = theirs(ids[row]).logits
        loss_of(expected).backward()
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)
        gradients = peft_gradients(theirs)
        assert gradients.keys() == stack.keys()
        for name, grad in gradients.items():
            assert np.abs(grad).max() > 0, name
            error = np.linalg.norm(stack[name].grad[k].numpy() - grad)
            assert error <= 1e-5 * np.linalg.norm(grad), name


def loss_of(logits: Tensor) -> Tensor:
    return logits.square().mean(dim=(1, 2)).sum()


def test_a_folder_that_peft_made_is_read_strictly(tmp_path: Path) -> None:
    """Names by suffix, as a person writes them."""
    folder = bases.save(bases.MIXTURES["olmoe"], tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=list(bases.STACKS)
    )
    theirs = peft.get_peft_model(plain, config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    table = files.read_config(tmp_path / "adapter")
    assert table.target_parameters == tuple(sorted(bases.STACKS))
    base = bases.load(folder, **table.model_dump(include={"rank", "alpha", "targets", "target_parameters"}))
    adapter = files.read(tmp_path / "adapter", base)
    ids = torch.arange(4, 14).unsqueeze(0)
    lora.bind_adapters(base.model, base.targets, lora.stacked([adapter], base.device))
    with torch.no_grad(), pass_plan.use_plan(pass_plan.sequences([1])):
        ours = base.model(ids).logits
    torch.testing.assert_close(ours, theirs(ids).logits.detach(), rtol=1e-5, atol=1e-5)


def test_a_is_drawn_as_peft_draws_it() -> None:
    targets = lora.attach(network(bases.MIXTURES["gpt_oss"]), TABLE)
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=RANK, target_modules=["q_proj"], target_parameters=list(bases.STACKS), task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model_state_dict(peft.get_peft_model(network(bases.MIXTURES["gpt_oss"]), config))
    for name, drawn in lora.fresh(targets, RANK, seed=0).items():
        if "lora_A" in name:
            assert drawn.std() == pytest.approx(theirs[name].numpy().std(), rel=0.15), name
            assert np.abs(drawn).max() == pytest.approx(theirs[name].abs().max().item(), rel=0.05), name
        else:
            assert not drawn.any()


# --- the layer alone


def test_each_pair_of_a_token_and_an_expert_meets_its_own_adapter() -> None:
    experts = mixed_experts()
    layer = lora_layers.StackedExperts(experts, scale=1.5)
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return (0.3 * torch.randn(shape, generator=generator)).requires_grad_()

    # 4 experts of rank 2, 3 adapters; the second has no token, the third two parts
    layer.factors = {
        "gate_up_proj": (drawn(3, 8, 32), drawn(3, 96, 8)),
        "down_proj": (drawn(3, 8, 48), drawn(3, 32, 8)),
    }
    parts = [(2, 0, 3), (1, 3, 3), (0, 3, 7), (2, 7, 8)]
    segments = tuple(pass_plan.Segment(adapter=k, start=i, stop=j) for k, i, j in parts)
    hidden, weights = drawn(8, 32), drawn(8, 2)
    chosen = torch.randint(0, 4, (8, 2), generator=generator)
    chosen[5, 1] = 4  # no expert: transformers skips it
    leaves = [hidden, weights, *(factor for pair in layer.factors.values() for factor in pair)]
    with pass_plan.use_plan(pass_plan.PassPlan(segments=segments, size=8)):
        got = layer(hidden, chosen, weights)
    expected = torch.stack(
        [
            token_alone(experts, layer, k, hidden[t], chosen[t], weights[t])
            for k, i, j in parts
            for t in range(i, j)
        ]
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    outer = drawn(8, 32).detach()
    torch.testing.assert_close(
        torch.autograd.grad((got * outer).sum(), leaves),
        torch.autograd.grad((expected * outer).sum(), leaves),
        rtol=1e-4,
        atol=1e-5,
    )


def mixed_experts() -> Any:
    experts: Any = network(bases.MIXTURES["mixtral"]).model.layers[0].mlp.experts
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.2)
    return experts


def token_alone(
    experts: Any, layer: lora_layers.StackedExperts, k: int, x: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """A token's output by W + scale * B A of each of its experts, written out."""

    def matrix(name: str, expert: int) -> Tensor:
        a, b = (factor[k] for factor in layer.factors[name])
        low, high = a.view(4, 2, -1)[expert], b.view(len(b), 2, 4)[:, :, expert]
        return getattr(experts, name)[expert] + layer.scale * high @ low

    y = torch.zeros_like(x)
    for expert, weight in zip(chosen.tolist(), weights, strict=True):
        if expert < 4:
            gate, up = (matrix("gate_up_proj", expert) @ x).chunk(2)
            y = y + weight * (matrix("down_proj", expert) @ (nn.functional.silu(gate) * up))
    return y


def test_outside_a_pass_it_is_the_base_and_shows_what_the_base_is() -> None:
    experts = mixed_experts()
    layer = lora_layers.StackedExperts(experts, scale=1.0)
    hidden, chosen, weights = torch.randn(5, 32), torch.randint(0, 4, (5, 2)), torch.rand(5, 2)
    assert layer(hidden, chosen, weights).equal(experts(hidden, chosen, weights))
    assert layer.num_experts == 4
    with pytest.raises(AttributeError):
        _ = layer.nose


def test_a_bfloat16_base_trains_float32_factors() -> None:
    experts = mixed_experts().bfloat16()
    layer = lora_layers.StackedExperts(experts, scale=1.0)
    a, b = torch.randn(1, 8, 48).requires_grad_(), torch.zeros(1, 32, 8).requires_grad_()
    layer.factors = {"down_proj": (a, b)}
    hidden, chosen = torch.randn(5, 32).bfloat16(), torch.randint(0, 4, (5, 2))
    with pass_plan.use_plan(pass_plan.sequences([5])):
        y = layer(hidden, chosen, torch.rand(5, 2))  # routers keep float32
    y.float().sum().backward()
    assert (y.dtype, a.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert b.grad.abs().max() > 0


# --- what else works with such tensors


def test_an_outline_agrees_with_the_loaded_base(mixtral: Base) -> None:
    found = meta_shapes.shapes(mixtral.name, mixtral.adapter)
    assert list(found.items()) == list(mixtral.shapes.items())
    assert found["base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"] == (12, 32)


@pytest.mark.parametrize(
    "algorithm", [ffa_lora.build(ffa_lora.Config()), fedprox.build(fedprox.Config(mu=0.1))]
)
def test_algorithms_train_them(mixtral: Base, algorithm: Any) -> None:
    visit = tune.Visit(client="a", data=bases.tokens(1, [9, 7, 8]), batches=[np.arange(3)] * 2)
    sent = Broadcast(round=0, adapter=bases.random_adapter(mixtral, 1), seed=0)
    (tuned,) = bases.tuned(mixtral, sent, algorithm, [visit], TuningTable(), learning_rate=0.01)
    stacks = {name for name in mixtral.shapes if ".experts." in name and algorithm.trainable(name, 0)}
    assert {name for name in tuned.delta if ".experts." in name} == stacks
    assert all(tuned.delta[name].any() for name in stacks)


def test_adapters_side_by_side_answer_as_each_alone(mixtral: Base) -> None:
    adapters = [bases.random_adapter(mixtral, seed, size=0.3) for seed in (1, 2)]
    prompts = [[1, 5, 6, 7], [1, 8, 9]]

    def answers(*chosen: Adapter) -> list[list[list[int]]]:
        return generate.answer(mixtral, chosen, prompts, 8, [2])

    together = answers(*adapters)
    assert together == [*answers(adapters[0]), *answers(adapters[1])]
    assert together[0] != together[1]


# --- what is refused


def jetmoe() -> Any:
    return CONFIG_MAPPING["jetmoe"](
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_key_value_heads=2,
        kv_channels=8, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "target", "message"),
    [
        ("mixtral", "experts.up_proj", r"lacks; remove it, or set it to \['mlp.experts.down_proj', 'mlp.exp"),
        (
            "mixtral",
            "mlp.gate.weight",
            r"a parameter of model.layers.0.mlp.gate \(MixtralTopKRouter\), which",
        ),
        ("mixtral", "q_proj.weight", r"\(Linear\), which does not follow transformers' interface for exp"),
        ("llama", "mlp.experts.down_proj", r"lacks; remove it \(this base has no stacked experts\)"),
        ("jetmoe", "mlp.input_linear.weight", r"\(JetMoeParallelExperts\), which does not follow .*no stack"),
    ],
)
def test_a_parameter_that_cannot_be_adapted_is_named_with_what_to_write(
    config: str, target: str, message: str
) -> None:
    configs = {**bases.CONFIGS, **bases.MIXTURES, "jetmoe": jetmoe()}
    table = AdapterTable(target_parameters=(target,))
    with pytest.raises(BaseError, match=rf"adapter\.target_parameters names '{target}', .*{message}"):
        lora.attach(network(configs[config]), table)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "experts.gate_up_proj",
            r"a stack of experts' matrices; .*target_parameters = \['mlp.experts.gate_up",
        ),
        ("down_proj", r"a stack of experts' matrices; set adapter.target_parameters = \['mlp.experts.down"),
        ("experts", r"experts without linear modules; set .* = \['mlp.experts.down_proj', 'mlp.experts.g"),
        ("mlp.gate", r"which is not a linear module but a MixtralTopKRouter; the linear ones are \['k_proj'"),
        (
            "norm.weight",
            r"which is not a linear module but a parameter \(32,\); the linear modules are \['k_p",
        ),
        ("lm_head", "the head, which cannot be adapted"),
        ("w1", r"which this base lacks; it has \['k_proj', 'o_proj', 'q_proj', 'v_proj'\]"),
    ],
)
def test_a_target_that_is_no_linear_module_says_what_to_write(target: str, message: str) -> None:
    with pytest.raises(BaseError, match=rf"adapter\.targets names '{target}', {message}"):
        lora.attach(network(bases.MIXTURES["mixtral"]), AdapterTable(targets=("q_proj", target)))


def test_experts_alone_may_be_tuned() -> None:
    table = AdapterTable(targets=(), target_parameters=("experts.down_proj",))
    targets = lora.attach(network(bases.MIXTURES["qwen3_moe"]), table)
    assert {target.parameter for target in targets} == {"down_proj"}
