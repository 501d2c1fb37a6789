"""Text measures on hand-worked cases, in any script."""

from __future__ import annotations

import pytest

from shepherd.evaluate.text import exact, f1, rouge_l


@pytest.mark.parametrize("text", ["a red fox", "Москва", "東京", "Übergröße"])
def test_the_reference_itself_scores_1(text: str) -> None:
    assert exact(text, text) == f1(text, text) == rouge_l(text, text) == 1.0


def test_shared_words_and_their_order() -> None:
    """Two of three words shared; the longest common subsequence keeps their order."""
    given = "fox red big", "red fox jumps"
    assert exact(*given) == 0
    assert f1(*given) == pytest.approx(2 / 3)
    assert rouge_l(*given) == pytest.approx(1 / 3)


def test_nothing_shared_is_0() -> None:
    assert exact("one", "two") == f1("one", "two") == rouge_l("one", "two") == 0.0
