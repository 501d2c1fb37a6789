"""Decoding rows that are repeated and leave: the work that is done, and the same logits as alone."""

from __future__ import annotations

from copy import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from shepherd.model import decode, lora
from shepherd.model import generate as generation
from shepherd.model.base import Base
from shepherd.model.decode import Rows, left_padded
from shepherd.model.pass_plan import MAX_PADDING_RATIO
from tests.model import bases

SYSTEM = list(range(10, 22))
PROMPTS = [[*SYSTEM, 30, 31], [*SYSTEM, 40], [*SYSTEM, 30, 50, 51, 52]]


@pytest.fixture
def shapes(llama, monkeypatch) -> list[tuple[int, int]]:
    """(rows, tokens) of each pass."""
    seen: list[tuple[int, int]] = []
    read = Rows.read

    def counted(self, ids, mask):
        seen.append(tuple(ids.shape))
        return read(self, ids, mask)

    monkeypatch.setattr(Rows, "read", counted)
    return seen


def arms(base: Base, count: int):
    return [bases.random_adapter(base, seed, size=0.5) for seed in range(1, count + 1)]


def answers(base: Base, adapters, prompts, stop=(2,), **options):
    return generation.generate(base, adapters, prompts, max_new_tokens=12, stop=stop, **options)


def test_what_all_prompts_begin_with_is_read_once_for_each_adapter(llama, shapes) -> None:
    chosen = arms(llama, 2)
    together = answers(llama, chosen, PROMPTS)
    assert shapes[:2] == [(2, len(SYSTEM)), (6, 4)]
    assert together == [[answers(llama, [arm], [prompt])[0][0] for prompt in PROMPTS] for arm in chosen]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_prompts_of_many_lengths_that_begin_alike_are_answered_as_alone(name, tmp_path, monkeypatch) -> None:
    """In passes of their own, or in one pass where there are windows (5 tokens in two of the three)."""
    monkeypatch.setattr(decode, "MIN_PASS_TOKENS", 0)
    base = bases.load(bases.save(bases.CONFIGS[name], tmp_path))
    prompts = [[*SYSTEM, *range(20, 20 + n)] for n in (1, 17, 3, 2, 18, 9)]
    chosen = [*arms(base, 2), None]
    passes, read = [], Rows.read
    monkeypatch.setattr(Rows, "read", lambda self, *of: passes.append(of[0].shape[1]) or read(self, *of))
    together = answers(base, chosen, prompts)
    assert (sum(width > 1 for width in passes) > 3) == (name == "llama")
    assert together == [[answers(base, [arm], [prompt])[0][0] for prompt in prompts] for arm in chosen]


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40), copies=st.integers(1, 8))
def test_a_pass_over_prompts_is_padded_little_unless_it_is_short(lengths, copies) -> None:
    found = decode._buckets(lengths, copies)
    assert sorted(number for bucket in found for number in bucket) == list(range(len(lengths)))
    for bucket in found:
        real, width = sum(lengths[i] for i in bucket), max(lengths[i] for i in bucket)
        before = copies * (real - width)
        assert len(bucket) * width <= MAX_PADDING_RATIO * real or before < decode.MIN_PASS_TOKENS


def test_a_prompt_with_several_samples_is_read_once(llama, shapes) -> None:
    asked, draws = [PROMPTS[0]] * 3 + [[7]], [0, 1, 2, 0]
    (found,) = answers(llama, arms(llama, 1), asked, temperature=1.0, draws=draws)
    assert shapes[0] == (2, len(PROMPTS[0]))  # the two prompts, of four rows
    assert shapes[1][0] == 4
    alone = [
        answers(llama, arms(llama, 1), [prompt], temperature=1.0, draws=[draw])[0][0]
        for prompt, draw in zip(asked, draws, strict=True)
    ]
    assert found == alone
    assert len(set(map(tuple, found[:3]))) > 1


def test_a_finished_row_leaves_and_the_others_do_not_notice(llama, shapes) -> None:
    (whole,) = answers(llama, arms(llama, 1), PROMPTS, stop=(0,))
    stop = whole[1][2]  # so that it is the second prompt's third token
    shapes.clear()
    (found,) = answers(llama, arms(llama, 1), PROMPTS, stop=(stop,))
    expected = [row[: row.index(stop)] if stop in row else row for row in whole]
    assert found == expected
    steps = [rows for rows, tokens in shapes if tokens == 1]
    assert steps[0] > steps[-1]
    assert all(before >= after for before, after in pairwise(steps))
    # exactly as many rows as are still without their end, and none for the last token
    lengths = [len(row) + (len(row) < 12) for row in expected]
    assert sum(steps) == sum(lengths) - len(lengths)


def test_few_finished_rows_stay_until_it_pays_to_leave(llama, shapes) -> None:
    prompts = [[4 + number, 30, 31] for number in range(16)]
    (whole,) = answers(llama, arms(llama, 1), prompts, stop=(0,))
    early = [token for row in whole for token in row[1:6]]
    stop = next(token for token in early if sum(token in row for row in whole) == 1)
    expected = [row[: row.index(stop)] if stop in row else row for row in whole]
    shapes.clear()
    (found,) = answers(llama, arms(llama, 1), prompts, stop=(stop,))
    assert found == expected
    steps = [rows for rows, tokens in shapes if tokens == 1]
    for step, rows in enumerate(steps, start=1):
        going = sum(len(row) >= step for row in expected)
        assert going >= (1 - decode.MOST_IDLE) * rows
        assert rows in (16, *(sum(len(row) >= earlier for row in expected) for earlier in range(1, step + 1)))
    assert any(rows > sum(len(row) >= step for row in expected) for step, rows in enumerate(steps, start=1))


@settings(max_examples=30)
@given(data=st.data())
def test_keys_and_values_in_place_are_those_of_transformers_cache(data) -> None:
    """Whatever is added, kept and copied: also when a copy goes its own way."""
    pairs = [(decode._InPlace(), DynamicLayer())]
    rows = {0: data.draw(st.integers(1, 4))}
    for number in range(data.draw(st.integers(1, 6))):
        which = data.draw(st.sampled_from(sorted(rows)))
        ours, theirs = pairs[which]
        new = torch.full((rows[which], 2, data.draw(st.sampled_from([1, 1, 1, 5, 70])), 3), float(number))
        new += torch.arange(rows[which]).view(-1, 1, 1, 1)
        for mine, own in zip(ours.update(new, -new), theirs.update(new, -new), strict=True):
            assert torch.equal(mine, own)
        index = torch.tensor(data.draw(st.lists(st.integers(0, rows[which] - 1), min_size=1, max_size=4)))
        pairs.append((copy(ours), copy(theirs)))
        for layer in pairs[-1]:
            layer.batch_select_indices(index)
        rows[len(pairs) - 1] = len(index)
    for ours, theirs in pairs:
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_the_host_reads_once_a_token(llama, monkeypatch) -> None:
    """On a GPU each reading waits for all work before it; all rows' tokens come in one."""
    read, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(len(self)) or tolist(self))
    (found,) = answers(llama, [None], [[8, 9, 10], [11, 12, 13]], stop=(0,))
    steps = [min(len(row) + 1, 12) for row in found]  # with that of the token that ends it
    assert read == [sum(step < own for own in steps) for step in range(max(steps))]


@settings(max_examples=15)
@given(data=st.data())
def test_rows_have_the_logits_that_they_have_alone(llama, data) -> None:
    prompts = data.draw(
        st.lists(
            st.lists(st.integers(4, bases.VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=4
        )
    )
    stack = lora.stacked(arms(llama, 2), llama.device)
    stack = lora.for_answers(stack, lora.scaling(llama.adapter), llama.dtype)
    lora.bind_adapters(llama.model, llama.targets, stack)
    owners = sorted(data.draw(st.lists(st.integers(0, 1), min_size=len(prompts), max_size=len(prompts))))
    with torch.inference_mode():
        rows = Rows(base=llama, owners=owners)
        scores, texts = rows.read(*left_padded(prompts, 0, llama.device)), [list(each) for each in prompts]
        for _ in range(3):
            for text, owner, own in zip(texts, rows.owners, scores, strict=True):
                alone = Rows(base=llama, owners=[owner])
                torch.testing.assert_close(
                    alone.read(*left_padded([text], 0, llama.device))[0], own, rtol=1e-4, atol=1e-4
                )
            kept = sorted(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5)))
            rows.take(kept)
            tokens = scores[kept].argmax(-1)
            texts = [[*texts[row], int(token)] for row, token in zip(kept, tokens, strict=True)]
            scores = rows.read(tokens.unsqueeze(1), torch.ones(len(kept), 1, dtype=torch.long))


def test_a_base_that_keeps_more_than_keys_and_values_answers_the_other_way(tmp_path) -> None:
    base = bases.load(bases.save(bases.CONFIGS["gemma2"], tmp_path))
    assert decode.is_possible(base)
    assert base.proof.decodes
    import transformers as hf

    config = hf.MambaConfig(vocab_size=bases.VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    mamba = hf.MambaForCausalLM(config)

    class Other:
        model = mamba

    assert not decode.is_possible(Other())
