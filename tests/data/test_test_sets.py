"""Duplicates, groups and test sets, from a run file's keys to what is trained on and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shepherd.data import data_folder, pipeline, remarks
from shepherd.data.dataset import TokenisedData
from shepherd.errors import DataError
from shepherd.overrides import read
from shepherd.settings import RunSettings
from tests import runs


@pytest.fixture(scope="session")
def tokenizer(llama):
    return llama.tokenizer


def settings(source: Path | str, **tables) -> RunSettings:
    return runs.settings(Path("tiny"), source, Path("out"), **tables)


def tokens(prepared: TokenisedData, name: str) -> list[list[int]]:
    data = prepared.clients[name]
    return [data.example(i)[0].tolist() for i in range(len(data))]


def numbered(count: int, first: int = 0, **fields: str) -> list[dict[str, str]]:
    return [{"instruction": f"w{4 + n} w5", "response": f"w{4 + n}", **fields} for n in range(first, count)]


# --- duplicates


SMALL = st.tuples(st.sampled_from("ab"), st.integers(4, 6), st.integers(7, 9))


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(SMALL, min_size=1, max_size=16), keep=st.booleans())
def test_a_client_trains_on_the_same_rows_in_one_process_and_at_a_site(
    rows, keep, tokenizer, tmp_path
) -> None:
    table = {"holdout": 0.0, "duplicates": "keep" if keep else "drop"}
    written = [{"who": who, "instruction": f"w{asked}", "response": f"w{told}"} for who, asked, told in rows]
    whole = runs.written(tmp_path / "all.jsonl", written)
    split = {"by": "natural", "field": "who", "clients": None}
    tables = {"data": table, "split": {key: value for key, value in split.items() if value}}
    here = pipeline.prepare(of(whole, **tables), tokenizer)
    for name in here.clients:
        own = runs.written(tmp_path / f"{name}.jsonl", [row for row in written if row["who"] == name])
        site = pipeline.one_client(of(own, data=table), name, tokenizer)
        assert tokens(here, name) == tokens(site, name)


def of(source: Path, **tables) -> RunSettings:
    """As `settings`, with the split's own keys alone."""
    found = settings(source, **{name: table for name, table in tables.items() if name != "split"})
    split = tables.get("split")
    return RunSettings.model_validate({**found.model_dump(), "split": split}) if split else found


def test_duplicates_are_shown_by_place_and_warned_of(tmp_path, tokenizer) -> None:
    rows = [*numbered(10), *numbered(2)]
    path = runs.written(tmp_path / "rows.jsonl", rows)
    prepared = pipeline.prepare(settings(path), tokenizer)
    said = " ".join(remarks.training_remarks(prepared))
    assert "2 examples (16.7%) equal an earlier one each of the same client, question and answer" in said
    assert "left out" in said
    assert "rows.jsonl, line 11 equals" in said
    assert "line 12 equals" in said
    assert "warning: 16.7%" in remarks.training_warnings(prepared)[0]
    assert prepared.summary["repeated"] == prepared.summary["duplicates"] == 2
    data_folder.save(tmp_path / "kept", prepared)
    back = data_folder.load(tmp_path / "kept")
    assert remarks.training_remarks(back) == remarks.training_remarks(prepared)


def test_kept_duplicates_are_trained_on_as_often_as_they_are_there(tmp_path, tokenizer) -> None:
    path = runs.written(tmp_path / "rows.jsonl", [*numbered(10), *numbered(2)])
    table = {"holdout": 0.0, "duplicates": "keep"}
    prepared = pipeline.prepare(settings(path, data=table), tokenizer)
    assert sum(map(len, prepared.clients.values())) == 12
    assert (prepared.summary["repeated"], prepared.summary["duplicates"]) == (2, 0)
    assert 'are kept (data.duplicates = "keep")' in " ".join(remarks.training_remarks(prepared))


def test_without_duplicates_nothing_is_said_of_them(tmp_path, tokenizer) -> None:
    prepared = pipeline.prepare(settings(runs.written(tmp_path / "rows.jsonl")), tokenizer)
    assert prepared.summary["repeated"] == 0
    assert not remarks.training_warnings(prepared)
    assert not any("equal" in sentence for sentence in remarks.training_remarks(prepared))


# --- groups


def test_a_field_groups_and_nearly_the_same_name_does(tmp_path, tokenizer) -> None:
    rows = [{**row, "Problem": n // 4} for n, row in enumerate(numbered(40))]
    path = runs.written(tmp_path / "rows.jsonl", rows)
    division = pipeline.divide(settings(path, data={"group": "problem"}))
    groups = [{e.group for e in division.of(side)} for side in (division.held.train, division.held.heldout)]
    assert groups[1]
    assert not groups[0] & groups[1]
    assert "Problem" not in division.reading.notes.unread


def test_the_number_of_the_row_groups_files_whose_lines_match(tmp_path, tokenizer) -> None:
    folder = tmp_path / "langs"
    folder.mkdir()
    for lang in ("de", "en", "sw"):
        rows = [{"instruction": f"{lang} w{4 + n}", "response": f"w{n + 5}"} for n in range(20)]
        runs.written(folder / f"{lang}.jsonl", rows)
    found = of(folder, data={"group": "#row", "holdout": 0.2}, split={"by": "ready-made"})
    division = pipeline.divide(found)
    held = division.of(division.held.heldout)
    assert len(held) == 12
    assert {e.client for e in held} == {"de", "en", "sw"}
    assert len({e.instruction.split()[-1] for e in held}) == 4


def test_rows_without_a_group_are_on_their_own_and_counted(tmp_path, tokenizer) -> None:
    rows = [{**row, **({"thread": "t"} if n % 2 else {"thread": None})} for n, row in enumerate(numbered(20))]
    path = runs.written(tmp_path / "rows.jsonl", rows)
    found = settings(path, data={"group": "thread"})
    said = " ".join(remarks.division_remarks(pipeline.divide(found), found))
    assert "10 examples name no group (data.group)" in said


def test_a_group_that_no_row_has_is_refused(tmp_path) -> None:
    path = runs.written(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"no row of .* fills a field topic, which data.group names"):
        pipeline.divide(settings(path, data={"group": "topic"}))
    with pytest.raises(DataError, match="fills a field topic"):
        pipeline.divide(settings("world", data={"group": "topic", "limit": 20}))


# --- a test set of one's own


def test_a_test_set_is_scored_whole_and_never_trained_on(tmp_path, tokenizer) -> None:
    path = runs.written(tmp_path / "rows.jsonl", numbered(20))
    test = runs.written(
        tmp_path / "test.jsonl",
        [
            numbered(4)[3],
            {"instruction": "w8 w5", "response": "w40"},
            {"instruction": "w50", "response": "w51"},
        ],
    )
    found = settings(path, data={"holdout": 0.5}, evaluation={"data": str(test)})
    prepared = pipeline.prepare(found, tokenizer)
    assert len(prepared.heldout) == 3
    assert sum(map(len, prepared.clients.values())) == 19
    held = {tuple(prepared.heldout.example(i)[0].tolist()) for i in range(3)}
    assert not held & {tuple(row) for name in prepared.clients for row in tokens(prepared, name)}
    said = remarks.heldout_remarks(prepared)
    assert said[0].startswith("the test set has 3 examples, which are scored and not trained on")
    assert "1 example of the data is in the test set" in said[1]
    assert "rows.jsonl, line 4" in said[1]
    assert "1 example of the test set shares a question" in said[2]
    assert "test.jsonl, line 2" in said[2]
    assert not any("nothing held out" in sentence for sentence in said)
    data_folder.save(tmp_path / "kept", prepared)
    assert remarks.heldout_remarks(data_folder.load(tmp_path / "kept")) == said


def test_the_global_test_of_a_ready_made_folder(tmp_path, tokenizer) -> None:
    folder = tmp_path / "clients"
    folder.mkdir()
    runs.written(folder / "a.json", numbered(10))
    runs.written(folder / "b.json", numbered(20, 10))
    runs.written(folder / "global_test.json", numbered(30, 25))
    found = of(folder, split={"by": "ready-made"}, evaluation={"data": str(folder / "global_test.json")})
    prepared = pipeline.prepare(found, tokenizer)
    assert {name: len(data) for name, data in prepared.clients.items()} == {"a": 10, "b": 10}
    assert len(prepared.heldout) == 5


def test_a_client_of_which_all_is_in_the_test_set_is_named(tmp_path) -> None:
    rows = [*numbered(5, who="a"), *numbered(10, 5, who="b")]
    path = runs.written(tmp_path / "rows.jsonl", rows)
    test = runs.written(tmp_path / "test.jsonl", numbered(5))
    split = {"by": "natural", "field": "who"}
    with pytest.raises(DataError, match="client a has nothing to train on that is not in the test set"):
        pipeline.divide(of(path, split=split, evaluation={"data": str(test)}))
    with pytest.raises(DataError, match="has nothing to train on that is not in the test set"):
        pipeline.divide(settings(path, evaluation={"data": str(path)}))


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere.jsonl", "does not exist"), ("owner/name", "does not exist"), ("", "a folder")],
)
def test_a_test_set_that_is_no_file_is_refused(tmp_path, name, said) -> None:
    path = runs.written(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=f"the file .* {said}.*evaluation.data"):
        pipeline.divide(settings(path, evaluation={"data": str(tmp_path / name)}))


def test_the_path_is_relative_to_the_run_file_and_not_published(tmp_path, monkeypatch) -> None:
    from shepherd.settings import published

    folder = tmp_path / "p"
    folder.mkdir()
    runs.written(folder / "test.jsonl", numbered(3))
    (folder / "run.toml").write_text(
        '[model]\nbase = "tiny"\n[data]\nsource = "world"\n[evaluation]\ndata = "test.jsonl"\n'
    )
    monkeypatch.chdir(tmp_path)
    found = read("p/run.toml")
    assert found.evaluation.data == str(folder / "test.jsonl")
    assert published(found).evaluation.data == "test.jsonl"


def test_no_site_is_told_of_the_test_set(tmp_path) -> None:
    from shepherd.silos.protocol.jobspec import settings_for_site

    test = runs.written(tmp_path / "test.jsonl", numbered(3))
    found = settings("world", evaluation={"data": str(test)})
    assert "test.jsonl" not in json.dumps(settings_for_site(found))
