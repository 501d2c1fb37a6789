"""Files, folders and hub ids to rows with their places. Only this file imports `datasets` and `pyarrow`.

JSON, JSONL and CSV are read by the standard library, for two reasons that were measured: `datasets`
turns the text 007 into 7, NA into nothing and 2024-01-01 into a timestamp, and its errors name no
line. Parquet, saved data sets and hub ids come through `datasets`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shepherd.data.repository import own_commit
from shepherd.data.sniff import require_plain
from shepherd.errors import BadRow, DataError
from shepherd.paths import is_hub_id, is_utf8

Placed = tuple[str, Any]
"""Where a row is, and the row, or the BadRow that says why it cannot be read."""

NOT_FOR_TRAINING = ("global_", "test", "eval", "valid")
"""How the names of a folder's files begin that are not for training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of one file, read lazily; `client` is its stem in a folder."""

    client: str
    rows: Iterable[Placed]


def parts(source: str, config: str | None, part: str, *, folder_only: bool = False) -> list[Part]:
    """The files of a source, in natural order of their names.

    Raises:
        DataError: nothing readable is there, or `folder_only` and the source is no folder of files.
    """
    path = Path(source).expanduser()
    _require_utf8(path)
    if path.is_dir() and not _is_saved(path):
        return [Part(client=file.stem, rows=rows_of(file)) for file in _training_files(path)]
    if folder_only:
        raise DataError(
            f'split.by is "ready-made" but {source} is no folder with one file a client; give one'
        )
    if path.is_dir():
        return [Part(client="", rows=_saved(path, part))]
    if path.exists():
        return [Part(client="", rows=rows_of(path))]
    if not is_hub_id(source):
        raise DataError(
            f"there is no data file or folder {source}; check data.source (an id of the hub is owner/name)"
        )
    return [Part(client="", rows=_hub(source, config, part))]


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A sort key under which client_2 comes before client_10.

    >>> sorted(["c10", "c2"], key=natural)
    ['c2', 'c10']
    """
    pieces = re.findall(r"\d+|\D+", name)
    return tuple((int(piece), "") if piece.isdecimal() else (sys.maxsize, piece) for piece in pieces)


def left_out(source: str) -> list[str]:
    """Names of a folder's data files that are not for training, by how they begin; else empty.

    Raises:
        DataError: the folder cannot be read.
    """
    path = Path(source).expanduser()
    if not path.is_dir() or _is_saved(path):
        return []
    return sorted(file.name for file in _data_files(path) if _not_for_training(file))


def _data_files(folder: Path) -> list[Path]:
    try:
        found = [f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in READERS]
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read ({error.strerror}); check its rights") from error
    for file in found:
        _require_utf8(file)
    return found


def _require_utf8(path: Path) -> None:
    """Raise DataError where a name is not UTF-8: no client, no run file and no page could be called by it."""
    if not is_utf8(str(path)):
        raise DataError(f"the name of data file {os.fsencode(path)!r} is not UTF-8; rename it")


def _not_for_training(file: Path) -> bool:
    return file.name.lower().startswith(NOT_FOR_TRAINING)


def _training_files(folder: Path) -> list[Path]:
    known = _data_files(folder)
    kept = [f for f in known if not _not_for_training(f)]
    if not kept:
        left = f" but {', '.join(sorted(f.name for f in known))}, not for training" if known else ""
        raise DataError(f"folder {folder} holds no data file{left}; put {_extensions()} files there")
    stems = Counter(f.stem for f in kept)
    for file in kept:
        if stems[file.stem] > 1:
            raise DataError(f"folder {folder} has two files named {file.stem}; rename one, each is a client")
    return sorted(kept, key=lambda file: natural(file.stem))


def rows_of(path: Path) -> Iterator[Placed]:
    """The rows of one file with their places.

    Raises:
        DataError: the extension is unknown, or the file is unreadable, empty or broken as a whole.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"data file {path} has an unknown extension; use one of {_extensions()}")
    empty = True
    try:
        for placed in reader(path):
            empty = False
            yield placed
    except OSError as error:
        raise DataError(f"data file {path} cannot be read ({error.strerror}); check it") from error
    if empty:
        raise DataError(f"data file {path} holds no rows; fill it or remove it")


def _text(path: Path) -> str:
    require_plain(path)
    return path.read_bytes().decode("utf-8-sig")


def _jsonl(path: Path) -> Iterator[Placed]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                placed = _parsed(line, f"{path}, line {number}")
                if number == 1:
                    _require_record(placed[1], path)
                yield placed


def _parsed(line: bytes, where: str) -> Placed:
    try:
        return where, json.loads(line.decode("utf8"))
    except UnicodeDecodeError:
        return where, BadRow(f"{where} is not UTF-8; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return where, BadRow(f"{where} is not JSON ({error}); fix that line")


def _json(path: Path) -> Iterator[Placed]:
    text = _text(path)
    if text.lstrip()[:1] == "[":
        return _array(text, path)
    with suppress(ValueError, RecursionError):
        _require_record(json.loads(text), path)
    return _jsonl(path)  # many a .json file holds one object a line


def _require_record(whole: Any, path: Path) -> None:
    """Raise DataError where a file's one object is a table, by columns or by rows, as pandas writes it."""
    values = list(whole.values()) if isinstance(whole, Mapping) else []
    if not values or not all(isinstance(value, Mapping | list) for value in values):
        return
    items = [item for value in values if isinstance(value, list) for item in value]
    if items and all(isinstance(item, Mapping) and {"role", "from"} & item.keys() for item in items):
        return  # a chat
    raise DataError(
        f"{path} is JSON, but neither a list of objects nor one object a line; write it again so, with pandas"
        ' by to_json(path, orient="records", lines=True)'
    )


def _array(text: str, path: Path) -> Iterator[Placed]:
    """The records of a JSON array one by one, so that each has its line."""
    decoder = json.JSONDecoder()
    at, line, counted, number = _next(text, text.index("[") + 1), 1, 0, 0
    while text[at : at + 1] != "]":
        line, counted, number = line + text.count("\n", counted, at), at, number + 1
        where = f"{path}, record {number} (line {line})"
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); fix it") from error
        yield where, record
        at = _next(text, at)
        if text[at : at + 1] not in (",", "]"):
            raise DataError(f"{where} has no comma or ] after it; fix it")
        at = _next(text, at + 1) if text[at] == "," else at
    if _next(text, at + 1) < len(text):
        raise DataError(f"{path} goes on after the ] of its list; put all its records into one list")


def _next(text: str, at: int) -> int:
    """Where the white space from `at` on ends."""
    found = re.compile(r"\S").search(text, at)
    return found.start() if found else len(text)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Placed]:
    lines = iter(_text(path).splitlines(keepends=True))
    with _wide_cells():
        reader = csv.reader(_only_newlines(lines), delimiter=delimiter, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header) or "" in header:
            raise DataError(f"{path}, line 1 has an empty or a repeated column name; name each column once")
        yield from _csv_rows(reader, header, path)


def _csv_rows(reader: Any, header: list[str], path: Path) -> Iterator[Placed]:
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"the row that starts at {where} is not CSV ({error}); fix its quotes") from error
        if cells is None:
            return
        if len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        elif cells:
            fault = f"{where} has {len(cells)} cells, the header {len(header)}; fix its commas or quotes"
            yield where, BadRow(fault)


def _only_newlines(lines: Iterator[str]) -> Iterator[str]:
    """Join what `str.splitlines` cut at U+2028 and its like, which are no ends of line in a file."""
    held = ""
    for line in lines:
        held += line
        if line.endswith(("\n", "\r")):
            yield held
            held = ""
    if held:
        yield held


@contextmanager
def _wide_cells() -> Iterator[None]:
    before = csv.field_size_limit(2**31 - 1)  # the default refuses a cell over 131,072 characters
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[Placed]:
    """The rows of one file; `Dataset.from_parquet` would take its name as a pattern, and read others too."""
    from pyarrow import parquet

    with path.open("rb") as file, _quiet() as datasets:
        try:
            table = parquet.ParquetFile(file).read()
            table.validate(full=True)  # or a text that is not UTF-8 would be found at its row
            table = datasets.Dataset(datasets.table.InMemoryTable(table))
        except Exception as error:
            raise DataError(
                f"data file {path} is not Parquet ({_first_line(error)}); write it anew"
            ) from error
    return _records(table, str(path))


def _is_saved(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _saved(folder: Path, part: str) -> Iterator[Placed]:
    if "::" in str(folder):
        raise DataError(
            f"saved data set {folder} has :: in its path, where the library datasets would read another;"
            " rename it"
        )
    _require_own_files(folder)
    with _quiet() as datasets:
        try:
            table = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise DataError(f"saved data set {folder} cannot be read ({_first_line(error)})") from error
    return _records(_chosen(table, str(folder), part), str(folder))


def _require_own_files(folder: Path) -> None:
    """Raise DataError where a saved data set names files outside its folder, which would be read as rows."""
    for described in (folder / "dataset_dict.json", folder / "state.json", *folder.glob("*/state.json")):
        try:
            found = json.loads(described.read_text(encoding="utf8"))
            names = [*found.get("splits", ()), *(each["filename"] for each in found.get("_data_files", ()))]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # loading says best what is wrong
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or name == "..":
                raise DataError(
                    f"saved data set {folder} names {name!r} as its data ({described.name}), which is no file"
                    " of its own; nothing was read from there: save it anew with save_to_disk()"
                )


def _chosen(table: Any, source: str, part: str) -> Any:
    if not isinstance(table, Mapping):
        return table
    if part not in table:
        raise DataError(f"{source} has no part {part}; set data.part to one of {', '.join(table)}")
    return table[part]


def _hub(source: str, config: str | None, part: str) -> Iterator[Placed]:
    with _quiet() as datasets:
        if hasattr(datasets.packaged_modules, source):  # "pandas" would unpickle what lies in this folder
            raise DataError(
                f"data.source {source!r} is a reader of the library datasets and no data set; give owner/name"
            )
        try:
            table = datasets.load_dataset(source, config, split=part, revision=own_commit(source))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"there is no file or folder {source} (looked for beside the run file and in {Path.cwd()}), "
                f"and no data set of that name comes from the hub ("
                f"{_first_line(error)}); check the path, the id, data.config, data.part and the network"
            ) from error
    return _records(table, source)


def _records(table: Any, where: str) -> Iterator[Placed]:
    features = _stored(dict(table.features))
    if features != table.features:
        with _quiet() as datasets:
            table = table.cast(datasets.Features(features))
    return ((f"{where}, record {number}", row) for number, row in enumerate(table, 1))


def _stored(feature: Any) -> Any:
    """A column's type, with images and sound as they are stored: to decode one may fetch its address."""
    if isinstance(feature, dict):
        return {name: _stored(inner) for name, inner in feature.items()}
    if isinstance(feature, list | tuple):
        return [_stored(inner) for inner in feature]
    if hasattr(feature, "feature"):
        return replace(feature, feature=_stored(feature.feature))
    media = getattr(feature, "decode", False) and type(feature).__name__ != "Json"
    return replace(feature, decode=False) if media else feature


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[Any]:
    """`datasets`, imported late and without progress bars, which are put back as they were."""
    import datasets

    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        if shown:
            datasets.enable_progress_bars()


def columns(**values: list[Any]) -> Any:
    """A `datasets.Dataset` in memory, for the partitioners that take one."""
    with _quiet() as datasets:
        return datasets.Dataset.from_dict(values)


def _tsv(path: Path) -> Iterator[Placed]:
    return _csv(path, "\t")


READERS: Mapping[str, Callable[[Path], Iterator[Placed]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def _extensions() -> str:
    return ", ".join(READERS)
