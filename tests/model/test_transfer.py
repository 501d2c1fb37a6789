"""What is sent as one buffer arrives as it was, whatever its dtypes and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shepherd.model import pass_plan
from shepherd.model.transfer import to_device

DTYPES = (torch.int64, torch.int32, torch.float32, torch.bool, torch.bfloat16, torch.uint8)
ELSEWHERE = mock.Mock(type="elsewhere")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    tensors: tuple[Tensor, ...]
    again: Tensor
    inner: Sent | None = None
    name: str = "kept"


def sent(value: object) -> tuple[object, int]:
    """The value sent to a device that is not the processor, and the copies that it took."""
    copies = 0
    honest = Tensor.to

    def to(tensor: Tensor, device: object, **options: object) -> Tensor:
        nonlocal copies
        copies += 1
        assert device is ELSEWHERE
        assert options == {"non_blocking": True}
        return honest(tensor, "cpu").clone()

    with mock.patch.object(Tensor, "to", to):
        return to_device(value, ELSEWHERE), copies


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), min_size=1))
def test_every_tensor_arrives_as_it_was_in_one_copy(forms) -> None:
    rng = np.random.default_rng(0)
    tensors = tuple(torch.from_numpy(rng.integers(0, 2, shape)).to(dtype) for dtype, shape in forms)
    value = Sent(tensors=tensors, again=tensors[0], inner=Sent(tensors=tensors[:1], again=tensors[-1]))
    found, copies = sent(value)
    assert copies == 1
    for own, expected in zip(found.tensors, tensors, strict=True):
        assert own is not expected
        assert (own.dtype, own.shape) == (expected.dtype, expected.shape)
        assert own.equal(expected)
    assert found.again is found.tensors[0] is found.inner.tensors[0]
    assert found.name == "kept"


def test_on_the_processor_nothing_is_copied() -> None:
    value = Sent(tensors=(torch.ones(2),), again=torch.ones(1))
    assert to_device(value, torch.device("cpu")) is value


def test_keys_that_are_the_queries_stay_them() -> None:
    found, copies = sent(pass_plan.packed([3, 2], [], torch.device("cpu"), cuda=True))
    assert copies == 1
    assert found.padding.keys is found.padding.queries
    assert found.varlen.query_ends.tolist() == [0, 3, 5]
