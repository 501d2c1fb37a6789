"""Each kind of check takes what is right and refuses what only looks right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.world import passes
from shepherd.world.check import KINDS, Contains, Exact, Members, OneOf, SameSet, as_dict

BIRDS = ("owl", "wren", "lark", "crow")
EXACT = as_dict(Exact("golden lamp"))
ONE_OF = as_dict(OneOf(("Talo", "Mira")))
SAME_SET = as_dict(SameSet(("rice", "jam")))
FOUND = as_dict(SameSet(("rice", "jam"), begins="Found: "))
MEMBERS = as_dict(Members(BIRDS, 2))
STORY = as_dict(Contains(("Talo", "owl"), most=10, least=4, begins="once ", ends="the end"))


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (EXACT, "golden lamp"),
        (EXACT, "  Golden  lamp. "),
        (ONE_OF, "mira"),
        (SAME_SET, "jam, rice"),
        (SAME_SET, "Rice,jam."),
        (FOUND, "found: jam, rice"),
        (MEMBERS, "- owl\n- wren"),
        (MEMBERS, "crow, lark"),
        (STORY, "Once Talo found an owl. The end."),
    ],
)
def test_right_answers_pass(check: dict[str, object], text: str) -> None:
    assert passes(check, text)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (EXACT, "silver lamp"),
        (EXACT, "it is the golden lamp"),
        (ONE_OF, "Talo Mira"),
        (SAME_SET, "rice"),
        (SAME_SET, "rice, jam, tea"),
        (SAME_SET, "rice, rice, jam"),
        (FOUND, "jam, rice"),
        (FOUND, "Found: jam"),
        (MEMBERS, "- owl\n- owl"),
        (MEMBERS, "- owl\n- trout"),
        (MEMBERS, "owl, wren, lark, crow"),
        (STORY, "Once Talo found a bowl. The end."),
        (STORY, "Talo found an owl. The end."),
        (STORY, "Once Talo found an owl."),
        (STORY, "Once Talo and an owl " + "and so on " * 9 + "the end"),
    ],
)
def test_wrong_answers_fail(check: dict[str, object], text: str) -> None:
    assert not passes(check, text)


@pytest.mark.parametrize("check", [EXACT, ONE_OF, SAME_SET, FOUND, MEMBERS, STORY])
@pytest.mark.parametrize("text", ["", " \n", ".", ",,,", "- "])
def test_nothing_is_never_right(check: dict[str, object], text: str) -> None:
    assert not passes(check, text)


@given(order=st.permutations(BIRDS), count=st.integers(1, 4))
def test_any_members_in_any_order_are_right(order: list[str], count: int) -> None:
    assert passes(as_dict(Members(BIRDS, count)), "\n".join(f"- {bird}" for bird in order[:count]))


@given(text=st.text())
def test_any_text_can_be_judged(text: str) -> None:
    assert all(isinstance(passes(c, text), bool) for c in (EXACT, SAME_SET, MEMBERS, STORY))


def test_an_unknown_kind_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no check of kind 'regex'; use one of exact, one_of"):
        passes({"kind": "regex"}, "owl")


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_that_lacks_its_fields_says_so(kind: str) -> None:
    with pytest.raises(ValueError, match=f"a check of kind '{kind}'"):
        passes({"kind": kind, "colour": "red"}, "owl")
