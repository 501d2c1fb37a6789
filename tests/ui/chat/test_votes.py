"""Votes become rows that preference tuning reads, and nothing that was saved is changed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shepherd.data import split
from shepherd.data.examples import Turn, from_rows
from shepherd.errors import FolderError
from shepherd.evaluate.still import exact
from shepherd.io import private
from shepherd.settings import DataTable, SplitTable
from shepherd.ui.chat import votes
from shepherd.ui.chat.votes import Ballot, keep, standings

PROMPT = (Turn(role="system", text="Be brief."), Turn(role="user", text="Sum it up.", context="A text."))
OPTIONS = {"template": "alpaca", "temperature": 0.7, "seed": 3}


def ballot(first: str = "base", second: str = "federated", **options: Any) -> Ballot:
    return Ballot(prompt=PROMPT, arms=(first, second), answers=("one", "two"), options={**OPTIONS, **options})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def test_a_vote_is_a_row_of_the_conversational_preference_format(tmp_path: Path) -> None:
    folder = keep(tmp_path, ballot(), 1)
    (row,) = rows(folder / "preferences.jsonl")
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Sum it up."},
        ],
        "context": "A text.",
        "chosen": [{"role": "assistant", "content": "two"}],
        "rejected": [{"role": "assistant", "content": "one"}],
        "chosen_arm": "federated",
        "rejected_arm": "base",
        **OPTIONS,
    }
    (vote,) = rows(folder / "votes.jsonl")
    assert (vote["arms"], vote["winner"]) == (["base", "federated"], "federated")
    assert "two" not in json.dumps(vote)  # no text


@pytest.mark.parametrize("empty", ["", " \n"])
@pytest.mark.parametrize("choice", [0, 1])
def test_a_vote_with_an_empty_answer_is_a_vote_and_no_preference(
    tmp_path: Path, empty: str, choice: int
) -> None:
    """A row with an empty answer would make all of the file unusable."""
    keep(tmp_path, replace(ballot(), answers=("one", empty)), choice)
    assert not (tmp_path / "votes" / "preferences.jsonl").exists()
    keep(tmp_path, ballot(), 1)
    assert [row["winner"] for row in rows(tmp_path / "votes" / "votes.jsonl")] == [
        ("base", "federated")[choice],
        "federated",
    ]
    assert len(rows(tmp_path / "votes" / "preferences.jsonl")) == 1


def test_preference_tuning_reads_the_prompt_as_it_was_asked(tmp_path: Path) -> None:
    keep(tmp_path, ballot(), 1)
    table = DataTable.model_validate({"source": "memory"})
    rule = split.rule(SplitTable())
    (example,) = from_rows(rows(tmp_path / "votes" / "preferences.jsonl"), table, rule, "rows").examples
    assert example.turns == (*PROMPT, Turn(role="assistant", text="two"))
    assert example.rejected == (*PROMPT, Turn(role="assistant", text="one"))


def test_a_tie_is_a_vote_and_no_preference(tmp_path: Path) -> None:
    folder = keep(tmp_path, ballot(), None)
    assert not (folder / "preferences.jsonl").exists()
    assert rows(folder / "votes.jsonl")[0]["winner"] is None


def test_nothing_is_overwritten_and_a_cut_line_spoils_no_other(tmp_path: Path) -> None:
    folder = keep(tmp_path, ballot(), 0)
    before = (folder / "preferences.jsonl").read_bytes()
    with (folder / "preferences.jsonl").open("ab") as file:
        file.write(b'{"prompt": [{"ro')  # a crash
    keep(tmp_path, ballot("line\nbreak", "\x1b[31m"), 1)
    after = (folder / "preferences.jsonl").read_bytes()
    assert after.startswith(before)
    *_, cut, last, end = after.split(b"\n")
    assert (cut, end) == (b'{"prompt": [{"ro', b"")
    assert json.loads(last)["rejected_arm"] == "line\nbreak"
    assert b"\x1b" not in last
    assert not private.open_to_others(folder)
    assert not private.open_to_others(folder / "preferences.jsonl")


def test_votes_at_once_are_all_kept_whole(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: keep(tmp_path, ballot(place=k), k % 2), range(40)))
    assert sorted(row["place"] for row in rows(tmp_path / "votes" / "preferences.jsonl")) == list(range(40))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "votes").write_text("a file")
    with pytest.raises(FolderError, match="votes cannot be used"):
        keep(tmp_path, ballot(), 0)


def test_the_votes_are_summed_up_by_pair_whatever_their_places(tmp_path: Path) -> None:
    assert standings(tmp_path) == []
    for first, second, choice in (
        ("base", "federated", 1),
        ("federated", "base", 0),
        ("federated", "base", 1),
        ("base", "federated", None),
        ("base", "local-a", 0),
    ):
        keep(tmp_path, ballot(first, second), choice)
    with (tmp_path / "votes" / "votes.jsonl").open("a") as file:
        file.write('{"arms": ["base"], "winner": "base"}\n[]\n{"arms": ["a", "b"], "winner": "c"}\n{"ar')
    both, local = standings(tmp_path)
    assert (both.first, both.second) == ("federated", "base")
    assert (both.wins, both.ties, both.losses) == (2, 1, 1)
    assert both.rate.value == pytest.approx(2.5 / 4)
    assert 0 <= both.rate.low < 0.5 < both.rate.high <= 1
    assert (local.first, local.second) == ("local-a", "base")
    assert (local.wins, local.losses, local.rate.value) == (0, 1, 0.0)
    assert str(both).startswith("federated against base: 2 won, 1 tie, 1 lost; 62.5% of the votes (95%: ")


def test_ten_of_ten_votes_have_the_exact_interval(tmp_path: Path) -> None:
    for _ in range(10):
        keep(tmp_path, ballot(), 1)
    (found,) = standings(tmp_path)
    assert (found.rate.value, found.rate.high) == (1.0, 1.0)
    assert found.rate.low == pytest.approx(1 - exact(10, 0.05))  # Clopper and Pearson: 0.6915
    assert votes.VOTES == "votes.jsonl"
