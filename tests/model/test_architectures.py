"""Every causal language model that transformers knows is tuned rightly, or refused with the reason."""

from __future__ import annotations

import pytest

from benchmarks import architectures

EXPECTED = architectures.read_expected()
# of each kind of attention, state, feed-forward and refusal one that people use
SOME = (
    "bert", "bloom", "deepseek_v3", "falcon", "falcon_h1", "gpt_neo", "gpt_oss", "granitemoehybrid", "lfm2",
    "llama4_text", "moshi", "phimoe", "qwen2_moe", "qwen3_next",
)  # fmt: skip


def require_expected(kind: str) -> None:
    found = architectures.look(kind)
    assert found.expected == EXPECTED[kind]
    assert found.right, found


@pytest.mark.parametrize("kind", SOME)
def test_these_are_as_expected(kind: str) -> None:
    require_expected(kind)


@pytest.mark.architectures
@pytest.mark.parametrize("kind", architectures.names())
def test_all_are_as_expected(kind: str) -> None:
    require_expected(kind)


def test_the_table_and_its_page_are_of_every_type() -> None:
    assert sorted(EXPECTED) == architectures.names()
    assert architectures.PAGE.read_text(encoding="utf8") == architectures.page(EXPECTED)


ALWAYS_PACKED = (
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "beam", "bert-generation", "biogpt", "bitnet",
    "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama",
    "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "fuyu", "gemma", "gemma2",
    "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite",
    "gpt2", "gpt-sw3", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "granitemoeshared", "helium",
    "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder",
    "jais2", "jetmoe", "kolibri1", "laguna", "llama", "longcat_flash", "mellum", "minicpm3", "minimax_m2",
    "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "moshi",
    "moss_transcribe_diarize", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt",
    "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "solar_open", "stablelm", "starcoder2", "vaultgemma", "whisper", "youtu",
)  # fmt: skip


@pytest.mark.parametrize("kind", ALWAYS_PACKED)
def test_what_was_once_packed_stays_so(kind: str) -> None:
    assert EXPECTED[kind]["runs"] == "packed"
