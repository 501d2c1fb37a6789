"""The digest of a base: one sha256 over the files that decide what it computes.

Two sides with the same digest have the same base. It covers, of the files that lie in the folder itself:

- `config.json`;
- the weights: `model.safetensors`, else the shards that `model.safetensors.index.json` names and the index;
- the tokenizer: `tokenizer.json`, or where there is none the vocabulary files of a slow one, and beside
  them its configuration, special tokens, added tokens and chat template.

It does not cover what is never used: `generation_config.json`, Python code, weights in other formats, a
README. So a clone of a repository and a download of its needed files have one digest. By hand:

    cd FOLDER && sha256sum FILES-IN-ORDER-OF-BYTES | sha256sum
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from shepherd import lfs
from shepherd.errors import BaseError
from shepherd.visible import shown_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
AS_SAFETENSORS = "which is not unpickled here; write it as safetensors with save_pretrained() of transformers"
_PART = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
TOKENIZER = "tokenizer.json"
SLOW = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt")
ADAPTER = "adapter_config.json"
AN_ADAPTER = (
    f"carries a PEFT adapter ({ADAPTER}), which transformers would load with it unseen; give the base alone,"
    " without the adapter's files"
)
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def digest(folder: str | Path) -> str:
    """64 hex digits over a base's files, in the order of their names; see the module.

    Reading is streamed. A file is read once a process, as long as its size and time stay the same.

    Raises:
        BaseError: the folder holds no configuration or no weights, or a file cannot be read.
    """
    folder = Path(folder).expanduser()
    lines = [f"{_hashed(folder / name)}  {name}\n" for name in files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files(folder: str | Path) -> list[str]:
    """The names of the files that the digest of a base covers, in order.

    Raises:
        BaseError: the folder holds no configuration or no weights, or an adapter as well.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BaseError(f"there is no folder {folder}; give the folder of a model on this disk")
    if not (folder / CONFIG).is_file():
        raise BaseError(f"base folder {folder} has no {CONFIG}; give the folder of a model on this disk")
    require_no_adapter(folder)
    require_tokenizer(folder)
    return sorted({CONFIG, *weights(folder), *_tokenizer(folder)}, key=str.encode)


def _tokenizer(folder: Path) -> list[str]:
    words = [TOKENIZER] if (folder / TOKENIZER).is_file() else SLOW
    return [name for name in (*words, *BESIDE) if (folder / name).is_file()]


def require_tokenizer(folder: Path) -> None:
    """Raise BaseError where the configuration or a file of the tokenizer is a pointer of Git LFS."""
    for name in (CONFIG, *_tokenizer(folder)):
        _require_file(folder / name)


def _require_file(path: Path) -> None:
    if fault := lfs.fault(path):
        raise BaseError(f"base folder {path.parent} is not whole: {fault}")


def require_no_adapter(folder: Path) -> None:
    """Raise BaseError where a base's folder carries a PEFT adapter, which no digest covers."""
    if (folder / ADAPTER).is_file():
        raise BaseError(f"base folder {folder} {AN_ADAPTER}")


def snapshot(name: str, revision: str | None = None) -> str:
    """The folder that a Hugging Face id was downloaded to; nothing is fetched.

    Raises:
        BaseError: it is not on this disk.
    """
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, CONFIG, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        found = None
    if found is None:
        raise BaseError(
            f"base {name} is not on this disk; download it first, or give the folder where it lies"
        )
    return str(Path(found).parent)


def folder_of(name: str, revision: str | None = None) -> str:
    """The folder of a base that was loaded by this name: itself, or where its download lies.

    Raises:
        BaseError: it is neither a folder nor on this disk.
    """
    return name if Path(name).expanduser().is_dir() else snapshot(name, revision)


def weights(folder: Path) -> Iterator[str]:
    """The names of the files that transformers takes the weights from, the index of shards first.

    Raises:
        BaseError: the folder holds no safetensors, or parts of a checkpoint that would be taken instead, or
            a pointer of Git LFS in the place of one.
    """
    for name in sorted(path.name for path in folder.glob("shard-*")):
        if _PART.fullmatch(name):
            raise BaseError(
                f"base folder {folder} has {name}, a part of a distributed checkpoint, which transformers"
                f" would load in place of {WEIGHTS}; give a folder without it"
            )
    if (folder / WEIGHTS).is_file():
        _require_file(folder / WEIGHTS)
        yield WEIGHTS
    elif (folder / INDEX).is_file():
        _require_file(folder / INDEX)
        yield INDEX
        for name in shards(folder / INDEX):
            _require_file(folder / name)
            yield name
    elif any((folder / name).is_file() for name in PICKLES):
        raise BaseError(f"base folder {folder} has its weights as a pickle, {AS_SAFETENSORS}")
    else:
        raise BaseError(f"base folder {folder} has no {WEIGHTS}; get its weights again")


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights names.

    Raises:
        BaseError: it cannot be read, or names other files than safetensors beside it.
    """
    try:
        found = list(dict(json.loads(index.read_text(encoding="utf8"))["weight_map"]).values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseError(f"index {index} of a base's weights cannot be read; get that file again") from error
    if not found or not all(_is_plain(name) for name in found):
        raise BaseError(f"index {index} names no safetensors of its own folder; get that file again")
    return found


def _is_plain(name: object) -> bool:
    """Whether it is a name within the folder, which no bar of a download shows otherwise than it is."""
    return (
        isinstance(name, str)
        and Path(name).name == name == shown_line(name)
        and name.endswith(".safetensors")
    )


def _hashed(path: Path) -> str:
    try:
        about = path.stat()
        return _read(path.resolve(), about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise BaseError(f"file {path} of a base cannot be read ({error.strerror}); get it again") from error


@lru_cache(maxsize=1024)
def _read(path: Path, size: int, changed: int) -> str:
    """The sha256 of one file; `size` and `changed` are there for the cache."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
