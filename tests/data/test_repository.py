"""A data set of a hub that is served here: its card leads to no other host, and to no file of this disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shepherd.data.repository import places

COMMIT = "a" * 40
READ = """
import sys
from shepherd.data import files
from shepherd.errors import DataError
try:
    print([row for part in files.parts("owner/name", None, "train") for row in part.rows])
except DataError as error:
    print(error)
"""


class Hub:
    """One data set, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {"data.jsonl": '{"instruction": "a", "response": "b"}\n'}
        self.asked: list[str] = []
        self.url = ""

    def answer(self, path: str) -> tuple[int, str]:
        api = "/api/datasets/owner/name"
        if path.startswith(f"{api}/tree/") or path.startswith(f"{api}/paths-info/"):
            found = [
                {"type": "file", "path": name, "size": len(t), "oid": "1"} for name, t in self.files.items()
            ]
            return 200, json.dumps(found)
        if path.startswith(api):
            names = [{"rfilename": name} for name in self.files]
            return 200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": names, "tags": []})
        name = path.removeprefix(f"/datasets/owner/name/resolve/{COMMIT}/")
        return (200, self.files[name]) if name in self.files else (404, "")


@pytest.fixture
def hub() -> Iterator[Hub]:
    here = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if length := int(self.headers.get("content-length", 0)):
                self.rfile.read(length)
            path = self.path.partition("?")[0].replace("%2F", "/")
            here.asked.append(path)
            status, text = here.answer(path)
            self.send_response(status)
            for key, value in (("ETag", f'"{abs(hash(path))}"'), ("X-Repo-Commit", COMMIT)):
                self.send_header(key, value)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_HEAD = do_POST = do_GET

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    here.url = f"http://127.0.0.1:{server.server_port}"
    yield here
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def read(hub: Hub, tmp_path: Path) -> Callable[[], str]:
    def run() -> str:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        on = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
        environment = {**os.environ, **own, **on, "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def card(data_files: object) -> str:
    return f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(data_files)}\n---\n# A set\n"


def test_its_own_files_are_read(hub: Hub, read: Callable[[], str]) -> None:
    hub.files["README.md"] = card([{"split": "train", "path": "data.jsonl"}])
    assert "[('owner/name, record 1', {'instruction': 'a', 'response': 'b'})]" in read()


@pytest.mark.parametrize(
    ("form", "elsewhere"), [("README.md", True), ("README.md", False), (".huggingface.yaml", False)]
)
def test_no_other_host_is_called_and_no_file_of_this_disk_read(
    hub: Hub, read: Callable[[], str], tmp_path: Path, form: str, elsewhere: bool
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"instruction": "a secret of mine", "response": "b"}\n')
    place = f"{hub.url}/elsewhere/x.jsonl" if elsewhere else str(mine)
    text = card([{"split": "train", "path": place}])
    hub.files[form] = text if form == "README.md" else text.split("---\n")[1]
    said = read()
    assert f"names {place!r} as its data ({form})" in said
    assert "nothing was read from there" in said
    assert "a secret of mine" not in said
    assert not [path for path in hub.asked if "elsewhere" in path]


def test_every_form_of_a_card_is_looked_through() -> None:
    for files in ("x", ["x"], {"split": "x"}, [{"split": "train", "path": "x"}], {"train": ["y", "x"]}):
        assert "x" in list(
            places({"configs": [{"config_name": "a"}, {"config_name": "b", "data_files": files}]})
        )
    assert list(places({"configs": [{"data_dir": "x"}]})) == ["x"]
    for odd in (None, [], {}, {"configs": None}, {"configs": "x"}, {"configs": [1]}):
        assert list(places(odd)) == []
