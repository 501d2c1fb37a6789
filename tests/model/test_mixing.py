"""Several adapters as one: against PEFT's add_weighted_adapter, and against dense sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from shepherd.core import Adapter
from shepherd.errors import AdapterError
from shepherd.model import files, lora, mixing
from shepherd.model.lora import Target
from shepherd.model.mixing import Mixture, Part
from tests.model import bases

ONE = Target(module="q", inputs=4, outputs=3)
EXPERTS = Target(module="mlp", inputs=4, outputs=3, parameter="down", experts=2)
WEIGHTS = (0.7, -0.2)
SCALES = (2.0, 0.5)


def part(target: Target, rank: int, seed: int, scale: float = 1.0, weight: float = 1.0) -> Part:
    rng = np.random.default_rng(seed)
    adapter = Adapter({name: rng.normal(size=shape) for name, shape in lora.shapes([target], rank).items()})
    return Part(name=f"adapter {seed}", adapter=adapter, scale=scale, weight=weight)


def change(target: Target, adapter: Adapter, scale: float) -> Any:
    """What each expert's matrix is changed by, (E, out, in), by PEFT's order of rows and columns."""
    a = adapter[target.name_a].astype(float).reshape(target.experts, -1, target.inputs)
    b = adapter[target.name_b].astype(float).reshape(target.outputs, -1, target.experts)
    return scale * np.einsum("ore,eri->eoi", b, a)


@given(
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    weights=arrays.arrays(float, 3, elements=st.floats(-2, 2).filter(lambda weight: abs(weight) > 1e-3)),
    scale=st.sampled_from([0.5, 1.0, 4.0]),
    target=st.sampled_from([ONE, EXPERTS]),
)
def test_the_product_is_the_weighted_sum_of_the_changes(
    ranks: list[int], weights: Any, scale: float, target: Target
) -> None:
    parts = [
        part(target, rank, seed, scale=1.0 + seed, weight=float(weights[seed]))
        for seed, rank in enumerate(ranks)
    ]
    made = mixing.by_product([target], parts, Mixture(scale=scale))
    assert made[target.name_a].shape[0] == sum(ranks) * target.experts
    due = sum(each.weight * change(target, each.adapter, each.scale) for each in parts)
    np.testing.assert_allclose(change(target, made, scale), due, atol=1e-4)


@pytest.mark.parametrize("target", [ONE, EXPERTS])
def test_at_a_rank_it_is_the_best_approximation(target: Target) -> None:
    parts = [part(target, 2, 0, 1.0, 0.5), part(target, 1, 1, 3.0, 0.5)]
    made = mixing.by_product([target], parts, Mixture(scale=2.0, rank=1))
    due = sum(each.weight * change(target, each.adapter, each.scale) for each in parts)
    for found, whole in zip(change(target, made, 2.0), due, strict=True):
        u, s, v = np.linalg.svd(whole)
        np.testing.assert_allclose(found, s[0] * np.outer(u[:, 0], v[0]), atol=1e-5)


def test_one_adapter_alone_is_cut_to_a_rank_or_padded_to_one() -> None:
    alone = part(ONE, 2, 0)
    assert mixing.by_product([ONE], [alone], Mixture(scale=1.0, rank=1))[ONE.name_a].shape == (1, 4)
    wider = mixing.by_product([ONE], [alone], Mixture(scale=1.0, rank=5))
    np.testing.assert_allclose(change(ONE, wider, 1.0), change(ONE, alone.adapter, 1.0), atol=1e-5)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 13)[None], use_cache=False).logits


@pytest.fixture(scope="module")
def pair(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two adapters of one rank and unequal scales, in PEFT's model and as parts."""
    place, parts, whole = tmp_path_factory.mktemp("pair"), [], None
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    for seed, (weight, scale) in enumerate(zip(WEIGHTS, SCALES, strict=True)):
        base = bases.load(llama_folder, rank=3, alpha=3 * scale, rank_stabilised=False)
        adapter = bases.random_adapter(base, seed)
        files.write(place / str(seed), adapter, base)
        parts.append(Part(name=str(seed), adapter=adapter, scale=scale, weight=weight))
        if whole is not None:
            whole.load_adapter(place / str(seed), adapter_name=str(seed))
        else:
            whole = peft.PeftModel.from_pretrained(model, place / "0", adapter_name="0")
    return whole, parts, bases.load(llama_folder, rank=3, alpha=3 * SCALES[0], rank_stabilised=False)


@pytest.mark.parametrize(
    ("way", "theirs", "rank", "density"),
    [
        ("product", "cat", None, None),
        ("product", "svd", 2, None),
        ("linear", "linear", None, None),
        ("ties", "ties", None, 0.3),
        ("ties", "ties", None, None),
    ],
)
def test_each_way_gives_the_logits_of_peft(
    pair: Any,
    way: str,
    theirs: str,
    rank: int | None,
    density: float | None,
    tmp_path: Path,
    llama_folder: Path,
) -> None:
    whole, parts, base = pair
    name = tmp_path.name
    dense = density or mixing.DENSITY
    more = {"density": dense} if way == "ties" else {}
    whole.add_weighted_adapter(["0", "1"], list(WEIGHTS), name, theirs, svd_rank=rank, **more)
    whole.set_adapter(name)
    made = mixing.WAYS[way](base.targets, parts, Mixture(scale=SCALES[0], rank=rank, density=density))
    files.write(tmp_path, made, base)
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    own = logits(peft.PeftModel.from_pretrained(model, tmp_path))
    torch.testing.assert_close(own, logits(whole), atol=1e-4, rtol=1e-4)
    whole.set_adapter("0")
    assert not torch.allclose(own, logits(whole), atol=1e-2)


def test_linear_is_no_sum_of_the_changes() -> None:
    parts = [part(ONE, 2, 0, weight=0.5), part(ONE, 2, 1, weight=0.5)]
    due = sum(0.5 * change(ONE, each.adapter, 1.0) for each in parts)
    made = mixing.by_linear([ONE], parts, Mixture(scale=1.0))
    assert not np.allclose(change(ONE, made, 1.0), due, atol=0.1)
    one = part(ONE, 2, 0, weight=1.0)
    alone = mixing.by_linear([ONE], [one], Mixture(scale=1.0))
    np.testing.assert_allclose(change(ONE, alone, 1.0), change(ONE, one.adapter, 1.0), atol=1e-6)


def test_what_does_not_fit_is_refused_by_name() -> None:
    parts = [part(ONE, 2, 0), part(ONE, 1, 1)]
    for way in ("linear", "ties"):
        with pytest.raises(AdapterError, match=r'q\.lora_A\.weight has rank 1 in adapter 1 .* use "product"'):
            mixing.WAYS[way]([ONE], parts, Mixture(scale=1.0))
        with pytest.raises(AdapterError, match='rank is for "product" alone'):
            mixing.WAYS[way]([ONE], parts, Mixture(scale=1.0, rank=1))
    for way in ("linear", "product"):
        with pytest.raises(AdapterError, match='density is for "ties" alone'):
            mixing.WAYS[way]([ONE], parts[:1], Mixture(scale=1.0, density=0.5))
