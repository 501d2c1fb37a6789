"""Data of a stranger call no host and run no code (law 12)."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from shepherd.data import files, pipeline
from shepherd.errors import DataError, ShepherdError
from shepherd.overrides import parse


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A host that somebody's data name, and what it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *words: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/x.png", paths
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("nested", [False, True])
def test_an_image_in_parquet_is_not_fetched(
    asked: tuple[str, list[str]], tmp_path: Path, nested: bool
) -> None:
    address, paths = asked
    image: Any = datasets.Image()
    seen: Any = {"path": address, "bytes": None}
    if nested:
        image, seen = datasets.List({"image": image}), [{"image": seen}]
    text = datasets.Value("string")
    features = datasets.Features({"instruction": text, "response": text, "seen": image})
    rows = {"instruction": ["Say it", "And it"], "response": ["it", "it"], "seen": [seen, seen]}
    table = datasets.Dataset.from_dict(rows, features=features)
    pyarrow.parquet.write_table(table.data.table, tmp_path / "rows.parquet")  # the library would fetch, too
    (tmp_path / "saved").mkdir()
    place, schema = str(tmp_path / "saved" / "data.arrow"), table.data.table.schema
    with pyarrow.OSFile(place, "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        writer.write_table(table.data.table)
    state: dict[str, Any] = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "f", "_split": None}
    state |= {f"_format_{name}": None for name in ("type", "columns")} | {"_format_kwargs": {}}
    state |= {"_output_all_columns": False}
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_info.json").write_text(json.dumps({"features": features.to_dict()}))
    for source in ("rows.parquet", "saved"):
        division = pipeline.divide(
            parse(
                {
                    "model": {"base": "tiny"},
                    "data": {"source": str(tmp_path / source), "holdout": 0.0},
                    "split": {"clients": 1},
                }
            )
        )
        assert [example.instruction for example in division.reading.examples] == ["Say it", "And it"]
    assert paths == []


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("PWNED"),))


@pytest.mark.parametrize("name", ["pandas", "json", "imagefolder"])
def test_a_reader_of_the_library_is_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A run folder, whose names stay as they are, may say "pandas": that unpickles files of this folder."""
    monkeypatch.chdir(tmp_path)
    Path("train.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=f"'{name}' is a file format of the library"):
        list(files.parts(name, None, "train")[0].rows)
    assert not Path("PWNED").exists()


def test_a_script_beside_the_data_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "owner" / "set").mkdir(parents=True)
    (tmp_path / "owner" / "set" / "set.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')")
    with pytest.raises(ShepherdError):
        pipeline.divide(
            parse({"model": {"base": "tiny"}, "data": {"source": str(tmp_path / "owner" / "set")}})
        )
    assert not (tmp_path / "PWNED").exists()
