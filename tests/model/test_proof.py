"""A base that packing gets wrong never passes for packed, a right one always does, in every dtype."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from benchmarks import tiny
from shepherd.errors import BaseError
from shepherd.model import attention, lora_layers, packing_probe, pass_plan, proof
from shepherd.model import base as loading
from shepherd.model.attention import Reach
from shepherd.model.base import Base, Proof
from shepherd.settings import AdapterTable, ModelTable
from tests.model import bases

TINY = ("deepseek_v3", "gpt_oss", "llama4_text", "qwen2_moe", "gemma3_text")
DTYPES = ("float32", "bfloat16", "float16")
SMOLLM2 = Path(os.environ.get("SHEPHERD_SMOLLM2", "~/.cache/shepherd/SmolLM2-135M-Instruct")).expanduser()
_COMMON = {**bases._COMMON, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    **{name: lambda config=config: config for name, config in bases.CONFIGS.items()},  # type: ignore[misc]
    "capped": lambda: hf.Gemma2Config(**_COMMON, head_dim=8, sliding_window=5, attn_logit_softcapping=1.0),
    "deepseek_v3": lambda: tiny.config("deepseek_v3"),  # values narrower than keys, routed experts
    "gpt_oss": lambda: tiny.config("gpt_oss"),  # sinks, windows, experts
    "llama4_text": lambda: tiny.config(
        "llama4_text", no_rope_layers=[1, 0], attn_temperature_tuning=False
    ),  # chunks
    "qwen2_moe": lambda: tiny.config("qwen2_moe"),  # a window told to the mask alone
    "gemma3_text": lambda: tiny.config("gemma3_text", layer_types=["sliding_attention", "full_attention"]),
}


def load(folder: Path | str, dtype: str = "float32", **more: object) -> Base:
    table = ModelTable(base=str(folder), dtype=dtype)  # type: ignore[arg-type]
    return loading.load(table, AdapterTable(rank=4), device="cpu", **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a base, written once."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            write = tiny.save if name in TINY else bases.save
            folders[name] = write(CONFIGS[name](), tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


def test_a_base_that_reads_too_few_tokens_is_refused(tmp_path) -> None:
    folder = bases.save(hf.LlamaConfig(**{**_COMMON, "max_position_embeddings": 2}), tmp_path)
    with pytest.raises(BaseError, match=r"\(llama\) reads at most 2 tokens, too few"):
        load(folder)


# --- right ones


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_right_base_runs_packed_and_pads_its_prompts(saved, name, dtype) -> None:
    assert load(saved(name), dtype).proof == Proof(unpacked="", pads=True, decodes=True)


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"SmolLM2-135M-Instruct is not in {SMOLLM2}")
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float32", "float16"))]
)
def test_real_weights_run_packed(dtype) -> None:
    assert load(SMOLLM2, dtype).proof == Proof(unpacked="", pads=True, decodes=True)


# --- wrong ones


def no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention, "_reach", lambda module, options: Reach())


def a_key_too_many(patch: pytest.MonkeyPatch) -> None:
    honest = attention._reach

    def reach(*given) -> Reach:
        window, chunk = honest(*given)
        return Reach(window and window + 1, chunk and chunk + 1)

    patch.setattr(attention, "_reach", reach)


def positions_run_on(patch: pytest.MonkeyPatch) -> None:
    honest = pass_plan.positions
    patch.setattr(pass_plan, "positions", lambda *line: honest([sum(line[0])]))


def positions_forget_the_prefix(patch: pytest.MonkeyPatch) -> None:
    honest = pass_plan.positions
    patch.setattr(pass_plan, "positions", lambda lengths, after: honest(lengths))


def a_last_position_off_by_one(patch: pytest.MonkeyPatch) -> None:
    honest = pass_plan.positions

    def positions(*line):
        found = honest(*line)
        found[-1] += 1
        return found

    patch.setattr(pass_plan, "positions", positions)


def examples_see_each_other(patch: pytest.MonkeyPatch) -> None:
    honest = pass_plan.packed
    patch.setattr(
        pass_plan, "packed", lambda lengths, *more, parents, **rest: honest([sum(lengths)], *more, **rest)
    )


def adapters_swapped(patch: pytest.MonkeyPatch) -> None:
    def swapped(plan: pass_plan.PassPlan, tokens: int) -> tuple[pass_plan.Segment, ...]:
        each = tokens // plan.size
        turn = len(plan.segments) > 1
        return tuple(
            pass_plan.Segment(
                adapter=1 - s.adapter if turn else s.adapter, start=s.start * each, stop=s.stop * each
            )
            for s in plan.segments
        )

    patch.setattr(lora_layers, "_in_tokens", swapped)


def a_prefix_without_its_gradient(patch: pytest.MonkeyPatch) -> None:
    def backward(ctx, *grads):
        return grads[0].index_select(0, ctx.buckets.inverse), None

    patch.setattr(attention._Padded, "backward", staticmethod(backward))


def sight_of_the_next_token(patch: pytest.MonkeyPatch) -> None:
    def visible(width, past, reach, device):
        place = torch.arange(past + width, device=device)
        return place[past:, None] + 1 >= place[None, :]

    patch.setattr(attention, "_visible", visible)


def no_sinks(patch: pytest.MonkeyPatch) -> None:
    honest = attention._attention
    patch.setattr(attention, "_attention", lambda *states, **rest: honest(*states, **{**rest, "sinks": None}))


def no_softcap(patch: pytest.MonkeyPatch) -> None:
    honest = attention._attention
    patch.setattr(
        attention, "_attention", lambda *states, **rest: honest(*states, **{**rest, "softcap": None})
    )


FAULTS = [
    ("mistral", no_window),
    ("gemma2", no_window),
    ("gemma3_text", no_window),
    ("qwen2_moe", no_window),
    ("llama4_text", no_window),
    ("mistral", a_key_too_many),
    ("qwen2_moe", a_key_too_many),
    ("llama4_text", a_key_too_many),
    ("gpt_oss", a_key_too_many),
    ("llama", positions_run_on),
    ("gpt2", positions_run_on),
    ("llama", positions_forget_the_prefix),
    ("llama", a_last_position_off_by_one),
    ("llama", examples_see_each_other),
    ("gpt2", examples_see_each_other),
    ("llama", adapters_swapped),
    ("qwen2", a_prefix_without_its_gradient),
    ("llama", sight_of_the_next_token),
    ("gpt_oss", no_sinks),
    ("capped", no_softcap),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_wrong_base_never_runs_packed(saved, monkeypatch, name, fault, dtype) -> None:
    if dtype == "bfloat16":  # masks are kept from one pass to the next there
        monkeypatch.setattr(attention, "_block_mask", attention._block_mask.__wrapped__)
    base = load(saved(name), dtype, proof=Proof())
    fault(monkeypatch)
    found = proof.verify_packing(base)
    assert "packed than alone (relative difference" in found.unpacked
    assert found.pads


def test_a_fault_in_the_code_of_bfloat16_alone_is_noticed(saved, monkeypatch) -> None:
    honest = attention._block_mask.__wrapped__

    def hidden(start, stop, past, reach, groups, dtype):
        return honest(start, stop, past, Reach(reach.window and reach.window + 1), groups, dtype)

    monkeypatch.setattr(attention, "_block_mask", hidden)
    assert load(saved("mistral"), "bfloat16").proof.unpacked
    assert not load(saved("mistral"), "float32").proof.unpacked


def test_noise_that_the_dtype_does_not_explain_is_noticed(saved, monkeypatch) -> None:
    honest = attention.packed_attention

    def noisy(module, query, *more, **options):
        out, none = honest(module, query, *more, **options)
        return (out if query.dtype == torch.float32 else out * 1.5), none

    monkeypatch.setitem(hf.AttentionInterface._global_mapping, attention.PACKED, noisy)
    assert (
        "in bfloat16 its examples get different states packed"
        in load(saved("llama"), "bfloat16").proof.unpacked
    )
    assert not load(saved("llama"), "float32").proof.unpacked


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"SmolLM2-135M-Instruct is not in {SMOLLM2}")
@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        positions_run_on,
        positions_forget_the_prefix,
        a_last_position_off_by_one,
        examples_see_each_other,
        adapters_swapped,
        a_prefix_without_its_gradient,
    ],
)
def test_real_weights_packed_wrong_are_noticed(monkeypatch, fault) -> None:
    base = load(SMOLLM2, "bfloat16", proof=Proof())
    fault(monkeypatch)
    assert "packed than alone (relative difference" in proof.verify_packing(base).unpacked


# --- neither packed nor in batches


def test_a_feed_forward_that_sees_other_examples_is_refused(saved, monkeypatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    honest = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: honest(self, x + x.sum(0, keepdim=True) + x.cumsum(1))
    )
    with pytest.raises(BaseError, match="its examples get different states in a batch than alone"):
        load(saved("llama"))


def test_one_that_looks_ahead_is_refused(saved, monkeypatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    honest = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: honest(self, x + x.roll(-1, 1)))
    with pytest.raises(BaseError, match="a token's states depend on the tokens after it"):
        load(saved("llama"))


def test_a_head_that_is_not_known_is_refused(saved, monkeypatch) -> None:
    honest = hf.LlamaForCausalLM.forward

    def forward(self, *given, **more):
        out = honest(self, *given, **more)
        out.logits = out.logits.square()
        return out

    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    with pytest.raises(BaseError, match="computes its logits in a way that is not supported"):
        load(saved("llama"))


def test_a_head_that_fails_in_the_bases_own_dtype_alone_is_refused(saved, monkeypatch) -> None:
    honest = proof.logits

    def logits(base, hidden):
        return honest(base, hidden) * (1 if base.dtype == torch.float32 else 2)

    monkeypatch.setattr(proof, "logits", logits)
    assert load(saved("llama")).packed
    with pytest.raises(BaseError, match="computes its logits in a way that is not supported"):
        load(saved("llama"), "bfloat16")


def test_an_error_in_the_architectures_own_code_is_told_with_its_place(saved, monkeypatch) -> None:
    from transformers.models.llama import modeling_llama

    def broken(x):
        raise ValueError("no")

    monkeypatch.setattr(modeling_llama, "rotate_half", broken)
    with pytest.raises(BaseError, match=r"does not run: .* at modeling_llama\.apply_rotary_pos_emb"):
        load(saved("llama"))


def test_activations_that_overflow_float16_are_named(saved, tmp_path) -> None:
    for file in saved("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    for part in ("up_proj", "down_proj"):
        weights[f"model.layers.0.mlp.{part}.weight"] *= 500
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseError, match=r'overflows float16; set model.dtype = "bfloat16" or "float32"'):
        load(tmp_path, "float16")
    assert load(tmp_path, "bfloat16").packed


def test_a_slice_that_cannot_generate_makes_no_base_mute(saved, monkeypatch) -> None:
    honest = proof._scores
    base = load(saved("llama"), proof=Proof())

    def scores(probe, prompts):
        if probe.base.model is not base.model:
            raise ValueError("no layers")
        return honest(probe, prompts)

    monkeypatch.setattr(proof, "_scores", scores)
    assert proof.verify_packing(base) == Proof(pads=False, batches=False)


# --- what is run


def test_a_large_base_is_proven_on_as_many_layers_as_have_every_kind(tmp_path, monkeypatch) -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", *["sliding_attention"] * 3]
    config = tiny.config("gemma3_text", num_hidden_layers=6, layer_types=kinds, sliding_window=90)
    folder = tiny.save(config, tmp_path)
    monkeypatch.setattr(packing_probe, "MAX_WHOLE_BYTES", 0)
    seen = []
    honest = packing_probe.copy_network

    def copied(*given):
        seen.append(honest(*given))
        return seen[-1]

    monkeypatch.setattr(packing_probe, "copy_network", copied)
    base = load(folder)
    assert base.packed
    assert [len(network.model.layers) for network in seen] == [3]
    assert seen[0].config.sliding_window == 16  # and the probe stays short
    assert len(base.model.model.layers) == base.model.config.num_hidden_layers == 6
    assert base.model.config.sliding_window == 90
    first = base.model.model.layers[0].mlp.up_proj.base.weight
    assert seen[0].model.layers[0].mlp.up_proj.base.weight.data_ptr() == first.data_ptr()  # no second copy


def test_a_border_that_no_example_reaches_needs_no_proof(saved, monkeypatch) -> None:
    no_window(monkeypatch)
    assert load(saved("qwen2_moe"), longest=16).packed
    assert not load(saved("qwen2_moe"), longest=17).packed


@pytest.mark.parametrize("longest", [None, 100])
def test_a_scale_that_is_counted_along_the_line_is_noticed_though_no_example_reaches_it(
    tmp_path, longest
) -> None:
    config = tiny.config("llama4_text", no_rope_layers=[1, 0])
    assert config.attn_temperature_tuning
    assert config.floor_scale == 8192
    base = load(tiny.save(config, tmp_path), longest=longest)
    assert "different states packed than alone" in base.proof.unpacked
    assert base.model.config.floor_scale == 8192


def test_a_scale_that_follows_the_positions_runs_packed(tmp_path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5}
    rope["original_max_position_embeddings"] = 16
    assert load(tiny.save(tiny.config("ministral3", rope_parameters=rope), tmp_path)).packed


def test_what_was_proven_is_not_proven_again(saved, monkeypatch) -> None:
    monkeypatch.setattr(proof, "verify_packing", None)
    found = Proof(unpacked="as told", pads=False)
    assert load(saved("llama"), proof=found).proof == found
