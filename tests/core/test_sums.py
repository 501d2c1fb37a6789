import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core.sums import BLOCK, Sums
from shepherd.errors import AdapterError


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=4), st.integers(0, 2**32))
def test_blocks_give_the_bits_of_whole_arrays(weights, seed):
    rng = np.random.default_rng(seed)
    shapes = {"one": (3, 5), "more": (2, BLOCK // 2 + 7), "none": (0, 4), "number": (), "after": (BLOCK - 9,)}
    sums = Sums()
    whole = {name: np.zeros(shape) for name, shape in shapes.items()}
    for weight in weights:
        tensors = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
        sums.add(tensors, weight)
        for name, tensor in tensors.items():
            whole[name] = whole[name] + tensor.astype(np.float64) * weight
    for name, tensor in sums.mean(4.0).items():
        assert tensor.tobytes() == (whole[name] / 4.0).astype(np.float32).tobytes()


def test_a_payload_in_another_order_is_added_by_name():
    sums = Sums()
    sums.add({"a": np.ones(2), "b": np.full(2, 5.0)}, 1.0)
    sums.add({"b": np.full(2, 7.0), "a": np.full(2, 3.0)}, 1.0)
    assert {name: total.tolist() for name, total in sums.mean(2.0).items()} == {"a": [2, 2], "b": [6, 6]}


def test_a_payload_of_other_names_is_not_added():
    sums = Sums()
    sums.add({"a": np.ones(2)}, 1.0)
    with pytest.raises(AdapterError, match="tensor b"):
        sums.add({"a": np.ones(2), "b": np.ones(2)}, 1.0)
    empty = Sums()
    empty.add({}, 1.0)
    with pytest.raises(AdapterError, match="tensor b"):
        empty.add({"b": np.ones(2)}, 1.0)
