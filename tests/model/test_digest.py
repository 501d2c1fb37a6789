"""The digest against sha256sum by hand; what changes it and what does not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from shepherd import world
from shepherd.consent import NOTHING
from shepherd.errors import BaseError
from shepherd.model import digest as module
from shepherd.model.base import load_network, load_tokenizer
from shepherd.model.digest import digest, files, folder_of, snapshot
from shepherd.settings import ModelTable

WHOLE = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"words"}


def folder(path: Path, contents: Mapping[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    return path


def by_hand(contents: Mapping[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in sorted(contents)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_it_is_what_sha256sum_gives() -> None:
    base = world.base_path()
    command = f"cd '{base}' && sha256sum {' '.join(files(base))} | sha256sum"
    shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert shown.split()[0] == digest(base)
    assert files(base) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


UNUSED = {
    "README.md": b"read me",
    "generation_config.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "modeling_own.py": b"code",
    "vocab.json": b"{}",
    "original/consolidated.00.pth": b"other weights",
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_is_not_used_does_not_count(tmp_path: Path, name: str) -> None:
    more = folder(tmp_path / "more", {**WHOLE, name: UNUSED[name]})
    assert digest(more) == by_hand(WHOLE)


@pytest.mark.parametrize("name", [*WHOLE, *module.EXTRA_TOKENIZER_FILES])
def test_what_is_used_counts(tmp_path: Path, name: str) -> None:
    contents = {**WHOLE, name: WHOLE.get(name, b"") + b"!"}
    assert digest(folder(tmp_path / "base", contents)) == by_hand(contents) != by_hand(WHOLE)


def test_a_file_under_another_name_is_another_base(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {**WHOLE, "added_tokens.json": b"x"})
    two = folder(tmp_path / "two", {**WHOLE, "chat_template.json": b"x"})
    assert digest(one) != digest(two)


def test_shards_come_with_their_index_and_only_those_it_names(tmp_path: Path) -> None:
    index = json.dumps(
        {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}}
    )
    contents = {
        "config.json": b"{}",
        "model.safetensors.index.json": index.encode(),
        "model-1.safetensors": b"1",
        "model-2.safetensors": b"2",
    }
    base = folder(tmp_path / "base", {**contents, "model-3.safetensors": b"3"})
    assert digest(base) == by_hand(contents)
    (base / "model-2.safetensors").unlink()
    with pytest.raises(BaseError, match=r"model-2\.safetensors of a base cannot be read \(No such file"):
        digest(base)


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ({}, r"has no config\.json; give the folder of a model"),
        ({"config.json": b"{}"}, r"has no model\.safetensors; download its weights again"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b"{"},
            "index .* cannot be read; download that",
        ),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b"[]"},
            "index .* cannot be read; download that",
        ),
        (
            {
                "config.json": b"{}",
                "model.safetensors.index.json": b'{"weight_map": {"a": "../../etc/passwd"}}',
            },
            "only safetensors of its own folder",
        ),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {}}'},
            "must name at least one file",
        ),
        (
            {
                "config.json": b"{}",
                "model.safetensors.index.json": b'{"weight_map": {"a": "pytorch_model.bin"}}',
            },
            "only safetensors of its own folder",
        ),
        (
            {
                "config.json": b"{}",
                "model.safetensors.index.json": b'{"weight_map": {"a": "\\u001b[2J.safetensors"}}',
            },
            "only safetensors of its own folder",
        ),
        ({"config.json": b"{}", "pytorch_model.bin": b"w"}, "has its weights as a pickle, which is never"),
        (
            {**WHOLE, "shard-00001-model-00001-of-00002.safetensors": b"w"},
            "has shard-00001-model-00001-of-00002.safetensors, a part",
        ),
    ],
)
def test_half_a_base_is_named(tmp_path: Path, contents: Mapping[str, bytes], sentence: str) -> None:
    with pytest.raises(BaseError, match=sentence):
        digest(folder(tmp_path / "base", contents))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0a" * 32 + b"\nsize 269060552\n"


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("config.json", {}),
        ("model.safetensors", {}),
        ("tokenizer.json", {}),
        ("tokenizer.model", {"tokenizer.json": None}),
        ("tokenizer_config.json", {}),
        ("model.safetensors.index.json", {"model.safetensors": None}),
        (
            "model-1.safetensors",
            {
                "model.safetensors": None,
                "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}',
            },
        ),
    ],
)
def test_a_pointer_of_git_lfs_is_named_before_anything_is_loaded(
    tmp_path: Path, name: str, others: Mapping[str, bytes | None]
) -> None:
    contents = {key: data for key, data in {**WHOLE, **others, name: POINTER}.items() if data is not None}
    base = folder(tmp_path / "base", contents)
    words = (
        rf"not complete: .*/{name} is a pointer of Git LFS .* 269,060,552 bytes; fetch it with `git lfs pull`"
    )
    with pytest.raises(BaseError, match=words):
        digest(base)
    with pytest.raises(BaseError, match=words):
        load_network(ModelTable(base=str(base)), torch.device("cpu"), torch.float32, NOTHING)
    if not name.endswith(("safetensors", "index.json")):
        with pytest.raises(BaseError, match=words):
            load_tokenizer(ModelTable(base=str(base)))


def test_a_pointer_that_nobody_reads_is_nothing(tmp_path: Path) -> None:
    more = folder(tmp_path / "more", {**WHOLE, "pytorch_model.bin": POINTER, "vocab.json": POINTER})
    assert digest(more) == by_hand(WHOLE)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: Any) -> None:
    base = folder(tmp_path / "base", WHOLE)
    first = digest(base)
    max_length = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib,
        "file_digest",
        lambda file, kind: (max_length.append(Path(file.name).name), real(file, kind))[1],
    )
    assert digest(base) == digest(str(base)) == first
    assert max_length == []
    (base / "tokenizer.json").write_bytes(b"other")
    os.utime(base / "tokenizer.json", ns=(1, 1))
    assert digest(base) != first
    assert max_length == ["tokenizer.json"]


def test_a_hub_id_is_looked_for_on_this_disk_only(tmp_path: Path, monkeypatch: Any) -> None:
    from transformers.utils import hub

    home = tmp_path / "hub" / "models--them--their-base"
    shot = home / "snapshots" / "c0ffee"
    shutil.copytree(world.base_path(), shot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = snapshot("them/their-base")
    assert Path(found) == shot
    assert digest(found) == digest(world.base_path())
    assert folder_of("them/their-base") == folder_of("them/their-base", "main") == found
    assert folder_of(str(shot)) == str(shot)
    with pytest.raises(BaseError, match="base them/none is not on this disk; download it first"):
        snapshot("them/none")
