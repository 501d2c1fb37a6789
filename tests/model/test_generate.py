"""Answers against transformers' generate of a PEFT model, one prompt at a time."""

from __future__ import annotations

import json
import random
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shepherd.core import Adapter
from shepherd.errors import BaseError
from shepherd.model import base as loading
from shepherd.model import generate as generation
from shepherd.model.base import Base
from shepherd.settings import AdapterTable, ModelTable
from tests.model import bases
from tests.model.in_peft import in_peft

PROMPTS = [[5, 9, 22], [7], [30, 31, 32, 33, 34, 35, 36], [8, 8], [50, 4, 17]]
STOP = [2]


def answers(
    base: Base, *adapters: Adapter | None, prompts=PROMPTS, stop=STOP, **options
) -> list[list[list[int]]]:
    return generation.generate(base, adapters, prompts, max_new_tokens=12, stop=stop, **options)


def alone(model, prompt: list[int], stop: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
    )
    new = out[0, len(prompt) :].tolist()
    return new[: next((i for i, token in enumerate(new) if token in stop), len(new))]


def adapter(base: Base, seed: int) -> Adapter:
    return bases.random_adapter(base, seed, size=0.5)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory) -> Base:
    return bases.load(bases.save(bases.CONFIGS[request.param], tmp_path_factory.mktemp(request.param)))


def test_greedy_answers_are_those_of_peft_one_by_one(base, tmp_path) -> None:
    model = in_peft(base, adapter(base, 1), tmp_path)
    expected = [alone(model, prompt, STOP) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) >= 3
    (got,) = answers(base, adapter(base, 1))
    assert got == expected


def test_several_adapters_and_the_base_alone_answer_in_one_pass_as_each_by_itself(base) -> None:
    arms = [adapter(base, 1), None, adapter(base, 2)]
    together = answers(base, *arms)
    assert together == [answers(base, arm)[0] for arm in arms]
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32).eval()
    assert together[1] == [alone(model, prompt, STOP) for prompt in PROMPTS]
    assert together[0] != together[1] != together[2]


def test_an_answer_ends_before_its_first_stop_token(llama) -> None:
    (whole,) = answers(llama, adapter(llama, 1), stop=[0])
    stop = [whole[0][4], whole[2][2]]
    (cut,) = answers(llama, adapter(llama, 1), stop=stop)
    for long, short in zip(whole, cut, strict=True):
        assert short == long[: next((i for i, token in enumerate(long) if token in stop), len(long))]
    assert len(cut[0]) <= 4
    assert len(cut[2]) <= 2


def test_small_batches_change_nothing(llama, monkeypatch) -> None:
    expected = answers(llama, adapter(llama, 1), None)
    monkeypatch.setattr(generation, "BATCH", 4)  # two prompts for each of two arms
    assert answers(llama, adapter(llama, 1), None) == expected


def test_no_prompt_has_no_answer(llama) -> None:
    assert answers(llama, None, prompts=[]) == [[]]


def test_sampling_goes_by_its_seed_and_leaves_the_global_generators_alone(llama) -> None:
    def states() -> tuple[object, ...]:
        _, keys, place, *_ = np.random.get_state()  # noqa: NPY002 - the global one is the point
        return random.getstate(), keys.tobytes(), place, torch.get_rng_state().numpy().tobytes()

    before = states()
    first = answers(llama, adapter(llama, 1), temperature=1.0, seed=3)
    assert states() == before
    torch.manual_seed(123)
    assert answers(llama, adapter(llama, 1), temperature=1.0, seed=3) == first
    assert answers(llama, adapter(llama, 1), temperature=1.0, seed=4) != first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_sampling_leaves_cudas_global_generator_alone(llama_folder) -> None:
    table = ModelTable(base=str(llama_folder), dtype="float32", device="cuda")
    base = loading.load(table, AdapterTable(rank=3))
    before = torch.cuda.get_rng_state()
    first = answers(base, adapter(base, 1), temperature=1.0, seed=3)
    assert torch.cuda.get_rng_state().equal(before)
    torch.cuda.manual_seed(123)
    assert answers(base, adapter(base, 1), temperature=1.0, seed=3) == first


def test_sampling_from_next_to_nothing_is_greedy(llama) -> None:
    greedy = answers(llama, adapter(llama, 1))
    assert answers(llama, adapter(llama, 1), temperature=1.0, top_p=1e-6) == greedy
    assert answers(llama, adapter(llama, 1), temperature=1e-4) == greedy


def test_a_bases_own_habits_do_not_make_greedy_something_else(llama, llama_folder, tmp_path) -> None:
    """Some bases ship a repetition penalty or a sampling temperature with their weights."""
    folder = shutil.copytree(llama_folder, tmp_path / "copy")
    habits = {"repetition_penalty": 5.0, "do_sample": True, "temperature": 9.0, "top_k": 3}
    (folder / "generation_config.json").write_text(json.dumps(habits))
    base = bases.load(folder)
    assert answers(base, adapter(base, 1)) == answers(llama, adapter(llama, 1))


def test_a_prompt_without_room_for_an_answer_is_refused_by_name(llama: Base) -> None:
    assert llama.reads == 64
    with pytest.raises(BaseError, match=r"a prompt has 64 tokens and base .* reads 64; shorten"):
        generation.generate(llama, [None], [[5] * 64], max_new_tokens=4, stop=[2])
    ((answer,),) = generation.generate(llama, [None], [[5] * 63], max_new_tokens=4, stop=[2])
    assert len(answer) <= 1


@pytest.mark.parametrize(
    ("option", "value", "mend"),
    [
        ("temperature", float("nan"), "0 is greedy"),
        ("temperature", float("inf"), "0 is greedy"),
        ("temperature", -1.0, "0 is greedy"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_p", float("nan"), "above 0 and at most 1"),
        ("max_new_tokens", 0, "at least 1"),
    ],
)
def test_numbers_out_of_their_range_are_refused(llama: Base, option: str, value: float, mend: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, option: value}
    with pytest.raises(BaseError, match=mend):
        generation.generate(llama, [None], [[5]], stop=[2], **options)


def test_no_prompt_gets_no_answer(llama: Base) -> None:
    assert generation.generate(llama, [None, None], [], max_new_tokens=4, stop=[2]) == [[], []]
