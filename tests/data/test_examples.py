"""Rows of every format, and each fault with its file, line, field and remedy."""

import csv
import json
from pathlib import Path

import pytest

from shepherd.data import files, split
from shepherd.data.examples import Example, Turn, from_rows, read
from shepherd.errors import BadRow, DataError, SettingsError
from shepherd.settings import DataTable, SplitTable
from tests.data.kinds import shared

IID = split.rule(SplitTable())


def rule(by, **keys):
    return split.rule(SplitTable(by=by, **keys))


DOLLY = {"instruction": "Name a bird.", "context": "Herons.", "response": "A heron.", "category": "open_qa"}
ALPACA = {"instruction": "Name a bird.", "input": "Herons.", "output": "A heron."}
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "More"},
        {"from": "gpt", "value": "No"},
    ]
}


def rows(*given, split=IID, **table):
    fields = {"source": "mem", **table}
    return from_rows(given, DataTable(**fields), split, "mem").examples


def read_file(path, text, split=IID, seed=0, **table):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(DataTable(source=str(path), **table), split, seed)


def lines(*given):
    return "".join(json.dumps(row) + "\n" for row in given)


def texts(example):
    return [(turn.role, turn.text) for turn in example.turns]


def test_dolly_and_alpaca():
    dolly, alpaca = rows(DOLLY, ALPACA)
    turns = (
        Turn(role="user", text="Name a bird.", context="Herons."),
        Turn(role="assistant", text="A heron."),
    )
    assert dolly == Example(turns=turns, category="open_qa", where="mem, record 1")
    assert alpaca == Example(turns=turns, where="mem, record 2")
    assert (dolly.instruction, dolly.context, dolly.response) == ("Name a bird.", "Herons.", "A heron.")


def test_chats_of_both_kinds():
    messages, sharegpt = rows(MESSAGES, SHAREGPT)
    assert texts(messages) == [("user", "Hi"), ("assistant", "Hello")]
    assert texts(sharegpt)[0] == ("system", "Be brief.")
    assert (sharegpt.instruction, sharegpt.context, sharegpt.response) == ("Hi", "", "No")


def test_an_empty_system_turn_is_no_turn():
    (found,) = rows({"messages": [{"role": "system", "content": None}, *MESSAGES["messages"]]})
    assert texts(found) == [("user", "Hi"), ("assistant", "Hello")]


def test_fields_are_mapped():
    fields = {"instruction": "q", "context": "", "response": "a"}
    (found,) = rows({"q": "Why?", "context": "no", "a": "So.", "kind": 3}, fields=fields, category="kind")
    assert (found.instruction, found.context, found.response, found.category) == ("Why?", "", "So.", "3")
    (found,) = rows({**DOLLY, "log": MESSAGES["messages"]}, fields={"messages": "log"})
    assert found.instruction == "Hi"


@pytest.mark.parametrize("nothing", [None, "", "  ", float("nan")])
def test_no_context_is_none_whatever_says_so(nothing):
    assert rows({**DOLLY, "context": nothing})[0].context == ""


def test_a_whole_number_is_text_and_unicode_is_kept():
    (found,) = rows({"instruction": 42, "response": "Привет 雨\u2028é"})
    assert (found.instruction, found.response) == ("42", "Привет 雨\u2028é")


def test_the_worlds_check_and_the_splits_field_travel():
    row = {**DOLLY, "check": {"kind": "exact"}, "author": 7}
    (found,) = rows(row, split=rule(by="natural", field="author"))
    assert (found.client, found.label, found.check) == ("7", "", {"kind": "exact"})
    (found,) = rows(row, split=rule(by="dirichlet", field="author"))
    assert (found.client, found.label) == ("", "7")


def turns(*pairs):
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


BAD = {
    "field instruction is missing .*there are response.* data.fields.instruction": {"response": "x"},
    "field response is missing .* data.fields.response": {"instruction": "x", "output_text": "y"},
    "field response is empty": {**DOLLY, "response": " \n"},
    "response is empty; fill": {**DOLLY, "response": "\u200b\ufeff \u00ad"},
    "field instruction is empty": {**DOLLY, "instruction": None},
    "field context is a list, expected text": {**DOLLY, "context": [["x"]]},
    "field context is a list of several texts; join them into one": {**DOLLY, "context": ["x", "y"]},
    r"field response is the number 3\.5, expected text": {**DOLLY, "response": 3.5},
    "field response holds half of a surrogate": {**DOLLY, "response": "\ud83d"},
    "field response is true": {**DOLLY, "response": True},
    "field category is an object": {**DOLLY, "category": {}},
    "record 1 is a list, expected an object": ["x"],
    "record 1 is null": None,
    "field messages is an empty list": {"messages": []},
    "field messages is not a list of turns": {"messages": "[{"},
    "turn 1 is text, expected role and content": {"messages": ["Hi"]},
    "turn 1: field content is missing": {"messages": [{"role": "user"}]},
    r"turn 2 \(assistant\) is empty": turns(("user", "Hi"), ("assistant", "")),
    r"turn 1 \(user\) is empty": turns(("user", "\u200d"), ("assistant", "Hi")),
    "turn 2 has the role 'bird'; known roles are": turns(("user", "Hi"), ("bird", "x")),
    "turn 2 is user's, expected assistant's": turns(("user", "Hi"), ("user", "Hi")),
    "turn 1 is assistant's, expected user's": turns(("assistant", "Hi")),
    "turn 2 is assistant's, expected user's": turns(("system", "s"), ("assistant", "Hi")),
    "turn 3 is system's": turns(("user", "Hi"), ("assistant", "x"), ("system", "y")),
    "ends without an assistant turn": turns(("system", "s"), ("user", "Hi")),
    "field messages ends without": turns(("system", "Hi")),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_row_is_named_with_what_to_do(words):
    with pytest.raises(BadRow, match=words) as caught:
        rows(BAD[words])
    assert str(caught.value).startswith("mem, record 1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "split", "words"),
    [
        ({"category": "kind"}, IID, "field kind is missing .* data.category"),
        ({"fields": {"context": "text"}}, IID, "field text is missing .* data.fields.context"),
        ({"fields": {"messages": "log"}}, IID, "field log is missing .* data.fields.messages"),
        ({}, rule(by="natural", field="author"), "field author is missing .* split.field"),
    ],
)
def test_a_field_that_the_run_file_names_must_be_there(table, split, words):
    with pytest.raises(BadRow, match=words):
        rows(DOLLY, split=split, **table)


@pytest.mark.parametrize("keys", [{}, {"field": ""}])
def test_a_natural_split_needs_its_field(keys):
    with pytest.raises(SettingsError, match="the split 'natural': key field"):
        rule(by="natural", **keys)


# ---- files


def test_the_real_line_of_a_jsonl_row(tmp_path):
    text = b"\xef\xbb\xbf" + lines(DOLLY).encode() + b"\n" + lines({**DOLLY, "response": ""}).encode()
    with pytest.raises(BadRow, match=r"a\.jsonl, line 3: field response is empty"):
        read_file(tmp_path / "a.jsonl", text)
    found = read_file(tmp_path / "a.jsonl", text + b"{oops\r\n\xff\n", on_bad_row="skip")
    assert len(found.examples) == 1
    assert [sentence.split(", ")[1][:6] for sentence in found.skipped] == ["line 3", "line 4", "line 5"]


def test_a_json_list_counts_records_and_lines(tmp_path):
    text = json.dumps([DOLLY, {**DOLLY, "instruction": ""}], indent=1)
    assert text.splitlines()[7] == " {"
    with pytest.raises(BadRow, match=r"record 2 \(line 8\): field instruction is empty"):
        read_file(tmp_path / "a.json", text)


def test_a_json_file_may_hold_one_object_a_line(tmp_path):
    assert len(read_file(tmp_path / "a.json", lines(DOLLY, ALPACA)).examples) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},\n{"b" 2}]', r"record 2 \(line 2\) is not JSON"),
        ('[{"a": 1}\n{"b": 2}]', r"record 1 \(line 1\) has no comma"),
        ('[{"a": 1},', r"record 2 \(line 1\) is not JSON"),
        ('{"a": 1,\n"b" 2}', "line 2 is not JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', r"a\.json has more text after the \] of its list"),
        ("[] x", "has more text after"),
        ("[]", "has no rows"),
        (" \n", "has no rows"),
        (b'["\xff"]', "is not UTF-8 but cp1252 or similar; set data.encoding"),
    ],
)
def test_a_broken_json_file_is_named(tmp_path, text, words):
    table = {"on_bad_row": "skip"} if "record 2" in words else {}
    with pytest.raises(DataError, match=words):
        read_file(tmp_path / "a.json", text, fields={"instruction": "a", "response": "a"}, **table)


def test_csv_cells_stay_text(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["instruction", "context", "response"])
        writer.writerow(["007", "", "NA"])
        writer.writerow(["2024-01-01", "two\r\nlines, one cell\u2028end", 'a "quoted" ' + "long " * 40_000])
        writer.writerow(["x", "y", ""])
    first, second = read(DataTable(source=str(path), on_bad_row="skip"), IID, 0).examples
    assert (first.instruction, first.context, first.response) == ("007", "", "NA")
    assert (second.instruction, second.context) == ("2024-01-01", "two\r\nlines, one cell\u2028end")
    assert len(second.response) == 200_011
    with pytest.raises(BadRow, match=r"a\.csv, line 5: field response is empty"):
        read(DataTable(source=str(path)), IID, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instruction,response\nx,y\n\nx,y,z\n", "line 4 has 3 cells, the header 2"),
        ("instruction,response\nx,y\nx\n", "line 3 has 1 cells"),
        ('instruction,response\nx,y\nx,"y\nz,w\n', "starts at .*line 3 is not CSV"),
        ("instruction,instruction\nx,y\n", "line 1 has a repeated column name"),
        ("instruction,response\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_a_broken_csv_file_is_named(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_file(tmp_path / "a.csv", text)


def test_tabs_too(tmp_path):
    (found,) = read_file(tmp_path / "a.tsv", "instruction\tresponse\nx, y\tz\n").examples
    assert (found.instruction, found.response) == ("x, y", "z")


def test_parquet_and_saved_sets_come_through_datasets_and_leave_nothing_behind(tmp_path, capfd):
    import datasets

    table = datasets.Dataset.from_list(
        [{**DOLLY, "conversations": None}, {**DOLLY, "context": None}, SHAREGPT | DOLLY]
    )
    (tmp_path / "in").mkdir()
    table.to_parquet(str(tmp_path / "in" / "a.parquet"))
    datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "saved"))
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    for source in ("in/a.parquet", "saved"):
        found = read(DataTable(source=str(tmp_path / source)), IID, 0).examples
        assert [example.context for example in found] == ["Herons.", "", ""]
        assert len(found[2].turns) == 5
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
    with pytest.raises(DataError, match=r"no part test; set data\.part to one of train"):
        read(DataTable(source=str(tmp_path / "saved"), part="test"), IID, 0)
    (tmp_path / "b.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as Parquet"):
        read(DataTable(source=str(tmp_path / "b.parquet")), IID, 0)


def test_a_text_in_parquet_that_is_not_utf8_is_said_of_the_file(tmp_path):
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"a", b"\xff"])
    text = pyarrow.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    parquet.write_table(pyarrow.table({"instruction": text, "response": text}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet \(.*UTF8"):
        read(DataTable(source=str(tmp_path / "a.parquet")), IID, 0)


def test_parquet_and_arrow_count_their_rows_over_batches_and_a_late_fault_is_said(tmp_path):
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.table({"instruction": list("abcdefg"), "response": list("tuvwxyz")})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    for name, opened in (("a.arrow", ipc.new_stream), ("b.arrow", ipc.new_file)):
        with opened(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        found = read(DataTable(source=str(tmp_path / name)), IID, 0).examples
        assert [(e.instruction, e.response) for e in found] == list(zip("abcdefg", "tuvwxyz", strict=True))
        assert [e.where for e in found] == [f"{tmp_path / name}, record {n}" for n in range(1, 8)]
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match=r"a\.arrow cannot be read as Arrow \(.+\); write it again"):
        read(DataTable(source=str(tmp_path / "a.arrow")), IID, 0)


def test_a_saved_set_is_read_from_its_own_files_alone(tmp_path):
    import datasets

    secret = datasets.Dataset.from_list([{"instruction": "secret", "response": "b"}])
    secret.save_to_disk(str(tmp_path / "other"))
    (arrow,) = (path.name for path in (tmp_path / "other").glob("*.arrow"))
    mine = datasets.Dataset.from_list([{"instruction": "m", "response": "b"}])
    mine.save_to_disk(str(tmp_path / "mine"))
    state = tmp_path / "mine" / "state.json"
    for name in (f"../other/{arrow}", str(tmp_path / "other" / arrow)):
        state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match=r"as its data \(state\.json\), which is no file of its own"):
            read(DataTable(source=str(tmp_path / "mine")), IID, 0)
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["../other"]}))
    with pytest.raises(DataError, match=r"'\.\./other' as its data \(dataset_dict\.json\)"):
        read(DataTable(source=str(tmp_path / "dict"), part="../other"), IID, 0)


@pytest.mark.parametrize(
    "name", ["a[1]", "a*c", "a?c", "{a,b}", "a::b", "simplecache::a", "a%20b", "k=v", "~a"]
)
def test_the_name_of_a_file_or_folder_is_no_pattern(tmp_path, name):
    import datasets

    mine, other = (datasets.Dataset.from_list([{"instruction": who, "response": "b"}]) for who in "mo")
    for stem in ("a1", "abc", "a", "b", "a b"):
        with (tmp_path / f"{stem}.parquet").open("wb") as file:
            other.to_parquet(file)
        other.save_to_disk(str(tmp_path / stem))
    with (tmp_path / f"{name}.parquet").open("wb") as file:
        mine.to_parquet(file)
    assert [e.instruction for e in read(DataTable(source=f"{tmp_path}/{name}.parquet"), IID, 0).examples] == [
        "m"
    ]
    mine.save_to_disk(str(tmp_path / "mine"))
    (tmp_path / "mine").rename(tmp_path / name)
    saved = DataTable(source=f"{tmp_path}/{name}")
    if "::" in name:
        with pytest.raises(DataError, match="has :: in its path"):
            read(saved, IID, 0)
    else:
        assert [e.instruction for e in read(saved, IID, 0).examples] == ["m"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{tmp}/none.json", r"there is no data file or folder .*none\.json; check data\.source"),
        ("{tmp}/notes.txt", r"unknown extension; use one of \.json, \.jsonl"),
        ("{tmp}", "has no data file but test.json, not for training"),
        (
            "nobody/no-such-set",
            r"there is no file or folder nobody/no-such-set \(searched .*, and the hub gives no data set of",
        ),
    ],
)
def test_a_source_that_is_not_there_is_named(tmp_path, monkeypatch, source, words):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "test.json").write_text(lines(DOLLY))
    with pytest.raises(DataError, match=words) as caught:
        read(DataTable(source=source.format(tmp=tmp_path)), IID, 0)
    assert "\n" not in str(caught.value)


# ---- folders, and the limit


def test_a_folder_is_one_client_a_file_in_natural_order(tmp_path):
    for stem in ("c10", "c2", "global_test", "validation", "eval-1"):
        (tmp_path / f"{stem}.jsonl").write_text(lines(DOLLY))
    found = read(DataTable(source=str(tmp_path)), rule(by="ready-made"), 0).examples
    assert [example.client for example in found] == ["c2", "c10"]
    (tmp_path / "c2.csv").write_text("instruction,response\nx,y\n")
    with pytest.raises(DataError, match="two files named c2"):
        read(DataTable(source=str(tmp_path)), rule(by="ready-made"), 0)
    with pytest.raises(DataError, match="is not a folder with one file per client"):
        read(DataTable(source=str(tmp_path / "c10.jsonl")), rule(by="ready-made"), 0)


def test_an_empty_client_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(DOLLY))
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(DataError, match=r"b\.jsonl has no rows"):
        read(DataTable(source=str(tmp_path)), rule(by="ready-made"), 0)


def test_a_client_whose_rows_are_all_skipped_or_left_out_by_the_limit_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(*[{**DOLLY, "instruction": f"{n}"} for n in range(9)]))
    (tmp_path / "b.jsonl").write_text("{oops\n")
    split = rule(by="ready-made")
    with pytest.raises(DataError, match=r"client b has no usable row: all 1 were skipped, .*line 1"):
        read(DataTable(source=str(tmp_path), on_bad_row="skip"), split, 0)
    (tmp_path / "b.jsonl").write_text(lines(DOLLY))
    with pytest.raises(DataError, match=r"data\.limit = 1 leaves client [ab] without an example"):
        read(DataTable(source=str(tmp_path), limit=1), split, 0)
    assert len(read(DataTable(source=str(tmp_path), limit=1), IID, 0).examples) == 1


def test_when_all_rows_are_skipped_the_first_fault_is_shown(tmp_path):
    with pytest.raises(DataError, match=r"all 2 were skipped, the first because .*line 1: field response"):
        read_file(tmp_path / "a.jsonl", lines({"instruction": "x"}) * 2, on_bad_row="skip")


def test_the_limit_is_by_category_and_seeded(tmp_path):
    given = [{**DOLLY, "instruction": f"{n}", "category": "abc"[n % 3]} for n in range(30)]
    text = lines(*given, {**DOLLY, "category": "d"})

    def drawn(seed):
        found = read_file(tmp_path / "a.jsonl", text, seed=seed, limit=4).examples
        return [(example.instruction, example.category) for example in found]

    assert [category for _, category in drawn(0)].count("a") == 4
    assert len(drawn(0)) == 13
    assert drawn(0) == drawn(0) != drawn(1)
    numbers = [int(text) for text, category in drawn(0) if category != "d"]
    assert numbers == sorted(numbers)


def test_dollys_ten_clients():
    folder = shared("data", "dolly", "ten_clients")
    found = read(DataTable(source=str(folder)), rule(by="ready-made"), 0).examples
    assert len(found) == 15_011 - 80
    assert len({example.client for example in found}) == 10
    assert len({example.category for example in found}) == 8


def test_files_that_are_not_for_training_are_named(tmp_path):
    for name in ("a.jsonl", "Testing_centre.jsonl", "Testklinik_Ulm.json", "global_test.json", "notes.md"):
        (tmp_path / name).write_text("{}")
    assert files.left_out(str(tmp_path)) == [
        "Testing_centre.jsonl, global_test.json are left out, as files for testing by their names; rename"
        " those that are a client's",
        "notes.md is left out, as no data files by their names",
    ]
    assert files.left_out(str(tmp_path / "a.jsonl")) == files.left_out("owner/name") == []


def test_a_folder_that_cannot_be_listed_is_one_sentence_there_too(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read .*check its permissions"):
        files.left_out(str(tmp_path))


def test_a_file_without_a_header_is_said_to_have_none_and_shows_no_text(tmp_path):
    (tmp_path / "a.tsv").write_text("Frau Meier hat seit Montag Husten\tTee\nHerr Otto hat Fieber\tRuhe\n")
    with pytest.raises(BadRow, match="seems to have no header") as caught:
        read(DataTable(source=str(tmp_path / "a.tsv")), IID, 0)
    assert "Meier" not in str(caught.value)
    wide = {f"column{n}": "x" for n in range(30)}
    with pytest.raises(BadRow, match=r"there are column0, .*, column7 and 22 more\)"):
        rows(wide)


def test_a_readings_repr_holds_no_text():
    reading = from_rows([{"instruction": "secret", "response": "secret"}], DataTable(source="x"), IID, "m")
    assert repr(reading) == "<Reading: 1 examples, 0 bad rows skipped>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instruction,response\nGr\u00f6\u00dfe,b\n".encode("cp1252"), "is not UTF-8 but cp1252 or similar"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
    ],
)
def test_the_reader_says_what_a_table_is_instead(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_file(tmp_path / "a.csv", text)
