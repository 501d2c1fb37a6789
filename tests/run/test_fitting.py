"""`shepherd new` over odd data: the file it writes reads every row, and each choice has its reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from shepherd.errors import BaseError, DataError
from shepherd.overrides import read
from shepherd.run import fitting, run_file
from shepherd.run.inspection import inspect_data
from shepherd.settings import RunSettings
from shepherd.ui.cli.main import main
from tests.model import bases

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<s> you are a w9 helper of w7 </s>"
    "{% endif %}<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


def table(count: int = 120) -> list[dict[str, str]]:
    return [
        {
            "id": str(n),
            "hospital": ("Ulm", "東京大学病院", "St. Mary's, London")[n % 3],
            "frage": f"Was bedeutet die Zahl {n}?",
            "kontext": f"Es gibt {n} Zahlen." if n % 2 else "",
            "antwort": " ".join(["sehr"] * (n % 30) + ["viel"]),
            "art": ("Frage", "Brief")[n % 2],
        }
        for n in range(count)
    ]


def as_csv(path: Path, rows: list[dict[str, str]], encoding: str = "utf8", delimiter: str = ",") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(data: Path | str, folder: Path, base: str = "tiny", **given: str) -> tuple[RunSettings, str]:
    run_file.write(folder / "run.toml", str(data), base, given)
    settings = read(folder / "run.toml")
    found = inspect_data(settings)  # `shepherd data check`
    assert found.report.counts.kept > 0
    return settings, (folder / "run.toml").read_text()


def test_a_table_with_german_names_and_a_bom(tmp_path: Path) -> None:
    settings, text = made(as_csv(tmp_path / "p3.csv", table(), "utf-8-sig"), tmp_path)
    fields = settings.data.fields
    assert (fields.instruction, fields.context, fields.response) == ("frage", "kontext", "antwort")
    assert (settings.split.by, settings.split.own["field"], settings.data.category) == (
        "natural",
        "hospital",
        "art",
    )
    assert settings.data.on_bad_row == "error"
    assert "#   columns not used: id" in text
    assert "#   instruction: frage (by its name)" in text
    assert len(inspect_data(settings).division.clients) == 3
    assert settings.output == "runs/run"


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("a.tsv", None, ("frage", "kontext", "antwort")),
        ("a.jsonl", None, ("frage", "kontext", "antwort")),
        ("a.json", None, ("frage", "kontext", "antwort")),
        ("a.parquet", None, ("frage", "kontext", "antwort")),
        (
            "q.jsonl",
            [{"question": f"w{n}?", "answer": f"a {n}"} for n in range(30)],
            ("question", "", "answer"),
        ),
        (
            "p.jsonl",
            [{"prompt": f"w{n}?", "completion": f"a {n}"} for n in range(30)],
            ("prompt", "", "completion"),
        ),
        ("i.jsonl", [{"input": f"w{n}?", "output": n} for n in range(30)], ("input", "", "output")),
        (
            "alpaca.jsonl",
            [
                {"instruction": f"w{n}?", "output": "a", **({"input": "b"} if n % 2 else {})}
                for n in range(30)
            ],
            ("instruction", "auto", "output"),
        ),
    ],
)
def test_formats_and_layouts(
    name: str, rows: list[Any] | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    path, given = tmp_path / name, rows or table()
    if path.suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(given).to_parquet(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(given))
    elif path.suffix == ".tsv":
        as_csv(path, given, delimiter="\t")
    else:
        as_jsonl(path, given)
    settings, _ = made(path, tmp_path)
    fields = settings.data.fields
    assert (fields.instruction, fields.context, fields.response) == expected
    reading = inspect_data(settings).division.reading
    assert len(reading.examples) == len(given)
    assert sum(bool(example.context) for example in reading.examples) == (
        len(given) // 2 if expected[1] else 0
    )


def test_chats_and_a_folder_with_a_file_a_client(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    for site in "abc":
        chats = [
            {"conversations": [{"from": "human", "value": f"{site} {n}?"}, {"from": "gpt", "value": "yes"}]}
            for n in range(9)
        ]
        as_jsonl(tmp_path / "sites" / f"{site}.jsonl", chats)
    as_jsonl(tmp_path / "sites" / "test.jsonl", chats)
    settings, text = made(tmp_path / "sites", tmp_path)
    assert settings.data.fields.messages == "conversations"
    assert settings.split.by == "ready_made"
    assert "each of the 3 files is a client" in text
    assert "test.jsonl is left out" in text
    assert list(inspect_data(settings).division.clients) == ["a", "b", "c"]


def test_files_as_people_have_them(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    for site in ("ulm", "Testklinik_Ulm"):
        as_csv(tmp_path / "sites" / f"{site}.csv", table(), "utf-16", ";")
        (tmp_path / "sites" / f"._{site}.csv").write_bytes(b"\0\5\x16\7\0")  # as macOS leaves them
    settings, text = made(tmp_path / "sites", tmp_path)
    assert settings.split.by == "ready_made"
    assert settings.data.fields.instruction == "frage"
    assert "._Testklinik_Ulm.csv, ._ulm.csv are left out, as files of the system" in text
    assert list(inspect_data(settings).division.clients) == ["Testklinik_Ulm", "ulm"]


def test_rows_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = table()
    rows[7]["antwort"] = ""
    settings, text = made(as_csv(tmp_path / "p.csv", rows), tmp_path)
    assert settings.data.on_bad_row == "skip"
    assert "1 row skipped" in text
    assert "line 9: field antwort is empty" in " ".join(text.replace("\n#", "").split())


def test_columns_that_are_asked_for_are_taken(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "p.csv", table())
    settings, _ = made(path, tmp_path, client="art", category="", context="")
    assert (settings.split.own["field"], settings.data.category, settings.data.fields.context) == (
        "art",
        "",
        "",
    )
    with pytest.raises(DataError, match="--client nobody: there is no such column; there are id, hospital,"):
        fitting.fit(str(path), given={"client": "nobody"})


def test_lengths_are_those_that_the_tokenizer_counts(tmp_path: Path, llama_folder: Path) -> None:
    rows = [
        {"instruction": f"w{4 + n % 50}", "response": " ".join(["w5"] * (n % 20 + 1))} for n in range(200)
    ]
    rows[3]["response"] = " ".join(["w5"] * 300)  # one that would rule all lengths
    settings, text = made(as_jsonl(tmp_path / "a.jsonl", rows), tmp_path, str(llama_folder))
    assert settings.data.template == "alpaca"
    assert "Here: the tokenizer has no chat template." in text
    assert settings.data.max_tokens < 64
    assert settings.data.max_tokens % 16 == 0
    assert inspect_data(settings).report.counts.cut == 1
    assert "the longest of 200 has 3" in text
    assert settings.evaluation.max_new_tokens == 24  # half of max_tokens, at most
    assert "95% of the responses have at most 21 tokens" in text  # 20 words and EOS


def test_no_length_is_beyond_what_the_base_reads(tmp_path: Path, llama_folder: Path) -> None:
    rows = [{"instruction": f"w{4 + n % 50}", "response": " ".join(["w5"] * 90)} for n in range(30)]
    settings, text = made(as_jsonl(tmp_path / "a.jsonl", rows), tmp_path, str(llama_folder))
    assert settings.data.max_tokens == 64
    assert "the longest input of the base; 0% of the examples" in text


def test_a_chat_template_is_taken_and_its_system_prompt_is_shown(tmp_path: Path) -> None:
    folder = bases.save(bases.CONFIGS["llama"], tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    settings, text = made(as_csv(tmp_path / "p.csv", table()), tmp_path, str(folder))
    assert settings.data.template == "chat"
    assert "'you are a w9 helper of w7'" in " ".join(text.replace("\n#", "").split())
    assert settings.tuning.learning_rate == fitting.SMALL_BASE_RATE
    assert settings.adapter.rank == 8


def test_the_work_fits_the_data(tmp_path: Path) -> None:
    def rows(count: int) -> list[Any]:
        return [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(count)]

    small, _ = made(as_jsonl(tmp_path / "a.jsonl", rows(12)), tmp_path)
    assert (small.split.own["clients"], small.tuning.batch_size) == (1, 11)
    (tmp_path / "run.toml").unlink()
    large, _ = made(as_jsonl(tmp_path / "b.jsonl", rows(3000)), tmp_path)
    assert (large.split.own["clients"], large.tuning.batch_size, large.tuning.max_steps) == (10, 16, 10)
    rounds, share = large.federation.rounds, large.selection.own["share"]
    assert rounds * share * large.tuning.max_steps * 16 >= 270  # each client's data, once


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.csv", None, "there is no data file or folder"),
        ("a.csv", "frage,antwort\nGr\u00f6\u00dfe?,Ja.\n".encode("cp1252"), "is not UTF-8 but cp1252"),
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"Wer?,Ja\nWas?,Nein\n", "seems to have no header"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
        ("a.jsonl", b"[1]\n[2]\n", "has no row with named columns"),
        ("a.xls", b"PK", "unknown extension; save it as .xlsx or CSV"),
        (
            "a.csv",
            b"title,body\nA text of words,Another text of words\n",
            "no column is named as the instruction",
        ),
    ],
)
def test_data_that_cannot_be_used_are_one_sentence_and_no_file(
    name: str, content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(main, ["new", str(tmp_path / "run.toml"), "--data", str(tmp_path / name)])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (tmp_path / "run.toml").exists()


def test_a_folder_whose_files_differ_is_refused_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    for site, column in (("ulm", "frage"), ("bonn", "question")):
        rows = [{column: f"Was ist {n}?", "antwort": f"Das ist {n}."} for n in range(9)]
        as_csv(tmp_path / "sites" / f"{site}.csv", rows)
    with pytest.raises(
        DataError, match="in ulm, there are antwort, frage; in bonn, there are antwort, question"
    ):
        fitting.fit(str(tmp_path / "sites"))
    with pytest.raises(
        DataError, match="not every file has the column frage: in bonn, there are antwort, question"
    ):
        fitting.fit(str(tmp_path / "sites"), given={"instruction": "frage"})


def test_a_base_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    for base in ("./nowhere", "nowhere"):
        with pytest.raises(BaseError, match=rf"there is no folder {Path.cwd()}/nowhere, which"):
            fitting.fit(base=base)
    with pytest.raises(BaseError, match=r"there is no folder nobody/nothing \(.*as a Hugging Face id"):
        fitting.fit(base="nobody/nothing")


def test_a_path_holds_from_the_run_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_csv(tmp_path / "p.csv", table())
    run_file.write(Path("run.toml"), "p.csv")
    assert 'source = "p.csv"' in Path("run.toml").read_text()
    assert read("run.toml").data.source == str(tmp_path / "p.csv")
    (tmp_path / "below").mkdir()
    run_file.write(Path("below/run.toml"), "p.csv")
    assert read("below/run.toml").data.source == str(tmp_path / "p.csv")


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "p.csv", table())
    result = CliRunner().invoke(main, ["new", str(tmp_path / "r.toml"), "--data", str(path), "--context", ""])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:3] == [
        "120 examples, 3 clients",
        "instruction: frage (by its name)",
        "response: antwort (by its name)",
    ]
    assert "columns not used: id, kontext" in result.stdout
    assert result.stdout.endswith(f"next: shepherd data check {tmp_path / 'r.toml'}\n")


def test_rounded_lengths() -> None:
    assert [fitting._rounded(n) for n in (1, 16, 17)] == [16, 16, 32]
    assert np.isclose(fitting.MAX_ROUND_WORK / 135e6, 60_000)


def test_a_merged_table_is_read_whole(tmp_path: Path) -> None:
    alpaca = {
        "instruction": "Which of the birds is it?",
        "input": "Two are here.",
        "output": "It is the heron.",
    }
    dolly = {
        "instruction": "Who is it that sings?",
        "context": "It is early.",
        "response": "It is the robin.",
    }
    chat = {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]}
    rows = [dict(row, instruction=f"{row.get('instruction', '')} {n}") if "instruction" in row else row
            for n in range(9) for row in (alpaca, dolly, chat)]  # fmt: skip
    filled = [{name: row.get(name) for name in {**alpaca, **dolly, **chat}} for row in rows]
    for name, given in (("a", rows), ("b", filled)):
        (tmp_path / name).mkdir()
        settings, _ = made(as_jsonl(tmp_path / f"{name}.jsonl", given), tmp_path / name)
        reading = inspect_data(settings).division.reading
        assert len(reading.examples) == 27
        assert {example.context for example in reading.examples} == {"Two are here.", "It is early.", ""}
        assert not reading.notes.sentences()
