"""Each kind of check takes what is right and refuses what only looks right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd import checkers, plugins
from shepherd.errors import SettingsError

BIRDS = ["owl", "wren", "lark", "crow"]
EXACT = {"kind": "exact", "answer": "golden lamp"}
ONE_OF = {"kind": "one_of", "answers": ["Talo", "Mira"]}
SAME_SET = {"kind": "same_set", "items": ["rice", "jam"]}
FOUND = {"kind": "same_set", "items": ["rice", "jam"], "begins": "Found: "}
MEMBERS = {"kind": "members", "items": BIRDS, "count": 2}
STORY = {
    **{"kind": "contains", "phrases": ["Talo", "owl"], "most": 10, "least": 4},
    **{"begins": "once ", "ends": "the end"},
}


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
    assert plugins.checker(check).right(text)


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
    assert not plugins.checker(check).right(text)


@pytest.mark.parametrize("check", [EXACT, ONE_OF, SAME_SET, FOUND, MEMBERS, STORY])
@pytest.mark.parametrize("text", ["", " \n", ".", ",,,", "- "])
def test_nothing_is_never_right(check: dict[str, object], text: str) -> None:
    assert not plugins.checker(check).right(text)


@given(order=st.permutations(BIRDS), count=st.integers(1, 4))
def test_any_members_in_any_order_are_right(order: list[str], count: int) -> None:
    check = {"kind": "members", "items": BIRDS, "count": count}
    assert plugins.checker(check).right("\n".join(f"- {bird}" for bird in order[:count]))


@given(text=st.text())
def test_any_text_can_be_judged(text: str) -> None:
    found = [plugins.checker(check).right(text) for check in (EXACT, SAME_SET, MEMBERS, STORY)]
    assert all(isinstance(right, bool) for right in found)


def test_an_unknown_kind_is_named_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="no checker called 'regex'; there are contains, exact"):
        plugins.checker({"kind": "regex"})


def test_data_name_no_module_of_their_own() -> None:
    """A row comes from anybody: its check imports nothing from outside the package (law 12)."""
    with pytest.raises(SettingsError, match=r"--allow-plugin os\.path"):
        plugins.checker({"kind": "os.path"})


@pytest.mark.parametrize("kind", plugins.names(checkers))
def test_a_check_that_lacks_its_fields_says_so(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"the checker '{kind}'.*colour"):
        plugins.checker({"kind": kind, "colour": "red"})
