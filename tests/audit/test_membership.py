"""Scores of membership against their papers' formulas, and who is compared with whom."""

import math
import zlib

import numpy as np
import pytest
from tests.model import bases

from shepherd.audit import membership
from shepherd.audit.membership import Candidates
from shepherd.data.dataset import TokenisedData
from shepherd.data.examples import Example, Turn
from shepherd.errors import DataError
from shepherd.training.score import TokenScores

RNG = np.random.default_rng(2)


def drawn(lengths):
    """A vocabulary of 7 tokens, drawn for each place; two models."""
    logits = 2 * RNG.standard_normal((2, sum(lengths), 7))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = RNG.integers(7, size=sum(lengths))
    return logs, targets


def scored(logs, targets, lengths):
    shares = np.exp(logs)
    means = (shares * logs).sum(-1)
    return TokenScores(
        logs=np.take_along_axis(logs, targets[None, :, None], axis=2)[..., 0],
        means=means,
        deviations=np.sqrt((shares * (logs - means[..., None]) ** 2).sum(-1)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )


def test_each_score_is_that_of_its_paper():
    """A text of fewer than five tokens goes by one token, where a fifth of it would be none."""
    lengths, sizes = [11, 3, 1, 5], np.array([40.0, 12.0, 9.0, 20.0])
    logs, targets = drawn(lengths)
    found = membership.scores(scored(logs, targets, lengths), 1, sizes)
    assert tuple(found) == membership.SCORES
    starts = np.cumsum([0, *lengths])
    for i, length in enumerate(lengths):
        at = np.arange(starts[i], starts[i + 1])
        own = [logs[1, place, targets[place]] for place in at]
        before = [logs[0, place, targets[place]] for place in at]
        few = max(1, math.floor(0.2 * length))
        normal = []
        for place in at:
            shares = np.exp(logs[1, place])
            mean = np.average(logs[1, place], weights=shares)
            spread = np.sqrt(np.average((logs[1, place] - mean) ** 2, weights=shares))
            normal.append((logs[1, place, targets[place]] - mean) / spread)
        expected = {
            "loss": np.mean(own),
            "reference": np.mean(own) - np.mean(before),
            "zlib": np.sum(own) / sizes[i],
            "min_k": np.mean(sorted(own)[:few]),
            "min_k_plus": np.mean(sorted(normal)[:few]),
        }
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected)


def test_a_place_where_only_one_token_is_possible_gives_no_infinite_score():
    certain = TokenScores(
        logs=np.zeros((2, 1)), means=np.zeros((2, 1)), deviations=np.zeros((2, 1)), offsets=np.array([0, 1])
    )
    found = membership.scores(certain, 1, np.array([9.0]))
    assert all(np.isfinite(values).all() for values in found.values())


def test_a_model_that_diverged_has_scores_too():
    lost = TokenScores(
        logs=np.array([[-1.0, -2.0], [np.nan, -np.inf]]),
        means=np.full((2, 2), np.nan),
        deviations=np.full((2, 2), np.nan),
        offsets=np.array([0, 2]),
    )
    found = membership.scores(lost, 1, np.array([9.0]))
    assert all(np.isfinite(values).all() for values in found.values())


def test_the_compressed_length_is_of_the_trained_text(llama):
    data = bases.tokens(3, [9, 5])
    ids, trained = data.example(0)
    text = llama.tokenizer.decode(ids[trained]).encode()
    assert membership.compressed(llama, data)[0] == len(zlib.compress(text))


def prepared(held=30, clients=("a", "b"), owners=("",), example_categories=True):
    """Data of 20 examples a client, and some held out, in two categories."""
    names = ["odd", "even"]
    parts = {name: bases.tokens(k, [6] * 20) for k, name in enumerate(clients)}
    turns = (Turn(role="user", text="w5"), Turn(role="assistant", text="w6"))
    return TokenisedData(
        clients=parts,
        category_counts={name: {"odd": 10, "even": 10} for name in clients},
        heldout=bases.tokens(9, [6] * 30).take(range(held)),
        heldout_examples=[
            Example(turns=turns, category=names[i % 2], client=owners[i % len(owners)]) for i in range(held)
        ],
        summary={},
        example_categories={name: [names[i % 2] for i in range(20)] for name in clients}
        if example_categories
        else {},
    )


def test_candidates_are_members_then_others_drawn_evenly():
    found = membership.candidates(prepared(), 24, {}, seed=0)
    assert found.members == 24
    assert len(found.data) == 48
    assert sorted(found.clients) == ["a"] * 12 + ["b"] * 12
    assert found.categories[24:].count("odd") == 12
    again = membership.candidates(prepared(), 24, {}, seed=0)
    assert (again.data.ids == found.data.ids).all()
    assert (membership.candidates(prepared(), 24, {}, seed=1).data.ids != found.data.ids).any()


def test_a_client_that_was_never_trained_on_has_no_members():
    found = membership.candidates(prepared(), 100, {"a": 0.0, "b": 0.5}, seed=0)
    assert set(found.clients) == {"b"}


def test_a_clients_members_are_compared_with_what_it_held_out_itself():
    found = membership.candidates(prepared(owners=("a", "b", "b")), 100, {}, seed=0)
    assert len(found.own["a"]) == 10
    assert len(found.own["b"]) == 20
    assert len(membership.candidates(prepared(), 100, {}, seed=0).own["a"]) == 30  # nobody's: all are like it


@pytest.mark.parametrize(("held", "what"), [(0, "0 held-out examples"), (9, "9 held-out examples")])
def test_too_few_held_out_examples_are_one_sentence(held, what):
    with pytest.raises(DataError, match=what):
        membership.candidates(prepared(held), 100, {}, seed=0)


def test_too_few_members_are_one_sentence():
    with pytest.raises(DataError, match="0 examples that the run trained on"):
        membership.candidates(prepared(), 100, {"a": 0.0, "b": 0.0}, seed=0)


def test_groups_that_are_too_small_are_left_out():
    values = np.arange(60.0)
    found = Candidates(
        data=bases.tokens(0, [3] * 60),
        clients=("a",) * 25 + ("b",) * 5,
        categories=("x", "y") * 30,
        own={"a": np.arange(30), "b": np.arange(30)},
    )
    each = membership.attacked(dict.fromkeys(membership.SCORES, -values), found)
    assert list(each.clients) == ["a"]
    assert each.clients["a"].members == 25
    assert list(each.categories) == ["x", "y"]
    assert each.scores["loss"].auc.value == 1.0


def test_categories_that_a_folder_does_not_know_are_left_out():
    found = membership.candidates(prepared(example_categories=False), 100, {}, seed=0)
    values = np.zeros(len(found.data))
    assert membership.attacked(dict.fromkeys(membership.SCORES, values), found).categories == {}
