"""Rows in the containers that people keep them in: read where it is plain how, else named in one sentence."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from shepherd.data import files, packed, prompts
from shepherd.data.form import USUAL, Form
from shepherd.data.labels import namer
from shepherd.errors import BadRow, DataError
from shepherd.judge import answers, questions
from shepherd.settings import DataTable

ROWS: list[dict[str, Any]] = [
    {"instruction": "Größe?", "output": "42"},
    {"instruction": "Was?", "output": "nichts"},
    {"instruction": "Wer?", "output": "[niemand]"},
]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "ja"}]}
    for n in range(3)
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def read(path: Path, form: Form = USUAL) -> list[Any]:
    return [row for _, row in files.rows_of(path, form)]


def source(path: Path, config: str | None = None, part: str = "train") -> list[Any]:
    return [row for each in files.parts(str(path), config, part) for _, row in each.rows]


# ---- JSON


def by_row(rows: list[Any], names: str = "012") -> dict[str, Any]:
    return dict(zip(names, rows, strict=True))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "whole",
    [
        ROWS,
        {"data": ROWS},
        {"version": "1.0", "license": None, "questions": ROWS},
        {"schema": {"fields": [{"name": "instruction"}]}, "data": ROWS},  # pandas, orient="table"
        {"info": [{"by": "me"}], "anything": ROWS},
        {"train": ROWS, "test": ROWS[:1]},
        {"train": COLUMNS, "test": COLUMNS},
        COLUMNS,
        {name: by_row(cells) for name, cells in COLUMNS.items()},  # pandas, to_json() as it is
        by_row(ROWS),  # orient="index"
        by_row(ROWS, "abc"),  # PubMedQA as published
        {"columns": ["instruction", "output"], "index": [0, 1, 2], "data": [list(r.values()) for r in ROWS]},
    ],
)
def test_the_rows_of_a_json_file_are_found(whole: Any, indent: int | None, name: str, tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        text = json.dumps(whole, indent=indent, ensure_ascii=False)
        (tmp_path / name).write_text(text + "\n", encoding=encoding)
        assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_objects_one_after_another(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("\n\n".join(json.dumps(row, indent=1) for row in ROWS))  # as jq writes them
    assert read(tmp_path / name) == ROWS
    assert [where.rpartition(", ")[2] for where, _ in files.rows_of(tmp_path / name)] == [
        "line 1",
        "line 6",
        "line 11",
    ]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\r" for row in ROWS))  # an old Mac's lines
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    "row",
    [
        ROWS[0],
        CHATS[0],
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
        {"question_id": 81, "choices": [{"turns": ["a"]}]},
        {"instruction": "a", "output": "b", "sources": [{"url": "c"}], "meta": {"id": 1}},
        {"mine": "a", "yours": "b", "data": None},
    ],
)
def test_one_row_alone_is_a_row(row: dict[str, Any], tmp_path: Path) -> None:
    for text in (json.dumps(row), json.dumps(row, indent=2)):
        (tmp_path / "a.json").write_text(text)
        assert read(tmp_path / "a.json") == [row]


def test_fields_that_the_run_names_say_what_is_a_row(tmp_path: Path) -> None:
    rows = {"x": {"mein": "a", "dein": "b"}, "y": {"mein": "c", "dein": "d"}}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read(tmp_path / "a.json", Form(names=frozenset({"mein", "dein"}))) == list(rows.values())
    with pytest.raises(
        DataError, match="it is unclear which of its keys are fields; write it again as one object"
    ):
        read(tmp_path / "a.json")


def test_rows_under_several_keys_want_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"ulm": ROWS, "bonn": ROWS[:1]}))
    with pytest.raises(DataError, match=r"rows under each of the keys 'ulm', 'bonn'; set data\.part to one"):
        read(tmp_path / "a.json")
    assert read(tmp_path / "a.json", Form(part="bonn")) == ROWS[:1]


def test_what_lies_beside_the_rows_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"system": "Be kind.", "train": ROWS, "extra": ROWS}))
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "a.json") == ROWS
    assert "a.json: these keys hold no rows and are not read: 'system', 'extra'" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"instruction": ["a"], "output": ["b", "c"]}',
            "list for each column, and they are not equally long",
        ),
        ('{"instruction": {"0": "a"}, "output": {"1": "b"}}', "not all with the same rows"),
        (
            '{"x": {"instruction": ["a"]}, "y": {"instruction": ["b"]}}',
            "has columns under each of the keys 'x'",
        ),
        ('{\n "data": [\n  {"instruction": "a",}\n ]\n}', r"line 3 is not JSON \("),
        ('{"instruction": "a", "instruction": "b"}\n{}', "key 'instruction' is repeated"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        raise next(row for row in read(tmp_path / "a.json") if isinstance(row, BadRow))


def test_a_line_that_is_broken_is_one_bad_row(tmp_path: Path) -> None:
    for first in ('{"instruction": "a', '{"a": 1},,', "# a comment"):
        (tmp_path / "a.jsonl").write_text(f"{first}\n{json.dumps(ROWS[1])}\n")
        bad, good = read(tmp_path / "a.jsonl")
        assert isinstance(bad, BadRow)
        assert "line 1 is not JSON" in str(bad)
        assert good == ROWS[1]


# ---- chats as a struct of lists


@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_a_struct_of_lists_is_a_chat(names: tuple[str, str], tmp_path: Path) -> None:
    import datasets

    who, what = names
    turns = [{who: "user", what: "a"}, {who: "assistant", what: "b"}]
    struct = {who: ["user", "assistant"], what: ["a", "b"]}
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": struct}) * 1)
    assert read(tmp_path / "a.jsonl") == [{"messages": turns}]
    datasets.Dataset.from_list([{"messages": struct}] * 2).to_parquet(str(tmp_path / "a.parquet"))
    assert read(tmp_path / "a.parquet") == [{"messages": turns}] * 2
    odd = {"messages": {who: ["user"], what: ["a", "b"]}}  # which belongs to which is not known
    (tmp_path / "b.jsonl").write_text(json.dumps(odd))
    assert read(tmp_path / "b.jsonl") == [odd]


# ---- tables


@pytest.mark.parametrize(
    "text",
    [
        "instruction,output\na,b\nc,d\n",
        "instruction;output\na;b\nc;d\n",
        "sep=;\ninstruction;output\na;b\nc;d\n",
        "instruction,output,\na,b,\nc,d\n",
        "instruction,output\na,b\n,\nc,d\n,,\n  ,\n\n",
        "\ufeff\ufeffinstruction,output\na,b\nc,d\n",
        "\n,,\ninstruction,output\r\na,b\r\nc,d\r\n",
    ],
)
def test_a_table_by_excel_or_pandas(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf8")
    assert read(tmp_path / "a.csv") == [
        {"instruction": "a", "output": "b"},
        {"instruction": "c", "output": "d"},
    ]


def test_an_index_column_of_pandas_is_a_field_of_that_name(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame(ROWS)
    frame.to_csv(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv") == [{"Unnamed: 0": str(n), **row} for n, row in enumerate(ROWS)]
    frame.to_csv(tmp_path / "b.csv", sep=";", encoding="utf-16", index=False)
    assert read(tmp_path / "b.csv") == ROWS


def test_a_header_that_comes_again_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,output\na,b\ninstruction,output\nc,d\n")  # cat a.csv b.csv
    assert "line 3 repeats the names of the columns" in str(read(tmp_path / "a.csv")[1])


def test_columns_may_be_named_where_there_is_no_header(tmp_path: Path) -> None:
    form = Form(columns=("instruction", "output"))
    (tmp_path / "a.tsv").write_text("1, 2;3\tb\nc\td\te\n")
    first, second = read(tmp_path / "a.tsv", form)
    assert first == {"instruction": "1, 2;3", "output": "b"}
    assert "line 2 has 3 cells, the header 2" in str(second)
    (tmp_path / "a.csv").write_text("instruction,output\na,b\n")
    with pytest.raises(DataError, match=r"line 1 has the names of data\.columns, .* remove that key"):
        read(tmp_path / "a.csv", form)


def test_so_may_the_cells_of_lists(tmp_path: Path) -> None:
    cells = [list(row.values()) for row in ROWS]  # pandas, orient="values"
    form = Form(columns=tuple(ROWS[0]))
    (tmp_path / "a.json").write_text(json.dumps(cells))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cells))
    assert read(tmp_path / "a.json", form) == read(tmp_path / "b.jsonl", form) == ROWS
    assert read(tmp_path / "a.json") == cells


# ---- workbooks


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    book = pytest.importorskip("openpyxl").Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook_is_what_the_same_csv_would_be(tmp_path: Path) -> None:
    import datetime

    table = [
        [None, None],
        ["instruction", "output", "n", "day"],
        ["Größe?", 1.0, 2, datetime.datetime(2024, 1, 31)],
        [None, None],
        ["007", 1.5, True, datetime.datetime(2024, 1, 31, 8, 30)],
        ["NA", None, "", None],
        [None, None],
    ]
    path = workbook(tmp_path / "a.xlsx", Tabelle1=table, Tabelle2=[])
    assert read(path) == [
        {"instruction": "Größe?", "output": "1", "n": "2", "day": "2024-01-31"},
        {"instruction": "007", "output": "1.5", "n": "TRUE", "day": "2024-01-31 08:30:00"},
        {"instruction": "NA", "output": "", "n": "", "day": ""},
    ]
    assert [where for where, _ in files.rows_of(path)][1] == f"{path}, sheet Tabelle1, row 5"


def test_the_sheet_of_a_workbook_and_what_cannot_be_read(tmp_path: Path) -> None:
    rows = [["instruction", "output"], ["a", "b"]]
    path = workbook(tmp_path / "a.xlsx", One=rows, Two=[["c", "d"]])
    with pytest.raises(DataError, match=r"has several sheets; set data\.sheet to one of One, Two"):
        read(path)
    assert read(path, Form(sheet="One")) == [{"instruction": "a", "output": "b"}]
    assert read(path, Form(sheet="Two", columns=("x", "y"))) == [{"x": "c", "y": "d"}]
    with pytest.raises(DataError, match="has no sheet Three"):
        read(path, Form(sheet="Three"))
    with pytest.raises(DataError, match="row 2, column 2 is a formula without its value"):
        read(workbook(tmp_path / "b.xlsx", One=[rows[0], ["a", "=1+1"]]))
    (tmp_path / "c.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"c\.xlsx is not an Excel workbook"):
        read(tmp_path / "c.xlsx")
    with pytest.raises(DataError, match="has 3 cells, the header 2"):
        raise read(workbook(tmp_path / "d.xlsx", One=[*rows, ["a", "b", "c"]]))[1]


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"run .*pip install .*\[excel\].*, or save the sheet as CSV"):
        read(tmp_path / "a.xlsx")


# ---- categories, Arrow


def labelled() -> Any:
    import datasets

    text = datasets.Value("string")
    label = datasets.ClassLabel(names=["qa", "brief"])
    features = datasets.Features(
        {
            "instruction": text,
            "kind": label,
            "tags": datasets.List(label),
            "turns": datasets.List(
                {"role": datasets.ClassLabel(names=["user", "assistant"]), "content": text}
            ),
        }
    )
    turns = [{"role": 0, "content": "a"}, {"role": 1, "content": "b"}]
    rows = [{"instruction": "a", "kind": kind, "tags": [1, 0], "turns": turns} for kind in (0, 1, None, -1)]
    return datasets.Dataset.from_list(rows, features=features)


NAMED = ["qa", "brief", None, None]


def test_a_category_that_is_stored_as_a_number_gives_its_name(tmp_path: Path) -> None:
    from pyarrow import feather, ipc

    table = labelled()
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    feather.write_feather(table.data.table, str(tmp_path / "a.feather"))
    with ipc.new_stream(str(tmp_path / "a.arrow"), table.data.table.schema) as writer:
        writer.write_table(table.data.table)
    for name in ("a.parquet", "saved", "a.feather", "a.arrow"):
        rows = source(tmp_path / name)
        assert [row["kind"] for row in rows] == NAMED, name
        assert rows[0]["tags"] == ["brief", "qa"]
        assert [turn["role"] for turn in rows[0]["turns"]] == ["user", "assistant"]
    (tmp_path / "b.arrow").write_bytes(b"no")
    with pytest.raises(DataError, match=r"b\.arrow cannot be read as Arrow"):
        source(tmp_path / "b.arrow")


# ---- pointers of Git LFS

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0a" * 32 + "\nsize 1234567\n"


@pytest.mark.parametrize("suffix", sorted(files.READERS))
def test_a_pointer_is_named_under_any_name(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_text(POINTER)
    with pytest.raises(
        DataError, match=r"is a pointer of Git LFS .* has 1,234,567 bytes; fetch it with `git lfs"
    ):
        read(tmp_path / f"a{suffix}")


def test_a_pointer_in_a_saved_set_or_a_file_of_prompts_is_named(tmp_path: Path) -> None:
    labelled().save_to_disk(str(tmp_path / "set"))
    next((tmp_path / "set").glob("*.arrow")).write_text(POINTER)
    with pytest.raises(DataError, match=r"\.arrow is a pointer of Git LFS"):
        source(tmp_path / "set")
    (tmp_path / "asked.txt").write_text(POINTER)
    with pytest.raises(DataError, match=r"asked\.txt is a pointer of Git LFS"):
        prompts.read(str(tmp_path / "asked.txt"), DataTable(source="x"))


def test_a_text_about_pointers_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + POINTER)
    assert len(read(tmp_path / "a.csv")) == 3


# ---- clones and folders


def cloned(folder: Path, *, card: str = "", infos: bool = False, inner: str = "data") -> Path:
    table = labelled()
    (folder / inner).mkdir(parents=True)
    for number in range(2):
        shard = table.select(range(2 * number, 2 * number + 2))
        shard.to_parquet(str(folder / inner / f"train-{number:05}-of-00002.parquet"))
    table.select([0]).to_parquet(str(folder / inner / "test-00000-of-00001.parquet"))
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    if card:
        (folder / "README.md").write_text(card)
    if infos:
        (folder / "dataset_infos.json").write_text("{}")
    return folder


CARD = "---\nlicense: mit\ntask_categories:\n- text-generation\n---\n# A set\n"


@pytest.mark.parametrize(("card", "infos"), [("", False), (CARD, False), ("", True), ("# Ours\n", True)])
def test_a_clone_of_the_hub_is_one_source(card: str, infos: bool, tmp_path: Path) -> None:
    folder = cloned(tmp_path / "set", card=card, infos=infos)
    (only,) = files.parts(str(folder), None, "train")
    assert (only.client, [row["kind"] for _, row in only.rows]) == ("", NAMED)
    assert len(source(folder, part="test")) == 1
    with pytest.raises(DataError, match=r"has no part dev; set data\.part to one of train, test"):
        source(folder, part="dev")
    with pytest.raises(DataError, match="is one data set and not a folder with one file per client"):
        files.parts(str(folder), None, "train", folder_only=True)
    assert files.left_out(str(folder)) == ["test is left out, since data.part is train"]


def test_the_files_of_a_clone_are_clients_where_the_run_file_says_so(tmp_path: Path) -> None:
    for name in ("ulm.jsonl", "bonn.jsonl", "global_test.jsonl", "dataset_infos.json"):
        (tmp_path / name).write_text('{"a": 1}\n')
    (tmp_path / "README.md").write_text(CARD)
    found = files.parts(str(tmp_path), None, "train", folder_only=True)
    assert [part.client for part in found] == ["bonn", "ulm"]


def test_the_configuration_of_a_clone_and_the_names_on_its_card(tmp_path: Path) -> None:
    config = "configs:\n- config_name: {0}\n  data_files:\n  - split: train\n    path: {0}/*.jsonl\n"
    label = "      class_label:\n        names:\n          '0': qa\n          '1': brief\n"
    info = (
        "dataset_info:\n- config_name: main\n  features:\n  - name: instruction\n    dtype: string\n"
        f"  - name: kind\n    dtype:\n{label}"
    )
    card = "---\n" + config.format("main") + config.format("other").replace("configs:\n", "") + info + "---\n"
    for name in ("main", "other"):
        (tmp_path / "set" / name).mkdir(parents=True)
        row = {"instruction": "007", "kind": 1}
        (tmp_path / "set" / name / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "set" / "README.md").write_text(card)
    assert source(tmp_path / "set", "main") == [{"instruction": "007", "kind": "brief"}]
    assert source(tmp_path / "set", "other") == [{"instruction": "007", "kind": 1}]
    # a card that tells of the columns of one configuration has that one as its default
    assert files.left_out(str(tmp_path / "set")) == ["other is left out, since data.config is main"]
    (tmp_path / "set" / "README.md").write_text(card.replace(info, ""))
    with pytest.raises(DataError, match=r"'main', 'other'.*check data\.config"):
        source(tmp_path / "set")


@pytest.mark.parametrize(
    "place", ["https://a.example/x.csv", "/etc/*.csv", "../other/*.csv", "hf://datasets/a/b/c.csv"]
)
def test_a_clone_is_read_from_its_own_files_alone(place: str, tmp_path: Path) -> None:
    card = f"---\nconfigs:\n- config_name: default\n  data_files: '{place}'\n---\n"
    folder = cloned(tmp_path / "set", card=card)
    with pytest.raises(DataError, match=r"as its data \(README\.md\), which is no file of its own"):
        source(folder)


def test_a_link_in_a_clone_leads_nowhere_else(tmp_path: Path) -> None:
    folder = cloned(tmp_path / "set", infos=True)
    shard = folder / "data" / "train-00000-of-00002.parquet"
    shard.rename(tmp_path / "elsewhere.parquet")
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(DataError, match="which is no file of its own; nothing was"):
        source(folder)


def test_a_download_in_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    folder = cloned(tmp_path / "datasets--a--b" / "snapshots" / ("0a" * 20), infos=True)
    (tmp_path / "datasets--a--b" / "blobs").mkdir()
    for number, file in enumerate((folder / "data").iterdir()):
        blob = tmp_path / "datasets--a--b" / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(Path("../../../blobs") / str(number))
    assert len(source(folder)) == 4


def test_a_clone_whose_files_are_not_fetched_says_so(tmp_path: Path) -> None:
    folder = cloned(tmp_path / "set", infos=True)
    (folder / "data" / "train-00001-of-00002.parquet").write_text(POINTER)
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is a pointer of Git LFS"):
        source(folder)


def test_the_shards_of_a_client_are_one_client(tmp_path: Path) -> None:
    for client in ("ulm", "bonn"):
        for number in (1, 0):
            (tmp_path / f"{client}-{number:05}-of-00002.jsonl").write_text(json.dumps({"a": number}) + "\n")
    (tmp_path / "köln.jsonl").write_text('{"a": 7}\n')
    found = {
        part.client: [row["a"] for _, row in part.rows] for part in files.parts(str(tmp_path), None, "train")
    }
    assert found == {"bonn": [0, 1], "köln": [7], "ulm": [0, 1]}
    (tmp_path / "ulm-00001-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match="lacks part 00001 of 00002 of ulm"):
        files.parts(str(tmp_path), None, "train")


def test_the_parts_that_spark_writes_are_one_client(tmp_path: Path) -> None:
    for number in (0, 3):
        name = f"part-{number:05}-1f0e{'0' * 4}-0000-0000-0000-{'0' * 12}-c000.snappy.parquet"
        labelled().to_parquet(str(tmp_path / name))
    (tmp_path / "_SUCCESS").touch()
    (part,) = files.parts(str(tmp_path), None, "train")
    assert (part.client, len(list(part.rows))) == ("part", 8)


def test_saved_sets_may_be_the_clients_of_a_folder(tmp_path: Path) -> None:
    for client in ("ulm", "bonn"):
        labelled().save_to_disk(str(tmp_path / client))
    found = files.parts(str(tmp_path), None, "train", folder_only=True)
    assert [(part.client, len(list(part.rows))) for part in found] == [("bonn", 4), ("ulm", 4)]


def test_parts_of_a_saved_set_that_are_not_read_are_named(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict(train=labelled(), test=labelled()).save_to_disk(str(tmp_path / "set"))
    assert files.left_out(str(tmp_path / "set")) == ["test is left out, since data.part is train"]
    labelled().save_to_disk(str(tmp_path / "one"))
    assert files.left_out(str(tmp_path / "one")) == []


def test_files_of_the_system_are_no_clients_and_are_named(tmp_path: Path) -> None:
    row = '{"a": 1}\n'
    system = ("._a.jsonl", ".DS_Store", ".a.jsonl.swp", "~$a.xlsx", "a.jsonl~", ".~lock.a.csv#", "Thumbs.db")
    for name in ("a.jsonl", "Testklinik_Ulm.json", "Validierung.csv", "val.jsonl", "Dev-Team.jsonl", *system):
        (tmp_path / name).write_text(row)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._b.jsonl").write_text(row)
    clients = [part.client for part in files.parts(str(tmp_path), None, "train")]
    assert clients == ["Dev-Team", "Testklinik_Ulm", "Validierung", "a"]
    testing, told = files.left_out(str(tmp_path))
    assert testing.startswith("val.jsonl is left out, as files for testing by their names")
    assert told.startswith("._a.jsonl, .DS_Store") or ".DS_Store" in told
    assert told.endswith("and 3 more are left out, as files of the system or of an editor")


def test_a_folder_of_folders_names_the_one_that_holds_data(tmp_path: Path) -> None:
    (tmp_path / "ulm").mkdir()
    (tmp_path / "ulm" / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"has no data file \(its folder ulm does: name that one, or put one"):
        files.parts(str(tmp_path), None, "train")


def test_twenty_thousand_files_are_listed_in_one_go(tmp_path: Path) -> None:
    """Each name is looked at once: to count each among all took minutes."""
    from shepherd.data import listing

    names = [tmp_path / f"c{number}.jsonl" for number in range(20_000)]
    assert len(listing.grouped(names, tmp_path)) == 20_000


# ---- what else people edit


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_questions_answers_and_prompts_of_any_editor(encoding: str, tmp_path: Path) -> None:
    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    for name, text in (
        ("q.jsonl", '{"id": "1", "question": "Größe?"}\r\n{"id": "2", "question": "東京?"}\r\n'),
        ("q.json", '[{"id": "1", "question": "Größe?"},\n {"id": "2", "question": "東京?"}]'),
        ("q.csv", "id;question\r\n1;Größe?\r\n2;東京?\r\n"),
    ):
        assert [(q.id, q.text) for q in questions.read(written(name, text))] == [
            ("1", "Größe?"),
            ("2", "東京?"),
        ]
    given = written("a.jsonl", '{"question": "1", "answer": "groß"}\r\n{"question": 2, "answer": "都"}\r\n')
    assert answers.read(given, "arm").texts == {"1": "groß", "2": "都"}
    for name in ("p.txt", "p"):
        asked = prompts.read(str(written(name, "Größe?\r\n\r\n東京?\r\n")), DataTable(source="x"))
        assert [prompt.text for prompt in asked] == ["Größe?", "東京?"]


def test_a_first_line_that_is_broken_is_one_bad_row(tmp_path: Path) -> None:
    """It is no beginning of an object over several lines where the others are whole, or there are none."""
    whole = '{"instruction": "Who?", "response": "Ann."}\n'
    for broken in ('{"instruction": "Who?", "response": \n', '{"instruction": {"a": [1,\n'):
        (tmp_path / "a.jsonl").write_text(broken + whole)
        (where, bad), (_, good) = files.rows_of(tmp_path / "a.jsonl")
        assert where.endswith("line 1")
        assert isinstance(bad, BadRow)
        assert good == {"instruction": "Who?", "response": "Ann."}
        (tmp_path / "a.jsonl").write_text(broken)
        ((where, bad),) = files.rows_of(tmp_path / "a.jsonl")
        assert (where[-6:], type(bad)) == ("line 1", BadRow)


# ---- one row, several lines, other spellings


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "chat",
    [
        [TURNS[0], None, TURNS[1]],
        [*TURNS, {}],
        [TURNS[0], {"content": "b"}],
        [{"role": "user", "content": "a"}, {"type": "function_call", "name": "f"}],
        ["a", "b"],
    ],
)
def test_a_chat_alone_in_a_file_is_one_row_whatever_its_turns_are(chat: list[Any], tmp_path: Path) -> None:
    for name in ("messages", "Conversations "):
        (tmp_path / "a.jsonl").write_text(json.dumps({name: chat}))
        assert read(tmp_path / "a.jsonl") == [{name: chat}]
    for column in ([TURNS, TURNS], [json.dumps(TURNS)] * 2):
        (tmp_path / "a.json").write_text(json.dumps({"messages": column}))
        assert read(tmp_path / "a.json") == [{"messages": each} for each in column]


def test_chats_by_name_and_chats_without_an_object_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"c1": {"messages": TURNS}, "c2": {"messages": TURNS}}))
    assert read(tmp_path / "a.json") == [{"messages": TURNS}] * 2
    (tmp_path / "a.json").write_text(json.dumps([TURNS, TURNS]))
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(TURNS)}\n{json.dumps(TURNS)}\n")
    assert read(tmp_path / "a.json") == read(tmp_path / "a.jsonl") == [{"messages": TURNS}] * 2
    (tmp_path / "a.json").write_text(json.dumps({"chosen": TURNS, "rejected": TURNS}))
    assert read(tmp_path / "a.json") == [{"chosen": TURNS, "rejected": TURNS}]  # no two chats to train on


TWICE = '{"instruction": "a", "output": "1", "output": "2"}'


@pytest.mark.parametrize("first", [TWICE, '{"instruction": "a", "n": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("form", ["{0}\n{1}\n", "[{0},{1}]", "{0}{1}", "{0},\n{1},\n"])
def test_a_record_that_cannot_be_read_is_one_bad_row(first: str, form: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(form.format(first, json.dumps(ROWS[1])))
    bad, good = read(tmp_path / "a.json")
    assert isinstance(bad, BadRow)
    assert good == ROWS[1]
    if first is TWICE:
        assert bad.reason == "the row has two values for one key"


def test_a_key_with_the_same_value_twice_loses_nothing(tmp_path: Path) -> None:
    for second, is_row in (("1", True), ("1.0", False), ("true", False)):
        (tmp_path / "a.jsonl").write_text(f'{{"a": 1, "a": {second}}}\n{{"a": 2}}\n')
        assert isinstance(read(tmp_path / "a.jsonl")[0], dict) is is_row


@pytest.mark.parametrize("name", ["a.txt", "rows", "a.jsonl.txt", "a.jsonlines", "a.jl"])
@pytest.mark.parametrize("form", ["{0}\n{1}\n", "{0},\n{1},\n", "[\n{0},\n{1}\n]", "[{0},{1}]"])
def test_json_of_another_name_is_read(name: str, form: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(form.format(json.dumps(ROWS[0]), json.dumps(ROWS[1])))
    assert read(tmp_path / name) == ROWS[:2]


def test_a_text_of_another_name_is_no_json(tmp_path: Path) -> None:
    for text in ("[a] hello\n", "{x}\n", "question,answer\n", ""):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(DataError, match=r"a\.txt has an unknown extension"):
            read(tmp_path / "a.txt")


# ---- what a spreadsheet program writes


@pytest.mark.parametrize(
    "text",
    [
        'a, b\n"x, y", "z"\n',
        "'a','b'\n'x, y','z'\n",
        'SEP=|\ra|b\r"x, y"|z\r',
        'sep = ;\n"a";"b"\n"x, y";"z"\n',
        '\ufeffa,b\n"x, y",z\n',
    ],
)
def test_quotes_after_spaces_and_other_quotes_are_no_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert read(tmp_path / "a.csv") == [{"a": "x, y", "b": "z"}]


def test_a_space_after_some_commas_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\nx, "y"\n')
    assert read(tmp_path / "a.csv") == [{"a": "x", "b": ' "y"'}]


@pytest.mark.parametrize("again", ["\ufeffa,b", "A,B", " a , b "])
def test_a_header_that_comes_again_in_another_spelling_is_no_row(again: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"a,b\nx,y\n{again}\nz,w\n", encoding="utf8")
    first, bad, last = read(tmp_path / "a.csv")
    assert (first, last) == ({"a": "x", "b": "y"}, {"a": "z", "b": "w"})
    assert "repeats the names of the columns" in str(bad)


def test_a_title_above_the_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("# Export of May\n\na,b\nx,y\n")
    assert "remove that header if it is a title or a remark above the columns' names" in str(
        read(tmp_path / "a.csv")[0]
    )


def test_a_cell_that_is_merged_over_rows_is_the_cell_of_each(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    rows = (["ward", "question"], ["A", "q1"], [None, "q2"], [None, None], ["B", "q3"], [None, "q4"])
    for row in rows:
        book.active.append(row)
    book.active.merge_cells("A2:A4")
    book.save(tmp_path / "a.xlsx")
    wards = [row["ward"] for row in read(tmp_path / "a.xlsx")]
    assert wards == ["A", "A", "B", ""]


# ---- compressed files


def _zstd(raw: bytes) -> bytes:
    import pyarrow

    packed: bytes = pyarrow.compress(raw, codec="zstd", asbytes=True)
    return packed


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}


@pytest.mark.parametrize("ending", PACKERS)
def test_a_compressed_file_is_read_as_what_it_holds(ending: str, tmp_path: Path) -> None:
    pack = PACKERS[ending]
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = "instruction,output\n" + "".join(f"{r['instruction']},{r['output']}\n" for r in ROWS)
    plain = {"a.jsonl": lines.encode(), "b.csv": ("\ufeff" + table).encode("utf-16"), "c.json": b"[]"}
    plain["c.json"] = json.dumps({"data": ROWS}, indent=1).encode()
    files.columns(**COLUMNS).to_parquet(str(tmp_path / "d.parquet"))
    plain["d.parquet"] = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "packed").mkdir()
    for name, raw in plain.items():
        (tmp_path / "packed" / (name + ending)).write_bytes(pack(raw))
        assert read(tmp_path / "packed" / (name + ending)) == ROWS
    (tmp_path / "e.jsonl").write_bytes(pack(lines.encode()))  # its name hides it
    assert read(tmp_path / "e.jsonl") == ROWS
    (tmp_path / f"f.jsonl{ending}").write_text(lines)  # unpacked by a browser
    assert read(tmp_path / f"f.jsonl{ending}") == ROWS
    assert [part.client for part in files.parts(str(tmp_path / "packed"), None, "train")] == list("abcd")


@pytest.mark.parametrize("ending", PACKERS)
def test_a_compressed_file_that_is_cut_off_is_one_sentence(ending: str, tmp_path: Path) -> None:
    raw = "".join(json.dumps({**row, "n": n}) + "\n" for n in range(500) for row in ROWS).encode()
    whole = PACKERS[ending](raw)
    (tmp_path / f"a.jsonl{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"compressed file .* is damaged \(.*; fetch it or compress it again"):
        read(tmp_path / f"a.jsonl{ending}")


def test_what_a_compressed_file_may_become_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MIN_BYTES", 10_000)
    for ending, pack in PACKERS.items():
        (tmp_path / f"a.jsonl{ending}").write_bytes(pack(b"\n" * 5_000_000))
        with pytest.raises(DataError, match=r"unpacks to more than .* MiB; unpack it if you trust it"):
            read(tmp_path / f"a.jsonl{ending}")


def test_an_archive_among_the_files_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    for name in ("b.zip", "c.tar.gz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    assert files.left_out(str(tmp_path)) == [
        "b.zip, c.tar.gz are left out, as archives; unpack those that hold data"
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_client_and_is_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    os.mkfifo(tmp_path / "b.jsonl")
    assert source(tmp_path) == [ROWS[0]]
    assert any("b.jsonl" in said for said in files.left_out(str(tmp_path)))
    with pytest.raises(DataError, match="is a pipe or a device and no file"):
        read(tmp_path / "b.jsonl")


# ---- class labels that another program wrote


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.csv", "q,kind,tags\na,1,\nb,-1,\nc,bio,\nd,1.0,\n"),
        ("train.jsonl", '{"kind": 1}\n{"kind": -1}\n{"kind": "bio"}\n{"kind": 1.0}\n'),
    ],
)
def test_a_label_in_a_text_file_of_a_clone_gives_its_name(name: str, text: str, tmp_path: Path) -> None:
    card = {
        "dataset_info": {
            "features": [{"name": "kind", "dtype": {"class_label": {"names": {"0": "bio", "1": "chem"}}}}]
        }
    }
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    (tmp_path / name).write_text(text)
    assert [row["kind"] for row in source(tmp_path)] == ["chem", None, "bio", "chem"]


def test_the_role_of_a_turn_may_be_a_label_in_any_layout() -> None:
    import datasets

    role = datasets.ClassLabel(names=["user", "assistant"])
    text = datasets.Value("string")
    struct = {"messages": {"role": datasets.List(role), "content": datasets.List(text)}}
    turns = [{"role": 0, "content": "a"}, {"role": 1.0, "content": "b"}]
    assert namer(datasets.Features(struct))({"messages": turns}) == {"messages": TURNS}
    assert namer(datasets.Features({"messages": [{"role": role, "content": text}]}))({"messages": turns}) == {
        "messages": TURNS
    }
    assert namer(datasets.Features({"kind": role}))({"kind": 7}) == {
        "kind": 7
    }  # a number without a name stays
