"""A run's data to the disk and back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shepherd import plugins
from shepherd.data import data_folder, pipeline
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import Tokens
from shepherd.errors import FolderError
from shepherd.settings import RunSettings
from tests import runs


@pytest.fixture(scope="session")
def tokenizer(llama):
    return llama.tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return runs.written(tmp_path / "rows.jsonl")


def settings(source: Path | str, **tables) -> RunSettings:
    return runs.settings(Path("tiny"), source, Path("out"), **tables)


def same(a: TokenisedData, b: TokenisedData) -> bool:
    def arrays(data: Tokens) -> tuple[list[int], ...]:
        return data.ids.tolist(), data.loss_mask.tolist(), data.offsets.tolist()

    return (
        {name: arrays(data) for name, data in a.clients.items()}
        == {name: arrays(data) for name, data in b.clients.items()}
        and list(a.clients) == list(b.clients)
        and arrays(a.heldout) == arrays(b.heldout)
        and (a.category_counts, a.summary) == (b.category_counts, b.summary)
        and [e.turns for e in a.heldout_examples] == [e.turns for e in b.heldout_examples]
        and [(e.category, e.check) for e in a.heldout_examples]
        == [(e.category, e.check) for e in b.heldout_examples]
    )


def test_what_is_saved_comes_back_memory_mapped(source, tokenizer, tmp_path) -> None:
    prepared = pipeline.prepare(settings(source), tokenizer)
    folder = tmp_path / "run" / "data"
    assert not data_folder.whole(folder)
    data_folder.save(folder, prepared)
    assert data_folder.whole(folder)
    loaded = data_folder.load(folder)
    assert same(loaded, prepared)
    assert all(isinstance(data.ids, np.memmap) for data in loaded.clients.values())
    data_folder.save(folder, prepared)  # a run killed on the way writes it again
    assert same(data_folder.load(folder), prepared)


def test_a_folder_of_before_can_be_read(source, tokenizer, tmp_path) -> None:
    """It had a folder for each client."""
    prepared = pipeline.prepare(settings(source), tokenizer)
    data_folder.save(tmp_path, prepared)
    shutil.rmtree(tmp_path / "clients")
    for number, data in enumerate(prepared.clients.values()):
        data.save(tmp_path / "clients" / f"{number:04d}")
    index = json.loads((tmp_path / "index.json").read_text())
    del index["sizes"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert same(data_folder.load(tmp_path), prepared)


MANY = """
import resource, sys
from pathlib import Path
import numpy as np
from shepherd.data import data_folder, dataset
from shepherd.data.tokens import Tokens
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
def one(n):
    offsets = np.array([0, n, n + 3])
    return Tokens(ids=np.arange(n + 3, dtype=np.int32), loss_mask=np.ones(n + 3, bool), offsets=offsets)
clients = {f"client-{n}": one(n) for n in range(500)}
mixes = {name: {"all": 2} for name in clients}
none = Tokens(ids=np.zeros(0, np.int32), loss_mask=np.zeros(0, bool), offsets=np.zeros(1, np.int64))
folder = Path(sys.argv[1])
empty = dict(heldout=none, heldout_examples=[], summary={})
made = dataset.TokenisedData(clients=clients, category_counts=mixes, **empty)
data_folder.save(folder, made)
back = data_folder.load(folder)
assert list(back.clients) == list(clients)
for name, data in clients.items():
    assert np.array_equal(back.clients[name].ids, data.ids)
    assert np.array_equal(back.clients[name].offsets, data.offsets)
assert sum(1 for _ in folder.rglob("*")) < 16
"""


def test_the_data_of_many_clients_take_few_open_files(tmp_path) -> None:
    """A memory map keeps its file open, and a process may have as few as 256."""
    subprocess.run([sys.executable, "-c", MANY, str(tmp_path / "data")], check=True)


def test_the_worlds_checks_come_back_too(tokenizer, tmp_path) -> None:
    table = {"limit": 3, "holdout": 0.4, "max_tokens": 512}
    prepared = pipeline.prepare(settings("world", data=table), tokenizer)
    data_folder.save(tmp_path / "data", prepared)
    back = data_folder.load(tmp_path / "data").heldout_examples
    assert all(plugins.checker(example.check).right(example.response) for example in back)


def test_odd_client_names_and_texts_survive(tmp_path, tokenizer) -> None:
    examples = [{**row, "who": f"{'../é 🐑' if i % 2 else 'a/b'}"} for i, row in enumerate(runs.rows())]
    examples[5]["instruction"] += " \u2028 \x85 é"
    path = runs.written(tmp_path / "rows.jsonl", examples)
    table = {"by": "natural", "field": "who"}
    prepared = pipeline.prepare(settings(path, split=table, data={"holdout": 0.5}), tokenizer)
    data_folder.save(tmp_path / "run" / "data", prepared)
    assert same(data_folder.load(tmp_path / "run" / "data"), prepared)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["data"]


def broken(folder: Path, damage: str) -> None:
    match damage:
        case "no index":
            (folder / "index.json").unlink()
        case "cut index":
            (folder / "index.json").write_text('{"clients": ["client-0"')
        case "empty index":
            (folder / "index.json").write_text("{}")
        case "index of another kind":
            (folder / "index.json").write_text("[]")
        case "no client":
            shutil.rmtree(folder / "clients")
        case "a client too many":
            index = json.loads((folder / "index.json").read_text())
            (folder / "index.json").write_text(json.dumps({**index, "clients": [*index["clients"], "x"]}))
        case "an example too many":
            index = json.loads((folder / "index.json").read_text())
            sizes = [index["sizes"][0] + 1, *index["sizes"][1:]]
            (folder / "index.json").write_text(json.dumps({**index, "sizes": sizes}))
        case "cut ids":
            path = folder / "clients" / "ids.npy"
            path.write_bytes(path.read_bytes()[:-8])
        case "no held-out tokens":
            shutil.rmtree(folder / "heldout")
        case "cut held-out text":
            path = folder / "heldout.jsonl"
            path.write_text(path.read_text()[:-9])
        case "held-out line short":
            path = folder / "heldout.jsonl"
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        case "held-out of another kind":
            (folder / "heldout.jsonl").write_text(json.dumps({"turns": [{"speaker": 1}]}) + "\n")


@pytest.mark.parametrize(
    "damage",
    [
        "no index",
        "cut index",
        "empty index",
        "index of another kind",
        "no client",
        "a client too many",
        "an example too many",
        "cut ids",
        "no held-out tokens",
        "cut held-out text",
        "held-out line short",
        "held-out of another kind",
    ],
)
def test_a_damaged_folder_is_refused_with_the_runs_name(source, tokenizer, tmp_path, damage) -> None:
    folder = tmp_path / "run" / "data"
    data_folder.save(folder, pipeline.prepare(settings(source), tokenizer))
    broken(folder, damage)
    with pytest.raises(FolderError, match=f"the data of the run in {folder.parent} cannot be read"):
        data_folder.load(folder)


def test_a_full_disk_is_said_and_leaves_no_whole_folder(source, tokenizer, tmp_path, monkeypatch) -> None:
    prepared = pipeline.prepare(settings(source), tokenizer)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(FolderError, match="is full"):
        data_folder.save(tmp_path / "data", prepared)
    assert not data_folder.whole(tmp_path / "data")
