"""Streamed answers against `generate`'s, which are compared with PEFT's elsewhere."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from shepherd.core import Adapter
from shepherd.errors import BaseError
from shepherd.model import generate as generation
from shepherd.model import pass_plan
from shepherd.model.base import Base
from shepherd.model.stream import stream
from tests.model import bases

PROMPT = [30, 31, 32, 33]
Steps = list[list[list[int]]]


def steps(base: Base, *adapters: Adapter | None, prompt=PROMPT, **options) -> Steps:
    return list(stream(base, adapters, prompt, **{"max_new_tokens": 12, "stop": [2], **options}))


def whole(base: Base, *adapters: Adapter | None, prompt=PROMPT, **options) -> list[list[int]]:
    options = {"max_new_tokens": 12, "stop": [2], **options}
    return [answers[0] for answers in generation.generate(base, adapters, [prompt], **options)]


@pytest.fixture(scope="module")
def arms(llama: Base) -> list[Adapter | None]:
    return [None, *(bases.random_adapter(llama, seed, size=0.5) for seed in (1, 2))]


@given(prompt=st.lists(st.integers(4, 60), min_size=1, max_size=9), stop=st.integers(4, 60))
@how(max_examples=10)
def test_it_ends_with_the_very_ids_of_generate(llama, arms, prompt, stop) -> None:
    options = {"prompt": prompt, "stop": [2, stop]}
    assert steps(llama, *arms, **options)[-1] == whole(llama, *arms, **options)


def test_every_step_adds_a_token_to_each_answer_that_goes_on(llama, arms) -> None:
    first = whole(llama, *arms)
    stop = [2, first[0][3]]  # the base's answer ends there at the latest
    seen = steps(llama, *arms, stop=stop)
    last = seen[-1]
    assert len({len(answer) for answer in last}) > 1
    for before, after in pairwise(seen):
        assert all(new[: len(old)] == old for old, new in zip(before, after, strict=True))
        assert all(len(new) - len(old) <= 1 for old, new in zip(before, after, strict=True))
    for number, step in enumerate(seen, 1):
        assert [len(answer) for answer in step] == [min(number, len(answer)) for answer in last]


def test_sampling_goes_by_its_seed_and_leaves_the_global_generator_alone(llama, arms) -> None:
    sampled = {"temperature": 1.5, "top_p": 0.9}
    before = torch.get_rng_state()
    first = steps(llama, *arms, **sampled, seed=3)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(123)
    assert steps(llama, *arms, **sampled, seed=3) == first
    assert first[-1] == whole(llama, *arms, **sampled, seed=3)
    assert steps(llama, *arms, **sampled, seed=4) != first


def test_closing_it_ends_the_work(llama, arms, monkeypatch) -> None:
    passes = []
    allowed = threading.Semaphore(2)
    forward = llama.model.forward

    def counted(*given, **options):
        assert allowed.acquire(timeout=10)
        passes.append(pass_plan.active_plan())
        return forward(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "forward", counted)
        going = stream(llama, arms, PROMPT, max_new_tokens=55, stop=[2])
        next(going), next(going)
        threading.Timer(0.05, allowed.release).start()  # closing waits for the step that is going on
        going.close()
    assert len(passes) == 3
    assert all(each is not None for each in passes)
    assert not any(thread.name.startswith("stream") for thread in threading.enumerate())
    assert steps(llama, *arms)[-1] == whole(llama, *arms)  # and the base answers on


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_read(llama, monkeypatch) -> None:
    def broken(*given, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(llama.model, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        steps(llama, None)


def test_what_generate_refuses_is_refused(llama) -> None:
    with pytest.raises(BaseError, match="a prompt has 64 tokens"):
        steps(llama, None, prompt=[5] * 64)
    with pytest.raises(BaseError, match="0 is greedy"):
        steps(llama, None, temperature=-1.0)


def test_nobody_asked_nobody_answers(llama) -> None:
    assert steps(llama) == []
