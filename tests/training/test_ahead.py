"""What is made ahead comes in order, one item early, and a failure reaches the caller."""

from __future__ import annotations

import threading
from unittest import mock

import pytest
import torch

from shepherd.training.ahead import ahead

GPU = mock.Mock(type="cuda")


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("device", [torch.device("cpu"), GPU])
def test_items_come_in_order(device, count: int) -> None:
    assert list(ahead(lambda n: n * n, range(count), device)) == [n * n for n in range(count)]


def test_beside_a_gpu_the_next_is_made_while_the_caller_works() -> None:
    begun = [threading.Event() for _ in range(3)]

    def make(number: int) -> int:
        begun[number].set()
        return number

    for number in ahead(make, range(2), GPU):
        assert begun[min(number + 1, 1)].wait(5)
    assert not begun[2].is_set()


def test_on_a_processor_nothing_is_made_early() -> None:
    made: list[int] = []
    for number in ahead(lambda n: made.append(n) or n, range(3), torch.device("cpu")):
        assert made == list(range(number + 1))


def test_a_failure_is_raised_where_the_item_would_come() -> None:
    found = ahead(lambda n: 1 // (1 - n), range(2), GPU)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
