"""The shipped base loads offline, knows its world, and cannot follow an instruction yet."""

import os
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from shepherd import plugins  # noqa: E402
from shepherd.world import SEED, base_path, build, rows  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import train_base  # noqa: E402

WORLD = build(SEED)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(base_path())


def test_it_is_a_small_llama_in_safetensors(model: Any) -> None:
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert 2e6 < model.num_parameters() < 6e6
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        file.name for file in base_path().iterdir()
    }
    assert sum(file.stat().st_size for file in base_path().iterdir()) <= 10_000_000


@pytest.mark.parametrize("text", ["### Response:\nbaker", "Ünïcode — 東京 🐑", "a  b\n\n\tc ", "0x7F"])
def test_any_text_comes_back_and_nothing_is_added(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)


def test_it_knows_its_world(model: Any, tokenizer: Any) -> None:
    known, asked = train_base.completed(model, tokenizer, WORLD, seed=1, sample=120)
    assert known >= 0.8 * asked


def test_untuned_it_follows_almost_no_instruction(model: Any, tokenizer: Any) -> None:
    asked = Random(0).sample(rows(WORLD, 50, seed=9), 64)
    answers = train_base.continued(model, tokenizer, [_prompt(row) for row in asked], pieces=24)
    ended = [answer.split(tokenizer.eos_token)[0] for answer in answers]
    right = sum(plugins.checker(row["check"]).right(text) for row, text in zip(asked, ended, strict=True))
    assert right < 0.1 * len(asked)


def _prompt(row: dict[str, Any]) -> str:
    context = f"\n\n### Input:\n{row['context']}" if row["context"] else ""
    return f"### Instruction:\n{row['instruction']}{context}\n\n### Response:\n"
