"""Rows in memory, of every kind that Python keeps them in, are what the same rows in a file would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shepherd
from shepherd.data import pipeline
from shepherd.data.form import Form
from shepherd.data.in_memory import memory_parts
from shepherd.errors import DataError
from shepherd.overrides import parse
from shepherd.settings import RunSettings

ROWS = [{"instruction": f"Was ist {n}?", "response": f"Das ist {n}.", "kind": n % 2} for n in range(12)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def asked(source: Any = "memory", by: str = "iid", holdout: float = 0.1, **tables: Any) -> RunSettings:
    split = {"by": by, **({"clients": 2} if by == "iid" else {})}
    data = {"source": source, "category": "kind", "holdout": holdout}
    return parse({"model": {"base": "tiny"}, "data": data, "split": split, **tables})


def as_frame(rows: Any) -> Any:
    import pandas

    return pandas.DataFrame(rows)


def as_set(rows: Any) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


def as_table(rows: Any) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(rows)


KINDS = {
    "list": list,
    "tuple": tuple,
    "generator": lambda rows: (row for row in rows),
    "columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "arrays": lambda rows: {name: np.array([row[name] for row in rows]) for name in rows[0]},
    "frame": as_frame,
    "set": as_set,
    "streamed": lambda rows: as_set(rows).to_iterable_dataset(),
    "parts": lambda rows: __import__("datasets").DatasetDict(train=as_set(rows), test=as_set(rows[:1])),
    "arrow": as_table,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind_are_those_of_a_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    of_file = pipeline.divide(asked(tmp_path / "a.jsonl"))
    found = pipeline.divide(asked(), rows=KINDS[kind](ROWS))
    assert found.clients == of_file.clients
    assert [e.turns for e in found.reading.examples] == [e.turns for e in of_file.reading.examples]
    assert [e.category for e in found.reading.examples] == [str(row["kind"]) for row in ROWS]
    assert found.reading.examples[2].where == "the rows, record 3"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("generator", "streamed", "parts")])
def test_a_mapping_of_names_to_rows_is_one_client_each(kind: str) -> None:
    make = KINDS[kind]
    clients = {"Ulm": make(ROWS[:7]), "東京": make(ROWS[7:])}
    settings = asked(by="ready-made", holdout=0.0)
    found = pipeline.divide(settings, rows=clients)
    assert {name: len(own) for name, own in found.clients.items()} == {"Ulm": 7, "東京": 5}
    assert len(pipeline.divide(asked(), rows=clients).reading.examples) == 12
    assert found.reading.examples[8].where == "the rows of 東京, record 2"


def test_nulls_names_and_categories_of_a_frame() -> None:
    import pandas

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    frame = pandas.DataFrame(
        {
            "text": ["a", None, pandas.NA],
            "n": [1, None, 3],
            "when": [pandas.Timestamp("2024-01-31"), pandas.NaT, pandas.NaT],
            "kind": pandas.Categorical(["x", "y", None]),
            "messages": [np.array(turns, dtype=object), turns, None],
            7: ["a", "b", "c"],
        },
        index=pandas.Index(["r", "s", "t"], name="row"),
    )
    (part,) = memory_parts(frame, Form(), by_client=False)
    rows = [row for _, row in part.rows]
    assert [row["text"] for row in rows] == ["a", None, None]
    assert [row["n"] for row in rows] == [1.0, None, 3.0]
    assert [row["when"] for row in rows][1:] == [None, None]
    assert [row["kind"] for row in rows] == ["x", "y", None]
    assert [row["messages"] for row in rows] == [turns, turns, None]
    assert [row["7"] for row in rows] == ["a", "b", "c"]
    assert [row["row"] for row in rows] == ["r", "s", "t"]  # an index with a name is a column


def test_a_category_and_a_struct_of_lists_of_a_set() -> None:
    import datasets

    label = datasets.ClassLabel(names=["qa", "brief"])
    chat = {
        "role": datasets.List(datasets.Value("string")),
        "content": datasets.List(datasets.Value("string")),
    }
    rows = [{"kind": 1, "messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}]
    table = datasets.Dataset.from_list(rows, features=datasets.Features({"kind": label, "messages": chat}))
    for given in (table, table.to_iterable_dataset()):
        (part,) = memory_parts(given, Form(), by_client=False)
        ((_, row),) = part.rows
        assert row["kind"] == "brief"
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("rows", "by", "words"),
    [
        ([], "iid", "the rows are empty; give at least one row"),
        ("rows.jsonl", "iid", "the rows are a path or a text; set data.source"),
        (Path("rows.jsonl"), "iid", "the rows are a path or a text"),
        (7, "iid", "the rows are a int; give a list of dicts"),
        ({"a": "b"}, "iid", "neither columns of one length nor rows by client"),
        ({"a": [1], "b": [1, 2]}, "iid", "neither columns of one length nor rows by client"),
        (ROWS, "ready-made", "give a dict from clients' names to their rows"),
        (["a", "b"], "iid", "the rows, record 1 is text, expected an object with named fields"),
        ({"Ulm": ROWS, "Bonn": []}, "ready-made", "the rows of Bonn are empty"),
    ],
)
def test_what_are_no_rows_is_one_sentence(rows: Any, by: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        pipeline.divide(asked(by=by), rows=rows)


def test_two_columns_of_one_name_are_named() -> None:
    frame = as_frame(ROWS).rename(columns={"kind": "response"})
    with pytest.raises(DataError, match="two columns of the same name"):
        pipeline.divide(asked(), rows=frame)


def test_rows_and_the_source_say_the_same_thing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"give the rows to shepherd\.open_run\(settings, rows=\.\.\.\)"):
        shepherd.inspect_data(asked())
    with pytest.raises(
        DataError, match=r"rows are given, and data\.source is 'world'; write \"memory\" there"
    ):
        shepherd.inspect_data(asked("world"), rows=ROWS)


def test_a_run_of_rows_in_memory(tmp_path: Path) -> None:
    settings = asked(output=tmp_path / "run", federation={"rounds": 1}, tuning={"max_steps": 1})
    assert settings.output == str(tmp_path / "run")
    found = shepherd.inspect_data(settings, rows=as_frame(ROWS))
    assert found.report.counts.examples == len(ROWS)
    with shepherd.open_run(settings, rows=as_frame(ROWS)) as run:
        assert [row["round"] for _, row in run.rounds()] == [1]
        adapter = run.finish()["adapter"]
    card = (adapter / "README.md").read_text()
    assert "datasets:" not in card
    assert "`memory`" in card
    with shepherd.resume(tmp_path / "run") as run:  # it has its tokens
        assert run.state.round == 1


def test_a_path_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("{}")
    tables = {
        "model": {"base": tmp_path},
        "data": {"source": tmp_path / "a.jsonl"},
        "judge": {"questions": tmp_path / "q.jsonl"},
        "output": tmp_path / "run",
    }
    settings = parse(tables)
    assert settings == parse({name: _text(table) for name, table in tables.items()})
    assert settings == RunSettings.model_validate(tables)
    assert settings.data.source == str(tmp_path / "a.jsonl")


def _text(value: Any) -> Any:
    return {key: str(path) for key, path in value.items()} if isinstance(value, dict) else str(value)
