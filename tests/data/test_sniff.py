"""What a text file is written in: found where it is plain, given by the run file, else named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data.files import rows_of
from shepherd.data.form import USUAL, Form
from shepherd.data.sniff import delimiter, require_plain
from shepherd.errors import BadRow, DataError, SettingsError
from shepherd.io.decoding import UTF8, encoding_of
from shepherd.overrides import parse

ROWS = [["frage", "antwort"], ["Größe, bitte?", "42; zwei"], ["Ä\nÖ", 'sagt "ß"']]


def written(path: Path, delimiter: str, encoding: str, before: str = "") -> Path:
    cells = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in ROWS[1:]]
    text = before + "\r\n".join(delimiter.join(row) for row in [ROWS[0], *cells]) + "\r\n"
    path.write_bytes(text.encode(encoding))
    return path


def cells(path: Path, form: Form = USUAL) -> list[list[str]]:
    return [list(row.values()) for _, row in rows_of(path, form)]


@pytest.mark.parametrize("name", ["a b.csv", "a.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("before", ["", "\r\n", "{mark}\n"])
def test_a_table_of_any_program_is_read(
    name: str, mark: str, encoding: str, before: str, tmp_path: Path
) -> None:
    path = written(tmp_path / name, mark, encoding, before.format(mark=mark))
    require_plain(path)
    assert cells(path) == ROWS[1:]


@pytest.mark.parametrize("line", ["sep=;\r\n", "SEP=;\n", '"sep=;"\r\n'])
def test_a_line_for_excel_is_obeyed_and_no_row(line: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", ";", "utf-8-sig", line)
    assert cells(path) == ROWS[1:]
    assert next(iter(rows_of(path)))[0].endswith("a.csv, line 3")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "mac-roman", "shift-jis"])
def test_another_encoding_is_read_where_it_is_given(encoding: str, tmp_path: Path) -> None:
    text = "frage,antwort\nGröße,ß\n" if encoding != "shift-jis" else "質問,答え\n東京,都\n"
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r'is not UTF-8 but cp1252 or similar; set data\.encoding = "cp1252"'):
        cells(tmp_path / "a.csv")
    assert cells(tmp_path / "a.csv", Form(encoding=encoding)) == [text.split("\n")[1].split(",")]
    (tmp_path / "a.jsonl").write_bytes('{"a": "Größe"}\n{"a": "x"}\n'.encode("cp1252"))
    assert [row["a"] for _, row in rows_of(tmp_path / "a.jsonl", Form(encoding="cp1252"))] == ["Größe", "x"]
    assert isinstance(next(iter(rows_of(tmp_path / "a.jsonl")))[1], BadRow)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_the_command_in_the_message_converts_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"it's $(touch x) {name}"
    text = '{"frage": "Größe"}\r\n' if name == "a.jsonl" else "frage,antwort\r\nGröße,ß\r\n"
    path.write_bytes(text.encode("cp1252"))
    with pytest.raises(DataError, match="or convert it: python3 -c") as caught:
        require_plain(path)
    command = str(caught.value).partition("convert it: ")[2]
    subprocess.run(command.replace("python3", sys.executable, 1), shell=True, check=True)
    assert path.with_stem(path.stem + "-utf8").read_bytes() == text.encode()


def test_what_is_not_in_the_encoding_that_is_given_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("frage,antwort\nGröße,ß\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"is not in data\.encoding utf-8 .*; set another"):
        cells(tmp_path / "a.csv", Form(encoding="utf-8"))
    (tmp_path / "a.csv").write_bytes("frage,antwort\n".encode("utf-16") + b"x")
    with pytest.raises(DataError, match="is damaged: it begins as utf-16"):
        cells(tmp_path / "a.csv")


def test_utf16_in_every_text_format(tmp_path: Path) -> None:
    for text in ('{"a": "東"}\n{"a": "ß"}\n', '[\n {"a": "東"},\n {"a": "ß"}\n]\n'):
        for name in ("a.jsonl", "a.json"):
            (tmp_path / name).write_bytes(text.encode("utf-16"))
            assert [row["a"] for _, row in rows_of(tmp_path / name)] == ["東", "ß"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a;b\n1,5;2\n", ";"),  # decimal commas
        ("a,b\nx;y,z\n", ","),
        ("a\nx;y\n", ","),  # one column
        ("id;frage, kurz;antwort\n1;a, b, c;d\n2;e;f\n", ";"),
        ("a,b (x;y)\n1,2\n3,4\n", ","),
        ("a,b\n1,2\n3,4,5\n", ","),  # a bad row
        ("a;b\n1;2\n3;4;5\n", ";"),
        ('"a;b",c\n1,2\n', ","),
        ("a|b|c\n1,2|3|4\n", "|"),
    ],
)
def test_the_delimiter_is_what_cuts_all_rows_alike(text: str, found: str) -> None:
    assert delimiter(text, Path("a.csv"), USUAL) == found
    assert delimiter(text, Path("a.csv"), Form(delimiter=":")) == ":"


def test_a_delimiter_that_is_not_plain_is_named() -> None:
    with pytest.raises(DataError, match=r"separated by semicolons or by bars; set data\.delimiter"):
        delimiter("a;b|c\n1;2|3\n", Path("a.csv"), USUAL)


words = st.text("abc xyz", min_size=1).filter(str.strip)


@given(st.lists(st.tuples(words, words, words), min_size=1), st.sampled_from(",;\t|"))
def test_any_table_is_cut_by_its_own_delimiter(rows: list[tuple[str, ...]], mark: str) -> None:
    text = "".join(mark.join(row) + "\n" for row in [("a", "b", "c"), *rows])
    assert delimiter(text, Path("a.csv"), USUAL) == mark


def test_a_packed_file_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match="is not CSV but a workbook of Excel or a zip archive"):
        cells(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_bytes(b"PAR1\x15\x04PAR1")
    with pytest.raises(DataError, match="is not JSONL but Parquet, despite its name; export it as JSONL"):
        cells(tmp_path / "b.jsonl")
    (tmp_path / "c.json").write_text(
        "\ufeff\n<!DOCTYPE html><html><title>404</title></html>", encoding="utf8"
    )
    with pytest.raises(DataError, match="is not JSON but a web page, as a download that failed leaves"):
        cells(tmp_path / "c.json")
    for name in ("a.zip", "a.jsonl.zip", "a.tar.gz", "a.tgz", "a.7z"):
        (tmp_path / name).write_bytes(b"PK\x03\x04rest")
        with pytest.raises(
            DataError, match="unknown extension; it is an archive; unpack it, and name a file"
        ):
            cells(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["質問,output\n一一二,三\n", "ä;ö\n一;二\n", '[{"質問": "一"}]'])
def test_utf16_without_a_mark_is_seen_by_its_ascii(text: str, encoding: str) -> None:
    assert encoding_of(text.encode(encoding)) == encoding
    assert encoding_of(text.encode()) == UTF8
    assert encoding_of(bytes(range(256))) == UTF8  # no text at all


def test_the_keys_of_the_run_file() -> None:
    def data(**keys: object) -> object:
        return parse({"model": {"base": "tiny"}, "data": {"source": "world", **keys}}).data

    assert data(delimiter="tab") == data(delimiter="\t")
    for key, wrong, words in (
        ("delimiter", ";;", "write one character"),
        ("delimiter", "\n", "write one character"),
        ("encoding", "klingon", "there is no such encoding"),
        ("encoding", "zip", "no encoding of text"),
        ("encoding", "os\0", "there is no such encoding"),
    ):
        with pytest.raises(SettingsError, match=rf"data\.{key}: .*{words}"):
            data(**{key: wrong})
