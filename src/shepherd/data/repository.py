"""Check that a data set of the hub names only files of its own repository as its data (law 12).

The library `datasets` would read any address and any path that a repository's card names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from shepherd.errors import DataError

CARD, DESCRIPTION = "README.md", ".huggingface.yaml"
"""Files in which a repository describes its data: the head of its card, and a file of the same form."""
DATA_KEYS = frozenset(
    ("configs", "dataset_info", "task_categories", "task_ids", "size_categories", "annotations_creators",
     "source_datasets")
)  # fmt: skip
"""Keys that show that a card is that of a data set."""


def own_commit(name: str) -> str | None:
    """Commit of a data set to read, whose card names no files but its own.

    None if the hub is offline or not reached; then only what is on this disk is read.

    Raises:
        DataError: the card names a file elsewhere, or cannot be read.
    """
    import datasets
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if datasets.config.HF_HUB_OFFLINE:
        return None
    try:
        commit = str(HfApi().dataset_info(name).sha)
    except Exception:  # each version of the library has its own; loading says best what is wrong
        return None
    for file in (CARD, DESCRIPTION):
        try:
            path = Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))
        except LocalEntryNotFoundError:  # the network has gone
            raise
        except EntryNotFoundError:
            continue
        _require_own(path, name)
    return commit


def require_own_card(folder: Path) -> None:
    """Raise DataError where the card of a data set in a folder names a file elsewhere, or cannot be read."""
    for file in (CARD, DESCRIPTION):
        if (folder / file).is_file():
            _require_own(folder / file, str(folder))


def _require_own(path: Path, name: str) -> None:
    for place in places(_described(path, name)):
        if not _is_own(place):
            raise DataError(
                f"data set {name} names {place!r} as its data ({path.name}), which is no file of its own;"
                " nothing was read from there: download its files, and name them in data.source"
            )


def is_card(path: Path) -> bool:
    """Whether a README has the head of a data set's card."""
    try:
        with path.open("rb") as file:
            if file.read(8).lstrip(b"\xef\xbb\xbf")[:3] != b"---":
                return False
        found = _described(path, path.parent.name)
    except (OSError, DataError):
        return False
    return isinstance(found, dict) and not DATA_KEYS.isdisjoint(found)


def places(described: Any) -> Iterator[str]:
    """Patterns of files and folders that a data set's description names, and names of its parts.

    >>> list(places({"configs": [{"data_dir": "a", "data_files": [{"split": "train", "path": ["b/*"]}]}]}))
    ['a', 'train', 'b/*']
    """
    configs = described.get("configs") if isinstance(described, dict) else None
    for config in configs if isinstance(configs, list) else [configs]:
        if isinstance(config, dict):
            yield from _texts([config.get("data_dir"), config.get("data_files")])


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for inner in value.values():
                yield from _texts(inner)
        case list():
            for inner in value:
                yield from _texts(inner)


def _is_own(place: str) -> bool:
    r"""Whether a pattern can only match files of the repository.

    >>> [_is_own(place) for place in ("data/train-*.parquet", "https://a.example/x.csv", "/home/me/x.csv")]
    [True, False, False]
    >>> [_is_own(place) for place in ("../x.csv", "zip://*::a.zip", "hf://datasets/a/b/c.csv", "C:\\x.csv")]
    [False, False, False, False]
    """
    parts = place.replace("\\", "/").split("/")
    return ":" not in place and not place.startswith(("/", "\\", "~")) and ".." not in parts


def _described(path: Path, name: str) -> Any:
    """The content of a card or of a description file, read as `datasets` does."""
    from huggingface_hub import DatasetCard

    try:
        if path.suffix == ".md":
            return DatasetCard.load(path).data.to_dict()
        return yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path.name} of data set {name} cannot be read ({reason}); name its files in data.source"
        ) from error
