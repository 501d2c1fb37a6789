"""Text measures on hand-worked cases, in any script."""

from __future__ import annotations

import pytest

from shepherd.evaluate.text import exact, f1, rouge_l


@pytest.mark.parametrize(
    "text",
    ["a red fox", "Москва", "東京", "Übergröße", "नमस्ते दुनिया", "สวัสดีครับ", "서울에 산다", "مرحبا", "ខ្មែរ"],
)
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


def test_one_wrong_number_in_japanese_is_not_all_wrong() -> None:
    """Ten of eleven tokens in common: ten characters, and 10mg against 5mg."""
    given = "アスピリンは通常10mgです。", "アスピリンは通常5mgです。"
    assert exact(*given) == 0
    assert f1(*given) == pytest.approx(10 / 11)
    assert rouge_l(*given) == pytest.approx(10 / 11)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("アスピリンは通常です", "アスピリンは通常です。"),
        ("「東京」、大阪", "東京 大阪"),
        ("１０ｍｇ", "10mg"),
        ("«Да», – сказал он…", "да сказал он"),
        ("don’t", "don't"),
        ("¿Qué? ¡Sí!", "qué sí"),
        ("هل هذا صحيح؟", "هل هذا صحيح"),
    ],
)
def test_punctuation_of_any_script_does_not_count(answer: str, reference: str) -> None:
    assert exact(answer, reference) == f1(answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("我喜欢红苹果", "我喜欢绿苹果", 5 / 6),
        ("ฉันกินข้าว", "ฉันกินปลา", 5 / 8),  # ฉั น กิ น are shared, then ข้ า ว against ป ล า
        ("नमस्ते दुनिया", "नमस्ते भारत", 1 / 2),
    ],
)
def test_order_counts_by_character_where_there_are_no_spaces(
    answer: str, reference: str, expected: float
) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected, abs=0.12)


def test_english_is_scored_as_squad_has_it() -> None:
    assert exact("well-known: U.S.", "wellknown US") == 1.0
    assert f1("a red fox", "the red dog") == pytest.approx(0.5)
    assert rouge_l("well-known", "well known") == 1.0
