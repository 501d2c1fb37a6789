"""The digest of a base: one sha256 over the files that decide what it computes.

Two sides with the same digest have the same base. Of the files in the folder itself, it covers:

- `config.json`;
- the weights: `model.safetensors`, else the shards that `model.safetensors.index.json` names and the index;
- the tokenizer: `tokenizer.json`, or without one the vocabulary files of a slow tokenizer, and its
  configuration, special tokens, added tokens and chat template.

It does not cover files that are never used: `generation_config.json`, Python code, weights in other formats,
a README. So a clone of a repository and a download of the required files have the same digest. By hand:

    cd FOLDER && sha256sum FILES-IN-ORDER-OF-BYTES | sha256sum
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from shepherd.errors import BaseError
from shepherd.io import lfs
from shepherd.visible import shown_line

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
AS_SAFETENSORS = "which is never unpickled; convert it to safetensors with save_pretrained() of transformers"
CHECKPOINT_PART = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
TOKENIZER_FILE = "tokenizer.json"
SLOW_TOKENIZER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
ADAPTER_CONFIG_FILE = "adapter_config.json"
HAS_ADAPTER = (
    f"contains a PEFT adapter ({ADAPTER_CONFIG_FILE}), which transformers would load with the base; remove"
    " the adapter's files"
)
EXTRA_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def digest(folder: str | Path) -> str:
    """The digest of a base, 64 hex digits over its files in the order of their names; see the module.

    Files are read in a stream, and only once per process while their size and modification time stay the
    same.

    Raises:
        BaseError: the folder holds no configuration or no weights, or a file cannot be read.
    """
    folder = Path(folder).expanduser()
    lines = [f"{_file_hash(folder / name)}  {name}\n" for name in files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files(folder: str | Path) -> list[str]:
    """The names of the files that the digest of a base covers, in order.

    Raises:
        BaseError: the folder holds no configuration or no weights, or contains an adapter.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BaseError(f"there is no folder {folder}; give the folder of a model on this disk")
    if not (folder / CONFIG_FILE).is_file():
        raise BaseError(f"base folder {folder} has no {CONFIG_FILE}; give the folder of a model on this disk")
    require_no_adapter(folder)
    require_tokenizer(folder)
    return sorted({CONFIG_FILE, *weights(folder), *_tokenizer_files(folder)}, key=str.encode)


def _tokenizer_files(folder: Path) -> list[str]:
    words = [TOKENIZER_FILE] if (folder / TOKENIZER_FILE).is_file() else SLOW_TOKENIZER_FILES
    return [name for name in (*words, *EXTRA_TOKENIZER_FILES) if (folder / name).is_file()]


def require_tokenizer(folder: Path) -> None:
    """Raise BaseError if the configuration or a file of the tokenizer is a pointer of Git LFS."""
    for name in (CONFIG_FILE, *_tokenizer_files(folder)):
        _require_content(folder / name)


def _require_content(path: Path) -> None:
    if fault := lfs.fault(path):
        raise BaseError(f"base folder {path.parent} is not complete: {fault}")


def require_no_adapter(folder: Path) -> None:
    """Raise BaseError if a base's folder contains a PEFT adapter, which no digest covers."""
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        raise BaseError(f"base folder {folder} {HAS_ADAPTER}")


def snapshot(name: str, revision: str | None = None) -> str:
    """The folder that a Hugging Face id was downloaded to; nothing is downloaded now.

    Raises:
        BaseError: it is not on this disk.
    """
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, CONFIG_FILE, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        found = None
    if found is None:
        raise BaseError(f"base {name} is not on this disk; download it first, or give its folder")
    return str(Path(found).parent)


def folder_of(name: str, revision: str | None = None) -> str:
    """The folder of a base that was loaded by this name: the folder itself, or that of its download.

    Raises:
        BaseError: it is neither a folder nor on this disk.
    """
    return name if Path(name).expanduser().is_dir() else snapshot(name, revision)


def weights(folder: Path) -> Iterator[str]:
    """The names of the files that transformers loads the weights from, the index of shards first.

    Raises:
        BaseError: the folder holds no safetensors, or parts of a checkpoint that would be loaded instead.
    """
    for name in sorted(path.name for path in folder.glob("shard-*")):
        if CHECKPOINT_PART.fullmatch(name):
            raise BaseError(
                f"base folder {folder} has {name}, a part of a distributed checkpoint, which transformers"
                f" would load instead of {WEIGHTS_FILE}; remove it"
            )
    if (folder / WEIGHTS_FILE).is_file():
        _require_content(folder / WEIGHTS_FILE)
        yield WEIGHTS_FILE
    elif (folder / INDEX_FILE).is_file():
        _require_content(folder / INDEX_FILE)
        yield INDEX_FILE
        for name in shards(folder / INDEX_FILE):
            _require_content(folder / name)
            yield name
    elif any((folder / name).is_file() for name in PICKLE_FILES):
        raise BaseError(f"base folder {folder} has its weights as a pickle, {AS_SAFETENSORS}")
    else:
        raise BaseError(f"base folder {folder} has no {WEIGHTS_FILE}; download its weights again")


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights names.

    Raises:
        BaseError: it cannot be read, or names files that are not safetensors in its folder.
    """
    try:
        found = list(dict(json.loads(index.read_text(encoding="utf8"))["weight_map"]).values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseError(
            f"index {index} of a base's weights cannot be read; download that file again"
        ) from error
    if not found or not all(_is_plain_name(name) for name in found):
        raise BaseError(
            f"index {index} must name at least one file, and only safetensors of its own folder; download"
            " that file again"
        )
    return found


def _is_plain_name(name: object) -> bool:
    """Whether it is a plain file name, without characters that a progress bar would display differently."""
    return (
        isinstance(name, str)
        and Path(name).name == name == shown_line(name)
        and name.endswith(".safetensors")
    )


def _file_hash(path: Path) -> str:
    try:
        about = path.stat()
        return _sha256(path.resolve(), about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise BaseError(
            f"file {path} of a base cannot be read ({error.strerror}); download it again"
        ) from error


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed: int) -> str:
    """The sha256 of one file; `size` and `changed` are only keys of the cache."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
