"""Examples as flat arrays: the same as rendering each, on disk and back, and counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data import template
from shepherd.data.examples import Example, Turn
from shepherd.data.template import Template, render
from shepherd.data.tokens import Tokens, load, save_together, tokenise
from shepherd.errors import DataError


def one(instruction, response, context=""):
    user = Turn(role="user", text=instruction, context=context)
    return Example(turns=(user, Turn(role="assistant", text=response)))


EXAMPLES = [
    one("Name a bird.", "A heron."),
    one("word " * 200, "Dropped."),
    one("Sum up.", "Birds.", "Some text about birds. " * 20),
    one("Name a fish.", "A gull is not one."),
]


@pytest.fixture
def found(neox):
    return tokenise(EXAMPLES, Template("alpaca-short"), neox, max_tokens=64)


def test_tokens_are_what_render_gives(found, neox):
    tokens, outcomes = found
    kept = outcomes.kept
    assert kept.tolist() == [0, 2, 3]
    assert len(tokens) == 3
    assert (tokens.ids.dtype, tokens.loss_mask.dtype, tokens.offsets.dtype) == ("int32", "bool", "int64")
    for place, index in enumerate(kept):
        alone = render(EXAMPLES[index], Template("alpaca-short"), neox, max_tokens=64)
        ids, mask = tokens.example(place)
        assert ids.tolist() == alone.ids.tolist()
        assert mask.tolist() == alone.loss_mask.tolist()
        assert tokens.lengths[place] == len(ids)


def test_counts_add_up(found):
    tokens, outcomes = found
    counts = outcomes.counts()
    assert (counts.examples, counts.kept, counts.cut) == (4, 3, 1)
    assert counts.dropped == {"its prompt leaves no room for a response": 1}
    assert counts.tokens == len(tokens.ids) == counts.trained + counts.masked
    assert counts.trained == tokens.loss_mask.sum()
    assert (counts.share_cut, counts.share_dropped) == (1 / 3, 1 / 4)
    assert counts.share_masked == counts.masked / counts.tokens


def test_nothing_at_all_counts_nothing(neox):
    tokens, outcomes = tokenise([], Template("plain"), neox, max_tokens=64)
    counts = outcomes.counts()
    assert (len(tokens), len(outcomes.kept), counts.share_cut, counts.share_masked) == (0, 0, 0.0, 0.0)


def test_counts_of_a_part_are_those_of_it_alone(found, neox):
    """Places in any order; the first dropped one of a reason is named by its own place."""
    _, outcomes = found
    for places in ([1], [3, 1, 0], [2]):
        own = [EXAMPLES[place] for place in places]
        alone = tokenise(own, Template("alpaca-short"), neox, max_tokens=64)[1]
        assert outcomes.counts(np.array(places)) == alone.counts()


def test_batches_change_nothing_and_few_examples_are_held_at_a_time(found, neox, monkeypatch):
    """An iterator is asked for the next batch only when the last one is tokenised."""
    monkeypatch.setattr(template, "EXAMPLES_PER_BATCH", 2)
    asked, made = [], []

    def one_by_one():
        for place, example in enumerate(EXAMPLES):
            asked.append(place)
            yield example

    for outcome in template.rendered(one_by_one(), Template("alpaca-short"), neox, max_tokens=64):
        made.append((outcome, len(asked)))
    assert [count for _, count in made] == [2, 2, 4, 4]
    tokens, outcomes = tokenise(one_by_one(), Template("alpaca-short"), neox, max_tokens=64)
    assert outcomes.counts() == found[1].counts()
    for name in ("ids", "loss_mask", "offsets"):
        assert np.array_equal(getattr(tokens, name), getattr(found[0], name))


def test_take_orders_and_repeats(found):
    tokens, _ = found
    taken = tokens.take([2, 0, 2])
    assert [ids.tolist() for ids, _ in map(taken.example, range(3))] == [
        tokens.example(place)[0].tolist() for place in (2, 0, 2)
    ]
    assert len(tokens.take([])) == 0
    with pytest.raises(IndexError, match="example 3 of 3"):
        tokens.take([3])


@pytest.mark.parametrize("take", [[0, 1, 2], []])
def test_saved_and_loaded_are_the_same_and_mapped(found, tmp_path, take):
    tokens = found[0].take(take)
    tokens.save(tmp_path / "deep" / "tokens")
    tokens.save(tmp_path / "deep" / "tokens")  # replaces
    back = load(tmp_path / "deep" / "tokens")
    for name in ("ids", "loss_mask", "offsets"):
        assert np.array_equal(getattr(back, name), getattr(tokens, name))
        assert not getattr(back, name).flags.writeable or not take
    assert isinstance(back.offsets, np.memmap)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["tokens"]


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6))
def test_what_is_saved_together_comes_apart_again(tmp_path_factory, parts):
    """Each part a list of lengths; some hold nothing."""
    made = []
    for lengths in parts:
        ids = np.arange(sum(lengths), dtype=np.int32)
        made.append(Tokens(ids=ids, loss_mask=ids % 2 == 0, offsets=np.cumsum([0, *lengths], dtype=np.int64)))
    folder = tmp_path_factory.mktemp("together")
    save_together(folder / "tokens", made)
    whole = load(folder / "tokens")
    for part, back in zip(made, whole.split([len(part) for part in made]), strict=True):
        for name in ("ids", "loss_mask", "offsets"):
            assert np.array_equal(getattr(back, name), getattr(part, name))
            assert getattr(back, name).dtype == getattr(part, name).dtype
    with pytest.raises(DataError, match="but the parts have"):
        whole.split([len(whole) + 1])


def test_a_failed_save_leaves_the_old_one(found, tmp_path, monkeypatch):
    found[0].save(tmp_path / "tokens")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        found[0].take([0]).save(tmp_path / "tokens")
    assert len(load(tmp_path / "tokens")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


@pytest.mark.parametrize("name", ["ids", "trained", "offsets"])
@pytest.mark.parametrize("fault", ["gone", "cut", "short", "kind"])
def test_a_damaged_folder_is_named(found, tmp_path, name, fault):
    found[0].save(tmp_path)
    path = tmp_path / f"{name}.npy"
    match fault:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
        case "short":
            np.save(path, np.load(path)[:-1])
        case "kind":
            np.save(path, np.load(path).astype(np.float32))
    with pytest.raises(DataError, match="remove the folder"):
        load(tmp_path)


def test_an_example_beyond_the_end_is_refused():
    tokens = Tokens(
        ids=np.zeros(2, np.int32), loss_mask=np.zeros(2, np.bool_), offsets=np.array([0, 2], np.int64)
    )
    with pytest.raises(IndexError, match="example -1 of 1"):
        tokens.example(-1)
