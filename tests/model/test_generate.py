"""Answers against transformers' generate of a PEFT model, one prompt at a time."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from shepherd.core import Adapter
from shepherd.data.examples import Turn
from shepherd.data.template import Template, prompt, stop_ids
from shepherd.errors import BaseError
from shepherd.io import progress
from shepherd.model import base as loading
from shepherd.model import decode
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


@pytest.mark.parametrize("name", bases.CONFIGS)
def test_greedy_answers_are_the_same_alone_and_beside_others(name: str, tmp_path) -> None:
    """Padding, positions and windows (5 tokens in three of them) leave no trace, whatever the lengths."""
    base = bases.load(bases.save(bases.CONFIGS[name], tmp_path))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, bases.VOCABULARY, n).tolist() for n in (1, 40, 3, 17, 8)]
    arms = [adapter(base, 1), None]
    together = answers(base, *arms, prompts=prompts)
    for arm, found in zip(arms, together, strict=True):
        assert found == [answers(base, arm, prompts=[prompt])[0][0] for prompt in prompts]
    assert len({tuple(answer) for arm in together for answer in arm}) >= 5


def test_a_long_prompt_does_not_shorten_the_answers_to_others(base) -> None:
    prompts = [[5, 9, 22], [7] * 60, [8, 8]]
    (found,) = answers(base, None, prompts=prompts, stop=[0])
    assert found[0] == answers(base, None, prompts=prompts[:1], stop=[0])[0][0]
    assert len(found[0]) > len(found[1])
    assert len(found[1]) <= 4  # the base reads 64


def test_batches_are_bounded_in_tokens(llama, monkeypatch) -> None:
    expected = answers(llama, adapter(llama, 1), None)
    sizes = []

    def counted(base, adapters, prompts, longest, *rest, **more):
        sizes.append(len(adapters) * len(prompts) * (max(map(len, prompts)) + longest))
        return answer(base, adapters, prompts, longest, *rest, **more)

    answer = generation.answer
    monkeypatch.setattr(generation, "answer", counted)
    monkeypatch.setattr(generation, "MAX_BATCH_TOKENS", 60)
    assert answers(llama, adapter(llama, 1), None) == expected
    assert len(sizes) == 3
    assert max(sizes) <= 60


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


def without_leaving(base: Base) -> Base:
    """The same base, answered through transformers' own generate."""
    return replace(base, proof=replace(base.proof, decodes=False))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
def test_an_answer_ends_with_the_first_of_the_texts_that_end_it(base, options) -> None:
    arms = [adapter(base, 1), None]
    free = answers(base, *arms, stop=[0], **options)

    def text(ids: list[int]) -> str:
        return base.tokenizer.decode(ids, skip_special_tokens=True)

    until = [text(free[0][0][:3]), text(free[0][2][:6])]
    ended = answers(base, *arms, stop=[0], until=until, **options)
    for whole, cut in zip([*free[0], *free[1]], [*ended[0], *ended[1]], strict=True):
        lengths = range(1, len(whole) + 1)
        holds = [n for n in lengths if any(each in text(whole[:n]) for each in until)]
        assert cut == whole[: holds[0] if holds else len(whole)]
    assert all(until)
    assert len(ended[0][0]) <= 3
    assert ended == answers(without_leaving(base), *arms, stop=[0], until=until, **options)


def test_a_row_that_ended_with_a_text_leaves_the_batch(llama, monkeypatch) -> None:
    (whole,) = answers(llama, adapter(llama, 1), stop=[0])
    rows, read = [], decode.Rows.read
    monkeypatch.setattr(decode.Rows, "read", lambda self, *of: rows.append(len(of[0])) or read(self, *of))
    answers(llama, adapter(llama, 1), stop=[0], until=[llama.tokenizer.decode(whole[0][2])])
    assert rows[-1] < len(PROMPTS)


def test_small_batches_change_nothing(llama, monkeypatch) -> None:
    expected = answers(llama, adapter(llama, 1), None)
    monkeypatch.setattr(generation, "MAX_BATCH_SEQUENCES", 4)  # two prompts for each of two arms
    assert answers(llama, adapter(llama, 1), None) == expected


def test_no_prompt_has_no_answer(llama) -> None:
    assert answers(llama, None, prompts=[]) == [[]]


# --- sampling


def permuted(items: list, order: list[int]) -> list:
    return [items[i] for i in order]


def test_sampling_goes_by_its_seed_and_no_global_generator(llama) -> None:
    def states() -> tuple[object, ...]:
        _, keys, place, *_ = np.random.get_state()  # noqa: NPY002 - the global one is the point
        return random.getstate(), keys.tobytes(), place, torch.get_rng_state().numpy().tobytes()

    before = states()
    first = answers(llama, adapter(llama, 1), temperature=1.0, seed=3)
    assert states() == before
    torch.manual_seed(123)
    assert answers(llama, adapter(llama, 1), temperature=1.0, seed=3) == first
    assert answers(llama, adapter(llama, 1), temperature=1.0, seed=4) != first


def test_a_sampled_answer_does_not_depend_on_what_is_asked_beside_it(llama, monkeypatch) -> None:
    arms, sampled = [adapter(llama, 1), None], {"temperature": 1.2, "top_p": 0.95, "seed": 5}
    together = answers(llama, *arms, **sampled)
    assert len({tuple(answer) for answer in together[0]}) >= 4
    assert together == [answers(llama, arm, **sampled)[0] for arm in arms]
    for place, asked in enumerate(PROMPTS):
        ((alone_,),) = answers(llama, arms[0], prompts=[asked], **sampled)
        assert alone_ == together[0][place]
    order = [3, 0, 4, 1, 2]
    (turned,) = answers(llama, arms[0], prompts=permuted(PROMPTS, order), **sampled)
    assert turned == permuted(together[0], order)
    monkeypatch.setattr(generation, "MAX_BATCH_SEQUENCES", 2)
    assert answers(llama, *arms, **sampled) == together


def test_each_draw_of_a_prompt_is_its_own(llama) -> None:
    several = {"prompts": [PROMPTS[0]] * 4, "temperature": 1.0, "seed": 3}
    (drawn,) = answers(llama, None, draws=[0, 1, 2, 1], **several)
    assert drawn[1] == drawn[3]
    assert len({tuple(answer) for answer in drawn}) == 3
    (alone_,) = answers(llama, None, prompts=[PROMPTS[0]], temperature=1.0, seed=3, draws=[2])
    assert alone_ == [drawn[2]]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (2.0, 0.8), (1.0, 0.3)])
def test_a_token_is_picked_as_often_as_its_share(temperature: float, top_p: float) -> None:
    """Against transformers' own warpers, within five standard errors."""
    scores = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 3
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, scores.clone()))
    expected = torch.softmax(warped.double(), -1)[0].numpy()
    prompts, steps = 200, 100
    sampler = generation.Sampler(range(prompts), temperature, top_p, torch.device("cpu"))
    picked = []
    for _ in range(steps):
        left = sampler(None, scores.repeat(prompts, 1))
        assert (left.isfinite().sum(-1) == 1).all()
        picked.append(left.argmax(-1))
    count = prompts * steps
    found = np.bincount(torch.cat(picked).numpy(), minlength=40) / count
    assert (abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count)).all()


def test_rounding_changes_no_token_of_a_large_vocabulary() -> None:
    """Tokens that are hardly likely, one beside the other, are where a sum of shares would be off."""
    prompts, vocabulary = 200, 50_000
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(prompts, vocabulary, generator=generator)
    rounded = scores + 1e-6 * torch.randn(scores.shape, generator=generator)
    first, second = (
        generation.Sampler(range(prompts), 1.0, 1.0, torch.device("cpu"))(None, each).argmax(-1)
        for each in (scores, rounded)
    )
    assert (first == second).all()
    assert len(set(first.tolist())) > 190


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_sampling_on_cuda_goes_by_its_seed_and_leaves_the_global_generator_alone(llama_folder) -> None:
    table = ModelTable(base=str(llama_folder), dtype="float32")
    base = loading.load(table, AdapterTable(rank=3), device="cuda")
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
    assert llama.max_length == 64
    with pytest.raises(BaseError, match=r"a prompt has 64 tokens and base .* reads at most 64; shorten"):
        generation.generate(llama, [None], [[5] * 64], max_new_tokens=4, stop=[2])
    with pytest.raises(BaseError, match=r"prompt 2 of 3 has 70 tokens"):
        generation.generate(llama, [None], [[5], [5] * 70, [5]], max_new_tokens=4, stop=[2])
    ((answer,),) = generation.generate(llama, [None], [[5] * 63], max_new_tokens=4, stop=[2])
    assert len(answer) <= 1


@pytest.mark.parametrize(
    ("option", "value", "said"),
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
def test_numbers_out_of_their_range_are_refused(llama: Base, option: str, value: float, said: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, option: value}
    with pytest.raises(BaseError, match=said):
        generation.generate(llama, [None], [[5]], stop=[2], **options)


def test_no_prompt_gets_no_answer(llama: Base) -> None:
    assert generation.generate(llama, [None, None], [], max_new_tokens=4, stop=[2]) == [[], []]


def test_a_stage_says_how_far_it_is(llama: Base, monkeypatch) -> None:
    monkeypatch.setattr(generation, "MAX_BATCH_SEQUENCES", 2)
    lines: list[str] = []
    advance = progress.Stage.advance

    def told(now: progress.Stage, count: int = 1) -> None:
        advance(now, count)
        lines.append(now.line(now.began))

    monkeypatch.setattr(progress.Stage, "advance", told)
    generation.generate(llama, [None], PROMPTS[:3], max_new_tokens=40, stop=[0])
    assert any(line.startswith("answering 3 prompts: 2 of 3") for line in lines)


SMOLLM2 = Path(os.environ.get("SHEPHERD_SMOLLM2", "~/.cache/shepherd/SmolLM2-135M-Instruct")).expanduser()


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"SmolLM2 is not in {SMOLLM2} (SHEPHERD_SMOLLM2)")
def test_a_real_base_answers_alone_as_beside_others() -> None:
    table = ModelTable(base=str(SMOLLM2), dtype="float32")
    base = loading.load(table, AdapterTable(rank=8), device="cpu")
    texts = [
        "Name three animals.",
        "What is 7 times 8?",
        "Write a haiku about the sea.",
        "Summarise: " + "The river rose for three days and the mill stood still. " * 12,
        "Translate to French: good morning",
        "List the planets, and say of each how far from the sun it is.",
        "Why? " * 60,
        "Who wrote Hamlet, and when was it first performed? Answer in one sentence.",
    ]
    asked = [prompt((Turn(role="user", text=text),), Template("chat"), base.tokenizer) for text in texts]
    assert max(map(len, asked)) > 4 * min(map(len, asked))
    stop, arms = stop_ids(Template("chat"), base.tokenizer), [bases.random_adapter(base, 1, size=0.03), None]
    for options in ({}, {"temperature": 0.8, "top_p": 0.95, "seed": 7}):
        options = {"max_new_tokens": 40, "stop": stop, **options}
        together = generation.generate(base, arms, asked, **options)
        for arm, found in zip(arms, together, strict=True):
            alone = [generation.generate(base, [arm], [ids], **options)[0][0] for ids in asked]
            assert found == alone
        assert together[0] != together[1]
