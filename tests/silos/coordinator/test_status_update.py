"""What a server tells is taken as strictly as a message; what is not, ends in one sentence."""

from __future__ import annotations

import base64
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.errors import FederationError
from shepherd.silos.coordinator import status_update

Row = dict[str, Any]
ROW: Row = {
    "round": 1,
    "cohort": ["a", "b"],
    "weights": {"a": 0.5, "b": 0.5},
    "capped": [],
    "loss": 1.5,
    "losses": {"a": 1.0},
    "failures": {"c": "it gave no answer"},
    "bytes_down": 10,
    "bytes_up": 20,
    "gap": math.inf,
    "spread": 0.5,
    "cosines": {"a": 0.5, "b": -0.25},
    "examples": 8,
    "steps": 2,
    "tokens": {"seen": 16, "trained": 4},
    "heldout": {
        "loss": 2.0,
        "category": {"qa": 2.0},
        "client": {"a": 2.0},
        "left_out": {"b": "it was not asked"},
    },
    "taken": {"a": 4},
    "ranks": {"a": 2},
    "coverage": {"a": 0.5},
    "seconds": {"round": 1.0, "tuning": 1.0, "scoring": 0.0},
    "late": ["c", "d"],
    "dropped": ["d"],
    "carried": {"e": 2},
    "figure": 0,
}


def answer(**more: Any) -> Row:
    return {
        "opened": True,
        "round": 1,
        "count": 2,
        "rows": [{"round": 0}, ROW],
        "said": ["b: out of memory"],
        "progress": {"round": 2, "rounds": 3, "clients_done": 1, "tokens": 8, "loss": 0.5, "seconds": 2.0},
        "outcome": None,
        "present": ["a", "b"],
        **more,
    }


def test_an_answer_of_ours_is_taken_as_it_is() -> None:
    told = status_update.parse_status(answer(state=None), rounds=3)
    assert (told.opened, told.round, told.count, told.present) == (True, 1, 2, ["a", "b"])
    assert list(told.rows) == [{"round": 0}, {**ROW, "gap": None}]  # as the log has it
    assert told.said == ["b: out of memory"]
    assert told.progress is not None
    assert told.progress["tokens"] == 8


@pytest.mark.parametrize(
    "outcome", [None, {"finished": True}, {"error": "round 2: 1 of 2", "kind": "QuorumNotMet"}]
)
def test_an_outcome_is_one_of_three(outcome: Row | None) -> None:
    assert status_update.parse_status(answer(outcome=outcome), rounds=3).outcome == outcome


@pytest.mark.parametrize(
    "wrong",
    [
        {"opened": 1},
        {"round": "1"},
        {"round": 10**9 + 1},
        {"round": -1},
        {"round": True},
        {"count": 5},
        {"rows": None},
        {"rows": [ROW, ROW]},
        {"rows": [{"round": 2}, {"round": 1}]},
        {"rows": [{"round": 4}]},
        {"rows": [{"round": 1}]},
        {"rows": [{**ROW, "seconds": {}}]},
        {"rows": [{**ROW, "loss": 10**400}]},
        {"rows": [{"round": "x"}]},
        {"rows": [{}]},
        {"rows": [[]]},
        {"rows": [{"round": 0, "html": "<b>"}]},
        {"rows": [{**ROW, "taken": {"a": "many"}}]},
        {"rows": [{**ROW, "failures": {"a": ["x"]}}]},
        {"rows": [{**ROW, "heldout": {"loss": "low"}}]},
        {"rows": [{**ROW, "weights": {"a\x1b[2J": 1.0}}]},
        {"rows": [{**ROW, "losses": {f"{k:0200d}": 1.0 for k in range(5000)}}]},
        {"rows": [{"round": 0}] * 101},
        {"said": "b"},
        {"said": ["x"] * 1001},
        {"said": [1]},
        {"progress": {"round": 2}},
        {"progress": {**answer()["progress"], "loss": math.nan}},
        {"progress": {**answer()["progress"], "tokens": 1.5}},
        {"progress": {**answer()["progress"], "clients": 3}},
        {"outcome": {"finished": 1}},
        {"outcome": {"finished": True, "error": "x"}},
        {"outcome": "finished"},
        {"outcome": {"error": 1, "kind": "x"}},
        {"present": ["a\n"]},
        {"present": ["a"] * 1001},
        {"more": 1},
    ],
)
def test_what_is_not_ends_in_one_sentence(wrong: Row) -> None:
    with pytest.raises(FederationError, match="the server's status of the run is invalid") as error:
        status_update.parse_status(answer(**wrong), rounds=3)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 3000


def test_a_server_that_is_further_than_the_run_is_told_with_its_number() -> None:
    with pytest.raises(FederationError, match=r"has made 4 rounds.* more than the 3 .*federation\.rounds=4"):
        status_update.parse_status(answer(round=4, count=5), rounds=3, most_rounds=4)
    with pytest.raises(FederationError, match="is more than 3"):  # nobody ever asked for so many
        status_update.parse_status(answer(round=4, count=5), rounds=3, most_rounds=3)


@pytest.mark.parametrize("nothing", [None, [], "x", 3])
def test_no_table_at_all_is_said(nothing: Any) -> None:
    with pytest.raises(FederationError, match="its answer is not a table"):
        status_update.parse_status(nothing, rounds=3)
    with pytest.raises(FederationError, match="its answer is not a table"):
        status_update.parse_piece(nothing, 0, 10)


def test_rows_that_are_known_do_not_come_again() -> None:
    assert status_update.parse_status(answer(rows=[ROW]), rounds=3, rows=1).rows
    with pytest.raises(FederationError, match="out of order"):
        status_update.parse_status(answer(rows=[ROW]), rounds=3, rows=2)


def test_sentences_are_made_fit_for_a_terminal() -> None:
    told = status_update.parse_status(
        answer(said=["two\nlines \x1b[2J", "y" * 10**6], outcome={"error": "a\nb", "kind": "X"}), 3
    )
    assert told.said[0] == "two lines  [2J"
    assert all(line.isprintable() and len(line) <= 20_000 for line in told.said)
    assert told.outcome == {"error": "a b", "kind": "X"}


def part(data: bytes, of: int) -> Row:
    return {"state": {"data": base64.b64encode(data).decode(), "of": of}}


def test_a_piece_of_a_checkpoint() -> None:
    assert status_update.parse_piece(part(b"abc", 9), 6, 9) == (b"abc", 9)
    assert status_update.parse_piece({"state": None}, 0, 9) is None
    assert status_update.parse_piece({}, 0, 9) is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (part(b"abc", 10**12), "more than 100"),
        (part(b"abc", 4), "goes beyond its 4 bytes"),
        ({"state": {"data": "!!!!", "of": 9}}, "not base64"),
        ({"state": {"data": 3, "of": 9}}, "not a text"),
        ({"state": {"data": "A" * 10**7, "of": 9}}, "not a text"),
        ({"state": {"data": "", "of": "9"}}, "not a whole number"),
        ({"state": {"data": "", "of": 9, "more": 1}}, "not expected"),
        ({"state": [1]}, "not a table"),
    ],
)
def test_a_piece_that_is_none(wrong: Row, why: str) -> None:
    with pytest.raises(FederationError, match=why):
        status_update.parse_piece(wrong, 2, 100)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({name: JSON for name in answer()}))
def test_whatever_is_told_there_is_no_other_error(told: Row) -> None:
    try:
        found = status_update.parse_status(told, rounds=3)
    except FederationError:
        return
    assert all(row["round"] <= 3 for row in found.rows)
