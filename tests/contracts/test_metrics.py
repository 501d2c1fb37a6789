"""What every file of `shepherd/evaluate/metrics` keeps to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts.filling import built

from shepherd import plugins
from shepherd.data.examples import Example, Turn
from shepherd.evaluate import metrics as folder
from shepherd.evaluate.metric import METRIC

NAMES = plugins.names(folder)
pytestmark = pytest.mark.parametrize("name", NAMES)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def example(response, check=None):
    turns = (Turn(role="user", text="What is it?"), Turn(role="assistant", text=response))
    return Example(turns=turns, check=check)


@settings(max_examples=40)
@given(answer=TEXTS, response=TEXTS)
def test_it_is_a_share_and_the_same_each_time(name, answer, response):
    metric = built(METRIC, name)
    asked = example(response, {"kind": "exact", "answer": response})
    first, again = (metric.score(answer, asked) for _ in range(2))
    assert first == again
    assert 0 <= first <= 1


def test_the_expected_answer_is_the_best_there_is(name):
    metric = built(METRIC, name)
    asked = example("a red fox", {"kind": "exact", "answer": "a red fox"})
    best, worst = metric.score("a red fox", asked), metric.score("nothing of it", asked)
    assert metric.measure.better(best - worst)
    assert (best, worst) == ((0, 1) if metric.measure.lower_is_better else (1, 0))


def test_without_a_check_it_goes_by_the_answer_or_says_nothing(name):
    assert built(METRIC, name).score("a", example("a")) in (1, None)


def test_it_has_a_name_of_its_own_and_words_for_both_sides(name):
    measure = built(METRIC, name).measure
    assert measure.share
    assert measure.name == name
    assert measure.verb(1.0) != measure.verb(-1.0)
