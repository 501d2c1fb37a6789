"""Which texts would tell others of a folder of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.errors import HubError
from shepherd.run import folder
from shepherd.run.published_texts import require_no_paths
from tests import runs

GONE = {  # none of these is there any more
    "model": {"base": "/models/llama"},
    "adapter": {"start": "/archive/first"},
    "data": {"source": "/clinic/jürgen's notes.jsonl", "root": "/clinic"},
    "evaluation": {"data": "/clinic/test.jsonl", "harmful": "/clinic/harmful.txt"},
    "judge": {"questions": "/clinic/questions.jsonl"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    settings = runs.settings(Path("/models/llama"), Path("/clinic/notes"), tmp_path / "run", **GONE)
    folder.create(tmp_path / "run", settings).close()
    return tmp_path / "run"


def refused(run: Path, name: str, text: str) -> str:
    """What is said of a file with this text; "" if it may be published."""
    place = run.parent / "written"
    place.mkdir(exist_ok=True)
    (place / name).write_text(text, encoding="utf8")
    try:
        require_no_paths([place / name], run, place)
    except HubError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", [path for table in GONE.values() for path in table.values()])
@pytest.mark.parametrize("form", ["of `{}`.", "file://{}", "see {}/part/1"])
def test_each_path_of_the_run_file_is_found(form: str, path: str, run: Path) -> None:
    said = refused(run, "README.md", form.format(path))
    assert f"README.md would publish {path}, a folder or file of this machine" in said


def test_a_path_that_json_escapes_is_found(run: Path) -> None:
    text = json.dumps({"a": [{GONE["data"]["source"]: 1}]})
    assert "jürgen" not in text
    assert GONE["data"]["source"] in refused(run, "config.json", text)


def test_what_is_on_this_disk_is_found_though_the_run_does_not_name_it(run: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", Path(__file__)):
        for name in ("README.md", "Modelfile", "chat_template.jinja"):
            assert "of this machine" in refused(run, name, f'FROM "{path}"')


def test_the_first_adapter_of_the_run_is_found(run: Path) -> None:
    (run / "start").mkdir()
    (run / "start" / "source.json").write_text(json.dumps({"file": "/gone/a.safetensors", "sha256": "0"}))
    assert "/gone/a.safetensors" in refused(run, "README.md", "from /gone/a.safetensors, whose")


@pytest.mark.parametrize(
    "text",
    [
        "org/models/llama and https://host.example/models/llama",
        "base = 'llama'; prompts: /no_think, /clinical",
        "#!/usr/bin/env python, /dev/null, /etc/hostname, and/or",
        "/models/llama2, /models/llama-big, ../models/llama",
    ],
)
def test_what_is_no_place_of_this_machine_is_published(text: str, run: Path) -> None:
    assert not refused(run, "README.md", text)


def test_words_of_a_vocabulary_are_no_paths(run: Path, tmp_path: Path) -> None:
    words = {"/clinic": 0, str(Path.cwd()): 1}
    assert not refused(run, "vocab.json", json.dumps(words))
    assert refused(run, "added_tokens.json", json.dumps(words))
    assert "/models/llama" in refused(run, "tokenizer.json", json.dumps({"from": "/models/llama"}))
