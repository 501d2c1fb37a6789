"""Paths in a run file: tell paths from Hugging Face ids, and make paths absolute."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

DATA_FILES = (
    ".json", ".jsonl", ".ndjson", ".jsonlines", ".jl", ".csv", ".tsv", ".parquet", ".arrow", ".feather",
    ".xlsx", ".xlsm",
)  # fmt: skip
"""How the names of data files end: what ends so is never a data set of the hub."""
PACKED_FILES = (".gz", ".gzip", ".bz2", ".xz", ".lzma", ".zst", ".zstd")
"""How the names of compressed files end."""
_SNAPSHOT = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/([0-9a-f]{40})", re.ASCII)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a Hugging Face id, `owner/name` or a bare name; see also `is_path`.

    >>> [is_hub_id(text) for text in ("gpt2", "Qwen/Qwen2.5-0.5B", "a/b/c", "./a", "/a", "~/a", "a/b.csv")]
    [True, True, False, False, False, False, False]
    """
    return _HUB_ID.fullmatch(text) is not None and not text.lower().endswith((*DATA_FILES, *PACKED_FILES))


def is_path(text: str, folder: Path) -> bool:
    """Whether a text is a path on this disk, existing or missing, rather than a Hugging Face id.

    A text that does not have the form of an id, or that exists in `folder`, is a path. A model or dataset in
    the hub's local cache is an id. Otherwise a bare name is a path, since the hub is never asked for what may
    be a folder's name, and so is a text that begins with a folder of `folder` or of the current directory:
    next to a folder `models`, `models/SmolLM2` is a missing folder and not a repository.
    """
    if not is_hub_id(text) or os.path.exists(folder / text):
        return True
    first, *rest = text.split("/")
    looks_local = not rest or os.path.isdir(folder / first) or os.path.isdir(first)
    return looks_local and not _is_cached(text)


def _is_cached(name: str) -> bool:
    """Whether a model or a dataset with this id has been downloaded from the hub."""
    folders = (f"{kind}--{name.replace('/', '--')}" for kind in ("models", "datasets"))
    return any(os.path.isdir(os.path.join(_hub_cache(), folder)) for folder in folders)


def _hub_cache() -> str:
    """Folder of huggingface_hub's downloads, by the variables that it reads; importing it is slow."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    return os.path.expanduser(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub")))


def placed(text: str, folder: Path) -> str:
    """Make a path absolute, relative to `folder`; a Hugging Face id is returned as it is."""
    if not is_path(text, folder):
        return text
    return os.path.abspath(folder / os.path.expanduser(text))


def snapshot(folder: str) -> tuple[str, str] | None:
    """Hugging Face id and commit of a folder in the hub's cache; None for any other folder.

    >>> snapshot("/home/me/hub/models--Qwen--Qwen2.5-0.5B/snapshots/" + "0a" * 20)
    ('Qwen/Qwen2.5-0.5B', '0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a')
    >>> snapshot("/home/me/models/Qwen2.5-0.5B") is None
    True
    """
    found = _SNAPSHOT.fullmatch("/".join(Path(folder).parts[-3:]))
    if found is None:
        return None
    owner, name, commit = found.groups()
    return f"{owner}/{name}" if name else owner, commit


def for_others(base: str, revision: str | None, public: str = "") -> tuple[str, str | None]:
    """What others load a base by: its id on the hub and the commit; else the folder, which has no commit.

    Args:
        public: its name on the hub, as a person gave it; the commit is that of the name it was loaded by.

    >>> for_others("org/model", "v2"), for_others("/models/llama", "v2")
    (('org/model', 'v2'), ('/models/llama', None))
    >>> for_others("/models/llama", "v2", "org/model"), for_others("me/copy", "v2", "org/model")
    (('org/model', None), ('org/model', None))
    """
    found = snapshot(base) or (base, revision if is_hub_id(base) else None)
    return found if public in ("", found[0]) else (public, None)


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded as UTF-8; file names on this disk may hold any bytes.

    >>> is_utf8("café"), is_utf8("caf\\udce9")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(text: str) -> str:
    """Reduce an absolute path to its last name, for publication; anything else is returned as it is.

    >>> [short(text) for text in ("/home/me/models/SmolLM2", "Qwen/Qwen2.5-0.5B", "tiny")]
    ['SmolLM2', 'Qwen/Qwen2.5-0.5B', 'tiny']
    """
    return os.path.basename(text) if os.path.isabs(text) else text


def cache() -> Path:
    """Folder of this user's cache, for what a command keeps that nobody asked for a place of."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "shepherd"


_LONGEST, _DIGITS = 200, 16
"""Letters of a file's name, of which most systems take 255, and of the digest where a name is longer."""


def file_name(name: str, *, digested: bool = False) -> str:
    """A name of anything, such as a client, as that of one file.

    A long one, and one that is `digested`, gets a digest, so that it differs from others by more than a
    capital letter.

    >>> file_name("Ward 3/West"), file_name("ulm", digested=True)
    ('Ward 3%2FWest', 'ulm~37bfc8ba5ec56136')
    """
    quoted = quote(name, safe=" ()[],;=@+~!'&")
    if not digested and len(quoted) <= _LONGEST and quoted.strip("."):
        return quoted
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return f"{quoted[: _LONGEST // 2]}~{digest}"


def alike(names: Iterable[str]) -> frozenset[str]:
    """Those of these names that another one differs from in small and capital letters alone.

    >>> sorted(alike(["Ulm", "ulm", "Bonn"]))
    ['Ulm', 'ulm']
    """
    names = tuple(names)
    times = Counter(map(str.lower, names))
    return frozenset(name for name in names if times[name.lower()] > 1)
