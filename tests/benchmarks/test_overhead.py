from time import sleep
from types import ModuleType

import pytest

from benchmarks import overhead


def test_a_clock_adds_up_calls_and_goes_away() -> None:
    module = ModuleType("module")

    def slow(fail: bool) -> str:
        sleep(0.01)
        if fail:
            raise ValueError
        return "done"

    module.slow = slow  # type: ignore[attr-defined]
    with overhead.timed(module, "slow") as clock:
        assert module.slow(False) == "done"
        with pytest.raises(ValueError):  # noqa: PT011
            module.slow(True)
    assert clock.seconds >= 0.02
    assert module.slow is slow
