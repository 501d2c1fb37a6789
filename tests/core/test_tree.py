"""Trees of arrays come back from their shape and their table as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shepherd.core.tree import flattened, rebuilt

LEAVES = arrays.arrays(
    st.sampled_from([np.float32, np.int8, np.uint16]), arrays.array_shapes(min_dims=0, min_side=0), fill=None
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(st.text(), inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
)


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    assert isinstance(one, np.ndarray)
    assert isinstance(other, np.ndarray)
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@given(tree=TREES)
def test_a_tree_comes_back_through_json_with_every_bit(tree: object) -> None:
    tensors: dict[str, np.ndarray] = {}
    shape = json.loads(json.dumps(flattened(tree, tensors)))
    assert same(rebuilt(shape, tensors), tree)
    assert tensors == {}


def test_a_missing_array_and_a_leaf_that_is_no_array_are_named() -> None:
    tensors: dict[str, np.ndarray] = {}
    shape = flattened({"a": (np.zeros(2), np.ones(1))}, tensors)
    del tensors['["a", 1]']
    with pytest.raises(KeyError, match=r"\[\"a\", 1\]"):
        rebuilt(shape, dict(tensors))
    with pytest.raises(KeyError, match=r"\[\"a\"\]"):
        rebuilt({"a": 3}, {})


def test_an_array_without_a_place_is_left_over() -> None:
    tensors = {'["a"]': np.zeros(1), '["b"]': np.ones(1)}
    rebuilt({"a": None}, tensors)
    assert list(tensors) == ['["b"]']
