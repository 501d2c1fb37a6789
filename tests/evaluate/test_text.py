"""Text measures on hand-worked cases, in any script."""

from __future__ import annotations

import pytest

from shepherd.evaluate.text import against


@pytest.mark.parametrize("text", ["a red fox", "Москва", "東京", "Übergröße"])
def test_the_reference_itself_scores_1(text: str) -> None:
    assert against(text, text) == {"exact": 1.0, "f1": 1.0, "rouge_l": 1.0}


def test_shared_words_and_their_order() -> None:
    """Two of three words shared; the longest common subsequence keeps their order."""
    found = against("fox red big", "red fox jumps")
    assert found["exact"] == 0
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["rouge_l"] == pytest.approx(1 / 3)


def test_nothing_shared_is_0() -> None:
    assert against("one", "two") == {"exact": 0.0, "f1": 0.0, "rouge_l": 0.0}
