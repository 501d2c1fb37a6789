"""Task files of lm-eval: what they ask for, and the rows of their local data.

A task file may come from somebody else. It is read here as data alone, and its rows by this package's own
readers; what it could run or fetch is listed by `wishes`, for a person to decide (law 12).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from shepherd.data import files
from shepherd.errors import BadRow, DataError

CODE, HUB = "--allow-task-code", "--allow-hub"
"""The options that agree to what a task file may wish for."""
READERS = ("csv", "json", "parquet")
"""Values of `dataset_path` that stand for local files."""
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Code(str):
    """A name of code that a task file asks to run: the argument of `!function`."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML as data; `!function` becomes a `Code`, and any other tag is an error."""


_Loader.add_constructor("!function", lambda loader, node: Code(loader.construct_scalar(node)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """A task file with the files that it includes."""

    path: Path
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Something that a task file may do only if a person agrees: the option that says so, and what it is."""

    option: str
    what: str


class Documents(list[dict[str, Any]]):
    """Rows of one split, as lm-eval reads them."""

    @property
    def features(self) -> dict[str, None]:
        """The fields of the rows."""
        return dict.fromkeys(name for row in self for name in row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The task files of some folders: tasks by their name, and the members of groups and tags by theirs."""

    tasks: Mapping[str, TaskFile]
    groups: Mapping[str, Sequence[Any]]

    def find(self, name: str, above: tuple[str, ...] = ()) -> tuple[TaskFile, ...]:
        """The task of this name, or those of a group; () if there is none.

        Raises:
            DataError: a member of a group is no name.
        """
        if name in self.tasks:
            return (self.tasks[name],)
        found: dict[Path, TaskFile] = {}
        for member in self.groups.get(name, ()) if name not in above else ():
            if not isinstance(member, str):
                raise DataError(
                    f"group {name!r} has a member with settings of its own, which is not read; give it a file"
                    " and name it in the group"
                )
            found.update({file.path: file for file in self.find(member, (*above, name))})
        return tuple(found.values())


def index(folders: Sequence[Path]) -> Index:
    """Read the task files (.yaml) below some folders; a file that cannot be read is left out.

    Raises:
        DataError: a folder does not exist, or two tasks have one name.
    """
    tasks: dict[str, TaskFile] = {}
    groups: dict[str, list[Any]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; name one that holds task files (.yaml)")
        for path in sorted(folder.rglob("*.yaml")):
            try:
                file = read(path)
            except DataError:
                continue
            _file_away(file, tasks, groups)
    for name in tasks.keys() & groups.keys():
        del groups[name]
    return Index(tasks=tasks, groups=groups)


def _file_away(file: TaskFile, tasks: dict[str, TaskFile], groups: dict[str, list[Any]]) -> None:
    name, group, tags = (file.config.get(key) for key in ("task", "group", "tag"))
    if isinstance(name, str):
        if name in tasks:
            raise DataError(f"{file.path} and {tasks[name].path} both hold a task {name!r}; rename one")
        tasks[name] = file
        for tag in _list(tags):
            groups.setdefault(str(tag), []).append(name)
    elif isinstance(group, str):
        groups.setdefault(group, []).extend(_list(name))


def read(path: Path, above: tuple[Path, ...] = ()) -> TaskFile:
    """Read a task file; keys of the files that it includes are those that it does not have itself.

    Raises:
        DataError: it cannot be read, is no task file, or includes itself.
    """
    path = path.expanduser().resolve()
    if path in above:
        raise DataError(f"task file {path} includes itself; remove the `include`")
    try:
        config = yaml.load(path.read_bytes(), Loader=_Loader)
    except (OSError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"task file {path} cannot be read ({said[:200]}); correct it") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise DataError(f"{path} is no task file; write keys such as task, dataset_path and doc_to_text")
    merged: dict[str, Any] = {}
    includes = config.pop("include", [])
    for other in [includes] if isinstance(includes, str) else includes:
        inside = read(path.parent / str(other), (*above, path))
        merged.update({key: value for key, value in inside.config.items() if key != "task_list"})
    return TaskFile(path=path, config={**merged, **config})


def wishes(file: TaskFile, metrics: Collection[str]) -> list[Wish]:
    """What a task file would run or fetch.

    Args:
        metrics: names of the metrics that lm-eval has itself; any other is code of the hub.
    """
    return list(dict.fromkeys(_wishes(file, metrics)))


def _wishes(file: TaskFile, metrics: Collection[str]) -> Iterator[Wish]:
    config = file.config
    for key, value in _leaves(config):
        if isinstance(value, Code):
            yield Wish(option=CODE, what=f"run {value} (key {key})")
        elif key.rpartition(".")[2] in ("trust_remote_code", "unsafe_code") and value:
            yield Wish(option=CODE, what=f"run code that is not in the file (key {key})")
    for key in ("class", "use_prompt"):
        if config.get(key) is not None and not isinstance(config[key], Code):
            yield Wish(option=CODE, what=f"import code (key {key})")
    for metric in _list(config.get("metric_list")):
        name = metric.get("metric") if isinstance(metric, Mapping) else metric
        own = isinstance(metric, Mapping) and metric.get("hf_evaluate")
        if not isinstance(name, Code) and (own or name not in metrics):
            yield Wish(option=CODE, what=f"run the metric {name!r} of the hub")
            yield Wish(option=HUB, what=f"fetch the metric {name!r} from the hub")
    if not isinstance(config.get("custom_dataset"), Code) and _data_files(file) is None:
        yield Wish(option=HUB, what=f"fetch the data set {config.get('dataset_path')!r} from the hub")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside lists and tables, with its key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def documents(file: TaskFile) -> dict[str, Documents]:
    """The rows of a task's local files, by split; a field that a row lacks is None.

    Raises:
        DataError: a file is missing or cannot be read, or a row cannot.
        BadRow: a row is no object with named fields.
    """
    return {split: _rows(paths) for split, paths in (_data_files(file) or {}).items()}


def _rows(paths: Sequence[Path]) -> Documents:
    rows: list[dict[str, Any]] = []
    for path in paths:
        for where, row in files.rows_of(path):
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, Mapping):
                raise BadRow(f"{where} is no object with named fields; write one")
            rows.append(dict(row))
    blank = dict.fromkeys(name for row in rows for name in row)
    return Documents({**blank, **row} for row in rows)


def _data_files(file: TaskFile) -> dict[str, list[Path]] | None:
    """Local files of each split; None where the data set is not one of local files."""
    name, options = file.config.get("dataset_path"), file.config.get("dataset_kwargs") or {}
    folder = _here(file, name) if isinstance(name, str) else None
    if name in READERS and isinstance(options, Mapping) and options.get("data_files"):
        given = options["data_files"]
        splits = given if isinstance(given, Mapping) else {"train": given}
        if unread := sorted(set(options) - {"data_files", "trust_remote_code"}):
            raise DataError(f"{file.path} sets dataset_kwargs.{unread[0]}, which is not read; remove it")
        if any("://" in str(each) or "::" in str(each) for _, each in _leaves(splits)):
            return None
        return {
            str(split): [_existing(file, each) for each in _list(value)] for split, value in splits.items()
        }
    if folder is not None and folder.is_dir():
        found = {each.stem: [each] for each in sorted(folder.iterdir()) if each.suffix in _SUFFIXES}
        if not found:
            raise DataError(
                f"{folder} holds no data of {file.path}; put SPLIT.jsonl there, such as test.jsonl"
            )
        return found
    return None


def _existing(file: TaskFile, name: Any) -> Path:
    path = _here(file, str(name))
    if not path.is_file():
        raise DataError(
            f"{file.path} names the data file {name}, which does not exist; put it beside the task"
        )
    return path


def _here(file: TaskFile, name: str) -> Path:
    """A path of a task file: relative to the file, else to the current directory as lm-eval takes it."""
    beside = file.path.parent / Path(name).expanduser()
    return beside if beside.exists() else Path(name).expanduser()


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
