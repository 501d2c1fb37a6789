import sys

import numpy as np
import psutil
import pytest

from shepherd.federation import heap


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's heap can be given back")
def test_what_is_free_in_the_middle_of_the_heap_goes_back_to_the_system() -> None:
    process, size = psutil.Process(), 100_000  # below what gets a mapping of its own
    held = [np.ones(size, np.uint8) for _ in range(1000)]
    held = held[::100]  # the rest is free, between those that are held
    before = process.memory_info().rss
    heap.give_back()
    assert process.memory_info().rss < before - 50 * 2**20
    assert all(array.all() for array in held)
