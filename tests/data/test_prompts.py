"""Prompts from a text, a row, a file and standard input; what is none is one sentence."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from shepherd.data import prompts
from shepherd.data.examples import Example, Reading, Turn
from shepherd.data.prompts import Prompt, prompt_of, read
from shepherd.errors import BadRow, DataError
from shepherd.settings import DataTable, FieldsTable

USUAL = DataTable(source="world")
GERMAN = DataTable(source="x.csv", fields=FieldsTable(instruction="frage", context="kontext", messages=""))


def asked(found: list[Prompt]) -> list[tuple[str, str]]:
    return [(each.text, each.context) for each in found]


def test_a_file_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "asked.txt"
    file.write_bytes("\ufeffName two.\r\n\r\n  Wer ist das?  \n".encode())
    found = read(str(file), USUAL)
    assert asked(found) == [("Name two.", ""), ("Wer ist das?", "")]
    assert [each.where for each in found] == [f"{file}, line 1", f"{file}, line 3"]


def test_rows_in_the_runs_own_layout_and_in_the_usual_one(tmp_path: Path) -> None:
    rows = [
        {"frage": "Was?", "kontext": "Hier.", "antwort": "Das."},
        {"instruction": "What?", "context": "Here."},
        "a text alone",
    ]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert asked(read(str(file), GERMAN)) == [("Was?", "Hier."), ("What?", "Here."), ("a text alone", "")]


def test_a_chat_is_asked_up_to_its_last_user_turn() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A bird?"},
        {"role": "assistant", "content": "A heron."},
        {"role": "user", "content": "Another?"},
    ]
    turns = prompt_of({"messages": chat}, USUAL).turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    answered = [*chat, {"role": "assistant", "content": "A gull."}]
    assert prompt_of({"messages": answered}, USUAL).turns == turns
    with pytest.raises(BadRow, match="row 1: field messages holds no user turn"):
        prompt_of({"messages": chat[:1]}, USUAL, "row 1")
    with pytest.raises(BadRow, match="turn 1 is assistant's, expected user's"):
        prompt_of({"messages": chat[2:]}, USUAL)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"Name two.\n\nName three.\n", [("Name two.", ""), ("Name three.", "")]),
        (b'\n{"instruction": "Who?", "input": "Ann."}\n', [("Who?", "Ann.")]),
    ],
)
def test_standard_input(given: bytes, expected: list[tuple[str, str]], monkeypatch) -> None:
    monkeypatch.setattr(prompts.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    found = read("-", USUAL)
    assert asked(found) == expected
    assert found[0].where.startswith("standard input, line ")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.txt", None, r"none.txt cannot be read \(No such file or directory\); name a file"),
        ("empty.txt", b"\n \n", "empty.txt has no prompt; write one a line"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\x00", "picture.txt, line 1 is not text in UTF-8"),
        ("nul.txt", b"a\x00b", "nul.txt is not a text file"),
        ("rows.jsonl", b"", "rows.jsonl has no rows"),
        ("rows.jsonl", b'{"instruction": "a"}\n{"instruction"', "rows.jsonl, line 2 is not JSON"),
        ("rows.jsonl", b'{"instruction": "a"}\n{"x": 1}', "rows.jsonl, line 2: field instruction is missing"),
        ("rows.jsonl", b"[1]", "rows.jsonl, record 1 .line 1. is no object with named fields"),
        ("rows.jsonl", b'" "', "rows.jsonl, line 1: the instruction is empty"),
    ],
)
def test_what_is_no_file_of_prompts_is_one_sentence(
    name: str, content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read(str(tmp_path / name), USUAL)


def test_a_folder_is_no_file_of_prompts(tmp_path: Path) -> None:
    for name in ("folder", "folder.jsonl"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=rf"{name} cannot be read \(Is a directory\)"):
            read(str(tmp_path / name), USUAL)


def test_a_context_joins_the_last_turn() -> None:
    found = prompts.with_context(prompt_of("Who?", USUAL), "Ann is here.")
    assert found.turns == (Turn(role="user", text="Who?", context="Ann is here."),)


def test_a_rows_faults_are_said_by_the_runs_own_fields(tmp_path: Path) -> None:
    assert asked([prompt_of({"frage": "Was?"}, GERMAN)]) == [("Was?", "")]
    with pytest.raises(BadRow, match=r"field frage is missing \(there are fragen\); add it$"):
        prompt_of({"fragen": "Was?"}, GERMAN)
    (tmp_path / "a.csv").write_text("frage,kontext\nWas?,\n,Hier\n")
    with pytest.raises(BadRow, match=r"line 3: field frage is empty; fill it in$"):
        read(str(tmp_path / "a.csv"), GERMAN)


def test_fields_of_prompts_that_are_not_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    rows = [
        {"instruction": "What?", "output": "That.", "context": "", "id": 7, "topic": "birds"},
        {"messages": [{"role": "user", "content": "Who?", "name": "Ann"}], "id": 8, "topic": None},
        "a text alone",
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = read(str(file), USUAL)
    assert [each.unread for each in found] == [("id", "topic"), ("id", "messages[].name"), ()]
    assert prompts.remarks(found) == [
        "filled and not read: id (in 2 prompts), topic (in 1 prompt) and messages[].name (in 1 prompt); to"
        " read a field, name it in data.fields of the run"
    ]
    assert prompts.remarks(found[2:]) == []


def test_a_compressed_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "asked.txt.gz"
    file.write_bytes(gzip.compress(b"Name two.\nWho?\n"))
    assert asked(read(str(file), USUAL)) == [("Name two.", ""), ("Who?", "")]


def test_no_text_is_shown_of_a_prompt_or_an_example() -> None:
    turns = (Turn(role="user", text="private", context="private"), Turn(role="assistant", text="private"))
    shown = repr(
        [Prompt(turns=turns), Example(turns=turns), turns, Reading(examples=(Example(turns=turns),))]
    )
    assert "private" not in shown
    assert "<Turn: user, 14 characters>" in shown
    assert "<Example: in memory, 2 turns>" in shown
