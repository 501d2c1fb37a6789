"""A file with another delimiter or encoding is named, and the command in the message converts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shepherd.data.files import rows_of
from shepherd.data.sniff import require_plain
from shepherd.errors import DataError

ROWS = [["frage", "antwort"], ["Größe, bitte?", "42; zwei"], ["Ä\nÖ", 'sagt "ß"']]


def written(path: Path, delimiter: str, encoding: str) -> Path:
    cells = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in ROWS[1:]]
    text = "\r\n".join(delimiter.join(row) for row in [ROWS[0], *cells]) + "\r\n"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "fault"),
    [
        ("a b.csv", ";", "utf8", "is separated by semicolons, not by commas"),
        ("a.csv", ";", "cp1252", "is not UTF-8 but cp1252 and is separated by semicolons"),
        ("a.csv", ",", "cp1252", "is not UTF-8 but cp1252;"),
        ("a.csv", "\t", "utf8", "is separated by tabs, not by commas"),
        ("a.csv", ",", "utf-16", "is not UTF-8 but utf-16"),
        ("a.tsv", ",", "utf8", "is separated by commas, not by tabs"),
    ],
)
def test_the_command_in_the_message_converts_it(
    name: str, delimiter: str, encoding: str, fault: str, tmp_path: Path
) -> None:
    path = written(tmp_path / name, delimiter, encoding)
    with pytest.raises(DataError, match=fault) as caught:
        require_plain(path)
    command = str(caught.value).partition("convert it: ")[2]
    subprocess.run(command.replace("python3", sys.executable, 1), shell=True, check=True)
    new = path.with_stem(path.stem + "-utf8")
    require_plain(new)
    assert [list(row.values()) for _, row in rows_of(new)] == ROWS[1:]


@pytest.mark.parametrize("encoding", ["utf8", "utf-8-sig"])
def test_what_is_right_passes(encoding: str, tmp_path: Path) -> None:
    require_plain(written(tmp_path / "a.csv", ",", encoding))
    require_plain(written(tmp_path / "a.tsv", "\t", encoding))
    (tmp_path / "one.csv").write_text("question\nWhat?\n")
    require_plain(tmp_path / "one.csv")
    require_plain(tmp_path / "none.csv")
    require_plain(tmp_path)


def test_jsonl_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"frage": "Größe"}\n'.encode("cp1252"))
    with pytest.raises(DataError, match=r"is not UTF-8 but cp1252; convert it: python3 -c"):
        require_plain(tmp_path / "a.jsonl")
