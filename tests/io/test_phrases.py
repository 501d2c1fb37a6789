"""What is printed of a guarantee is never below the truth, and is as near to it as its digits allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.io.phrases import delta_text, epsilon_text

TEXTS = {epsilon_text: 4, delta_text: 3}


@pytest.mark.parametrize("text", TEXTS)
@given(value=st.floats(1e-12, 1e12))
def test_no_printed_number_is_below_the_truth(text, value: float) -> None:
    shown = float(text(value))
    assert value <= shown <= value * (1 + 10.0 ** (1 - TEXTS[text]) * 1.001)


@pytest.mark.parametrize("text", TEXTS)
@given(digits=st.integers(1, 999), power=st.integers(-12, 9))
def test_what_its_digits_can_say_is_printed_as_it_is(text, digits: int, power: int) -> None:
    value = float(f"{digits}e{power}")
    assert float(text(value)) == value


def test_nothing_is_zero() -> None:
    assert epsilon_text(0.0) == "0"
