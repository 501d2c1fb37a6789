import pytest

from shepherd.data.examples import Example, Turn
from shepherd.evaluate import personal
from shepherd.evaluate.loss import HeldOutLoss


def example(category, client=None):
    turns = (Turn(role="user", text="q"), Turn(role="assistant", text="a"))
    return Example(turns=turns, category=category, client=client)


NAMED = [example("qa", "a"), example("qa", "b"), example("poem", "a"), example("poem", None)]
UNNAMED = [example("qa"), example("poem"), example("qa"), example("")]


@pytest.mark.parametrize(
    ("examples", "client", "mix", "places"),
    [
        (NAMED, "a", {"qa": 5}, [0, 2]),
        (NAMED, "c", {"qa": 5}, []),  # it held nothing out, and another's examples are not its own
        (UNNAMED, "a", {"qa": 5}, [0, 2]),
        (UNNAMED, "a", {"list": 5}, []),
        (UNNAMED, "a", {"all": 5}, [3]),
    ],
)
def test_a_clients_own_model_is_scored_on_its_own_examples_or_on_its_categories(
    examples, client, mix, places
):
    assert personal.own_places(examples, range(len(examples)), client, mix) == places


def test_each_client_counts_once_and_a_category_by_those_that_have_it():
    one = HeldOutLoss(loss=9.0, category={"qa": 1.0}, client={"a": 1.0})
    two = HeldOutLoss(loss=9.0, category={"qa": 3.0, "poem": 5.0}, client={"b": 4.5})
    found = personal.summarise({"a": one, "b": two})
    assert found.loss == pytest.approx(2.75)
    assert found.category == {"poem": 5.0, "qa": 2.0}
    assert found.client == {"a": 1.0, "b": 4.5}
