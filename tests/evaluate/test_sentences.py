"""Sentences, word by word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shepherd.evaluate.metric import metrics
from shepherd.evaluate.metrics.right import MEASURE as RIGHT
from shepherd.evaluate.sentences import LOSS, Measure, says, verdict
from shepherd.evaluate.statistics import Compared, Interval
from shepherd.settings import EvaluationTable

FOUND = Compared(
    difference=Interval(0.67, 0.621, 0.718),
    relative=Interval(336, 110, 700),
    p=0.0002,
    questions=400,
    seeds=1,
    questions_needed=6,
)
OPEN = replace(FOUND, difference=Interval(0.012, -0.02, 0.044), p=0.4, questions_needed=2873)


def said(compared: Compared, measure: Measure = RIGHT, p_holm: float | None = None) -> str:
    return says(
        compared,
        first="federated",
        second="base",
        score_first=0.672,
        score_second=0.002,
        measure=measure,
        p_holm=p_holm,
    )


def test_more_right_answers() -> None:
    assert said(FOUND, p_holm=0.0004) == (
        "federated answers more questions right than base: 67.2% against 0.2%, "
        "by 67.0 points (95%: 62.1 to 71.8; Holm p < 0.001)."
    )


def test_fewer_right_answers_over_seeds() -> None:
    worse = replace(FOUND, difference=Interval(-0.03, -0.05, -0.01), p=0.004, seeds=3)
    assert said(worse) == (
        "federated answers fewer questions right than base: 67.2% against 0.2%, "
        "by 3.0 points (95%: 1.0 to 5.0; p = 0.004; 3 seeds)."
    )


@pytest.mark.parametrize(("sign", "word"), [(-1, "lower"), (1, "higher")])
def test_losses(sign: int, word: str) -> None:
    assert said(replace(FOUND, difference=FOUND.difference.scaled(sign)), LOSS) == (
        f"federated has a {word} loss on held-out responses than base: 0.672 against 0.002, "
        "by 0.670 nats a token (95%: 0.621 to 0.718; p < 0.001)."
    )


def test_not_decided() -> None:
    assert said(OPEN) == (
        "These 400 questions cannot tell federated from base (difference 1.2 points, 95%: -2.0 to 4.4); "
        "about 2,900 questions would settle a difference of this size."
    )
    assert said(replace(OPEN, questions_needed=40_000_000), LOSS).endswith(
        "; more than a million examples would settle a difference of this size."
    )


def test_hidden_by_the_seeds() -> None:
    assert said(replace(OPEN, seeds=3, questions_needed=None)) == (
        "These 400 questions over 3 seeds cannot tell federated from base (difference 1.2 points, "
        "95%: -2.0 to 4.4); more seeds, not more questions, would settle a difference of this size."
    )


def test_decided_alone_but_not_among_many() -> None:
    alone = replace(FOUND, difference=Interval(0.03, 0.002, 0.058), p=0.02)
    assert said(alone, p_holm=0.24) == (
        "These 400 questions cannot tell federated from base (difference 3.0 points, 95%: 0.2 to 5.8); "
        "tested alone the difference would be significant (p = 0.020), among all those tested it is not"
        " (Holm p = 0.240)."
    )


def test_no_difference() -> None:
    same = replace(OPEN, difference=Interval(0, -0.01, 0.01), p=1.0, questions_needed=None, alike=True)
    assert said(same) == "federated and base score the same on every one of these 400 questions."
    even = replace(OPEN, difference=Interval(-0.0, -0.01, 0.01), p=1.0, questions_needed=None)
    assert said(even) == (
        "These 400 questions cannot tell federated from base (difference 0.0 points, 95%: -1.0 to 1.0)."
    )


def test_one_question_promises_nothing_it_already_has() -> None:
    one = replace(OPEN, difference=Interval(1, 1, 1), p=1.0, questions=1, questions_needed=1)
    assert (
        said(one)
        == "This one question cannot tell federated from base (difference 100.0 points, 95%: 100.0 to 100.0)."
    )


def test_which_way_is_better() -> None:
    of_answers = [metric.measure for metric in metrics(EvaluationTable().metrics)]
    for name, measure in {measure.name: measure for measure in (LOSS, *of_answers)}.items():
        assert measure.better(-0.1) == (name == "loss")
        assert measure.better(0.1) == (name != "loss")
        assert not measure.better(0.0)


def test_a_measure_without_words_of_its_own_goes_by_its_label() -> None:
    plain = Measure(name="bleu", label="BLEU")
    assert plain.verb(0.1) == "scores higher in BLEU than"
    assert plain.verb(-0.1) == "scores lower in BLEU than"


def test_whom_an_arm_beats() -> None:
    assert verdict("f", ["a", "b", "c"], ["d"], ["e"]) == (
        "f beats a, b and c, is beaten by d, and cannot be told from e"
    )
    assert verdict("f", [], ["d"], []) == "f is beaten by d"
    assert verdict("f", [], [], []) == "f is compared with no other arm"
