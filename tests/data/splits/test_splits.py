"""What each split promises beyond the contract of all."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data.examples import Example, Turn
from shepherd.data.split import rule, split
from shepherd.data.splits.size import sizes_for
from shepherd.errors import DataError
from shepherd.settings import SplitTable


def example(number=0, category="", client="", label="", instruction="", context=""):
    user = Turn(role="user", text=instruction or f"Question {number}", context=context)
    turns = (user, Turn(role="assistant", text="Answer"))
    return Example(
        turns=turns, category=category, client=client, label=label, where=f"f.jsonl, line {number}"
    )


def many(*categories, client=""):
    return [example(number, category, client) for number, category in enumerate(categories)]


def covered(shares, count):
    every = np.concatenate(list(shares.values()))
    return sorted(every.tolist()) == list(range(count)) and all(len(part) for part in shares.values())


def named(by="iid", **keys):
    return rule(SplitTable(by=by, **keys))


@pytest.mark.parametrize("count", [80, 83, 87])
def test_shards_are_even_and_hold_neighbours_only(count):
    """FedIT: 4 clients with 2 shards of the sorted data; no example is lost to the remainder."""
    categories = sorted("abcdefgh" * 11)[:count]
    shares = split(many(*categories), named(by="shards", clients=4), 0)
    assert covered(shares, count)
    for part in shares.values():
        assert 2 * (count // 8) <= len(part) <= 2 * (count // 8 + 1)
        assert len({categories[index] for index in part}) <= 4  # two shards touch at most two each


def test_shards_of_one_category_each_where_they_fit():
    shares = split(many(*"aabbccdd" * 10), named(by="shards", clients=2), 3)
    assert [len({"aabbccdd"[index % 8] for index in part}) for part in shares.values()] == [2, 2]


def test_dirichlet_follows_its_alpha():
    examples = many(*"abcd" * 200)

    def spread(alpha):
        shares = split(examples, named(by="dirichlet", clients=4, alpha=alpha), 0)
        top = [
            max(Counter(examples[i].category for i in part).values()) / len(part) for part in shares.values()
        ]
        return np.mean(top)

    assert spread(1000.0) < 0.35 < 0.6 < spread(0.1)


def test_an_impossible_dirichlet_is_an_error_and_not_an_endless_loop():
    with pytest.raises(DataError, match=r"alpha 0\.001 .* raise split\.alpha"):
        split(many(*"ab" * 30), named(by="dirichlet", clients=50, alpha=0.001), 0)


@given(examples=st.integers(1, 300), clients=st.integers(1, 40), exponent=st.floats(0, 20))
def test_sizes_grow_and_add_up(examples, clients, exponent):
    clients = min(clients, examples)
    sizes = sizes_for(examples, clients, exponent)
    assert sum(sizes) == examples
    assert min(sizes) >= 1
    assert all(b >= a - 1 for a, b in pairwise(sizes))


def test_sizes_are_proportional():
    shares = split(many(*"a" * 100), named(by="size", clients=4, size_exponent=1.0), 0)
    assert [len(part) for part in shares.values()] == [10, 20, 30, 40]
    shares = split(many(*"a" * 100), named(by="size", clients=4, size_exponent=0.0), 0)
    assert [len(part) for part in shares.values()] == [25, 25, 25, 25]


def test_names_are_padded_or_the_clients_own(capsys):
    shares = split(many(*"a" * 12), named(by="iid", clients=11), 0)
    assert list(shares)[:2] == ["client-00", "client-01"]
    examples = [example(n, client=name) for n, name in enumerate(["c10", "c2", "c10", "b"])]
    for by in ("natural", "ready-made"):
        shares = split(examples, named(by=by, **({"field": "author"} if by == "natural" else {})), 0)
        assert {name: part.tolist() for name, part in shares.items()} == {"b": [3], "c2": [1], "c10": [0, 2]}
        assert list(shares) == ["b", "c2", "c10"]
    assert capsys.readouterr() == ("", "")


def test_a_split_by_another_field_than_the_category():
    examples = [example(n, category="same", label="xy"[n % 2]) for n in range(40)]
    shares = split(examples, named(by="shards", clients=2, shards_per_client=1, field="topic"), 0)
    assert sorted(part[0] % 2 for part in shares.values()) == [0, 1]
    assert [len(set((part % 2).tolist())) for part in shares.values()] == [1, 1]


@pytest.mark.parametrize(
    ("examples", "table", "words"),
    [
        ([], named(), "no example to split"),
        (many("a"), named(clients=2), "client client-1 would be empty"),
        (many("a", ""), named(by="shards", clients=1), "line 1 has no category"),
        (many("a", "a"), named(by="dirichlet", clients=1, field="topic"), "line 0 has no topic"),
        (many(*"aaa"), named(by="shards", clients=2), "4 shards of only 3 examples"),
        (many("a"), named(by="natural", field="author"), "has no client"),
        (many("a"), named(by="ready-made"), "needs a folder"),
    ],
)
def test_a_split_that_cannot_be_says_so(examples, table, words):
    with pytest.raises(DataError, match=words):
        split(examples, table, 0)
