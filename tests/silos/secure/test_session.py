"""What a sum is about: every field counts, and nothing is ambiguous."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import secure_setting
from shepherd.errors import SecureError
from shepherd.silos.secure.session import Session, packed, require_name, threshold

SESSION = secure_setting.session(3)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 1_000))
def test_two_sets_at_the_threshold_share_more_than_a_third(members: int) -> None:
    """And so an honest member, if no more than 2t - n - 1 are dishonest; no smaller threshold would do."""
    least = threshold(members)
    assert least > 2 * members / 3 >= least - 1
    assert 2 * least - members > members / 3


@pytest.mark.parametrize("members", [0, 1, 2, 1_001])
def test_too_few_or_too_many_are_refused(members: int) -> None:
    with pytest.raises(SecureError, match=f"3 to 1,000 sites in a round, and {members:,} are asked"):
        threshold(members)


def test_the_digest_depends_on_every_field() -> None:
    others = {
        "run": "other",
        "round": 1,
        "attempt": "1" * 32,
        "request": "other",
        "members": secure_setting.names(4),
        "length": 5,
        "ring_bits": 64,
    }
    assert others.keys() == Session.__dataclass_fields__.keys()
    digests = {
        SESSION.digest(),
        *(replace(SESSION, **{key: other}).digest() for key, other in others.items()),
    }  # type: ignore[arg-type]
    assert len(digests) == 1 + len(others)
    assert replace(SESSION).digest() == SESSION.digest()


def test_fields_do_not_run_into_each_other() -> None:
    moved = [replace(SESSION, run="ab", request="c"), replace(SESSION, run="a", request="bc")]
    assert moved[0].digest() != moved[1].digest()
    split = [replace(SESSION, members=names) for names in (("a", "b", "cd"), ("a", "bc", "d"))]
    assert split[0].digest() != split[1].digest()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_packed_parts_can_be_told_apart(one: list[bytes], other: list[bytes]) -> None:
    assert (packed(*one) == packed(*other)) == (one == other)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("members", ("b", "a", "c"), "not sorted or repeat a name"),
        ("members", ("a", "a", "b"), "not sorted or repeat a name"),
        ("members", ("a", "b"), "and 2 are asked"),
        ("members", ("a", "b", ""), "is no name"),
        ("ring_bits", 16, "ring_bits is 16; write 32 or 64"),
        ("length", 0, "a secure sum of 0 codes"),
        ("length", 2**30 + 1, "a secure sum of"),
        ("round", -1, "round -1"),
        ("attempt", "A" * 32, "is not 32 hex digits"),
        ("attempt", "a" * 31 + "\n", "is not 32 hex digits"),
        ("run", "", "no id of a run"),
        ("run", "é", "no id of a run"),
        ("request", "x" * 1_001, "no id of a run"),
    ],
)
def test_a_field_out_of_its_range_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(SecureError, match=sentence):
        replace(SESSION, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a\u200bb", "e\u0301", "a\nb", "\ud800", "\u202eab", "é" * 128])
def test_a_name_that_may_look_like_another_is_refused(name: str) -> None:
    with pytest.raises(SecureError, match="is no name for a site"):
        require_name(name)


def test_names_of_people_are_names() -> None:
    for name in ("site-1", "Zürich", "東京", "é" * 127):
        require_name(name)
