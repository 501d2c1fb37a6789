"""Examples in a temporary file are those that were put there, and make the same data as those in memory."""

from __future__ import annotations

import csv
import json
import os
import stat
import tempfile
import tracemalloc
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data import data_folder, keep, pipeline
from shepherd.data.examples import Example, Turn
from shepherd.data.holdout import hold_out
from shepherd.errors import DataError
from tests import runs
from tests.data import test_data_folder

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates too
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.dates(), st.just(np.float64(0.5))
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=4,
)
TURNS = st.lists(
    st.builds(
        Turn, role=st.sampled_from(["user", "assistant"]), text=TEXT, context=TEXT, trained=st.booleans()
    ),
    max_size=3,
).map(tuple)
EXAMPLES = st.builds(
    Example,
    turns=TURNS,
    rejected=TURNS,
    category=TEXT,
    client=TEXT,
    label=TEXT,
    group=TEXT,
    where=TEXT,
    check=st.one_of(st.none(), st.dictionaries(TEXT, VALUES, max_size=2)),
)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "IN_MEMORY", 0)


@pytest.fixture(scope="session")
def tokenizer(llama):
    return llama.tokenizer


def simple(count: int) -> Iterator[Example]:
    for k in range(count):
        turns = Turn(role="user", text=f"What is {k}?"), Turn(role="assistant", text=f"It is {k} {'x' * 99}")
        yield Example(
            turns=turns, category="ab"[k % 2], client=f"c{k % 3}", where=f"rows.jsonl, line {k + 1}"
        )


@given(st.lists(EXAMPLES, min_size=1, max_size=6), st.slices(6))
def test_what_is_put_there_comes_back(examples: list[Example], part: slice) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep, "IN_MEMORY", 0)
        kept = keep.keep(examples)
    assert not isinstance(kept, tuple)
    assert len(kept) == len(examples)
    # by what is written of them, since a number that is none does not equal itself
    assert repr([_plain(one) for one in kept]) == repr([_plain(one) for one in examples])
    assert [one.where for one in kept[part]] == [one.where for one in examples[part]]
    assert (kept[-1].turns, kept[0].rejected) == (examples[-1].turns, examples[0].rejected)
    some = keep.chosen(kept, np.array([len(examples) - 1, 0]))
    assert [one.turns for one in some] == [examples[-1].turns, examples[0].turns]
    with pytest.raises(IndexError):
        kept[len(examples)]


def _plain(example: Example) -> list[object]:
    names = "category", "client", "label", "group", "where", "check"
    turns = [
        (turn.role, turn.text, turn.context, turn.trained) for turn in (*example.turns, *example.rejected)
    ]
    return [turns, len(example.rejected), *(getattr(example, name) for name in names)]


@pytest.mark.usefixtures("on_disk")
def test_a_text_of_another_type_comes_back_as_text() -> None:
    """NumPy's strings are bytes to `marshal`."""
    turn = Turn(role="user", text=np.str_("é"))
    (found,) = keep.keep([Example(turns=(turn,), check={"day": date(2026, 1, 2)})])
    assert found.turns == (turn,)
    assert found.check == {"day": date(2026, 1, 2)}


def test_few_stay_in_memory() -> None:
    examples = list(simple(20))
    kept = keep.keep(iter(examples))
    assert isinstance(kept, tuple)
    assert all(a is b for a, b in zip(kept, examples, strict=True))


def test_a_refused_row_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[Example]:
        yield from simple(10)
        raise DataError("row 11 is bad")

    monkeypatch.setattr(keep, "IN_MEMORY", 2_000)
    with pytest.raises(DataError, match="row 11 is bad"):
        keep.keep(rows())


# ---- the file


@pytest.mark.skipif(os.name == "nt", reason="an open file has a name there")
@pytest.mark.usefixtures("on_disk")
def test_the_file_is_its_owners_has_no_name_and_goes_with_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = keep.keep(simple(5))
    number = kept._file.fileno()  # type: ignore[attr-defined]
    found = os.fstat(number)
    assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o600, 0)
    assert found.st_size > 500
    assert list(tmp_path.iterdir()) == []
    del kept
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.usefixtures("on_disk")
def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(DataError, match=rf"the disk of {tmp_path} is full; free some space, or set TMPDIR"):
        keep.keep(simple(5))


@pytest.mark.usefixtures("on_disk")
def test_a_temporary_folder_that_cannot_be_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="refuses it"):
        keep.keep(simple(5))


# ---- memory


def test_examples_on_disk_and_what_is_kept_of_them_take_a_fraction_of_the_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Per example of 130 characters: 640 bytes as an object; 12 on disk, and 280 at most while dividing."""
    count = 5_000

    def used(limit: int) -> tuple[float, float]:
        """Bytes an example, at the peak, that reading takes, and holding out."""
        monkeypatch.setattr(keep, "IN_MEMORY", limit)
        tracemalloc.start()
        try:
            kept = keep.keep(simple(count))
            reading = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            hold_out(kept, 0.1, 0)
            return reading / count, (tracemalloc.get_traced_memory()[1] - before) / count
        finally:
            tracemalloc.stop()

    objects, on_disk = used(2**40), used(2**16)
    assert on_disk[0] - 2**16 / count < objects[0] / 20
    assert on_disk[1] < 400


# ---- the same data by both ways


def _json(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text(json.dumps(rows))


def _csv(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def _parquet(path: Path, rows: list[dict[str, str]]) -> None:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)


def _folder(path: Path, rows: list[dict[str, str]]) -> None:
    path.mkdir()
    for place in range(3):
        runs.written(path / f"part{place}.jsonl", rows[place::3])


SOURCES = {
    "rows.jsonl": runs.written,
    "rows.json": _json,
    "rows.csv": _csv,
    "rows.parquet": _parquet,
    "folder": _folder,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("tables", [{}, {"data": {"limit": 12}, "split": {"by": "dirichlet"}}], ids=str)
def test_the_data_are_the_same(tmp_path, tokenizer, monkeypatch, source, tables) -> None:
    rows = runs.rows(60)
    SOURCES[source](tmp_path / source, rows + rows[:7])  # type: ignore[operator]
    _same_both_ways(test_data_folder.settings(tmp_path / source, **tables), tokenizer, monkeypatch)


def test_the_data_are_the_same_with_a_test_set(tmp_path, tokenizer, monkeypatch) -> None:
    rows = runs.rows(60)
    test = runs.written(tmp_path / "test.jsonl", rows[:4] + runs.rows(6, 1))
    given = test_data_folder.settings(
        runs.written(tmp_path / "rows.jsonl", rows), evaluation={"data": str(test)}
    )
    _same_both_ways(given, tokenizer, monkeypatch)


def _same_both_ways(given, tokenizer, monkeypatch) -> None:
    few: list[object] = []
    many: list[object] = []
    for found, limit in ((few, 2**40), (many, 0)):
        monkeypatch.setattr(keep, "IN_MEMORY", limit)
        division = pipeline.divide(given)
        prepared = pipeline.tokenised(division, given, tokenizer)
        assert isinstance(division.reading.examples, tuple) == (limit > 0)
        found += [
            list(division.reading.examples),
            {name: list(places) for name, places in division.clients.items()},
            division.held.heldout.tolist(),
            data_folder.digest(prepared),
            list(prepared.heldout_examples),
            {
                name: getattr(prepared, name)
                for name in ("summary", "places", "by_client", "category_counts", "example_categories")
            },
        ]
    assert few == many
