"""Rows of files, folders and hub ids, each with its place. Only this file imports `datasets`, `pyarrow`.

JSON, JSONL and CSV are read by the standard library, for two reasons that were measured: `datasets`
turns the text 007 into 7, NA into nothing and 2024-01-01 into a timestamp, and its errors name no
line. Parquet, saved data sets and hub ids come through `datasets`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from shepherd.data import listing, packed
from shepherd.data.excel import excel_rows
from shepherd.data.form import USUAL, Form
from shepherd.data.json_rows import holds_json, json_rows, untangled
from shepherd.data.labels import namer
from shepherd.data.listing import Listing
from shepherd.data.repository import is_card, own_commit, require_own_card
from shepherd.data.tabular import Placed, csv_rows
from shepherd.errors import DataError
from shepherd.io import lfs
from shepherd.io.paths import is_hub_id, is_utf8
from shepherd.settings import MEMORY, PREFERENCES, WORLD

__all__ = [
    "READERS",
    "Part",
    "Placed",
    "columns",
    "data_files",
    "left_out",
    "natural",
    "parts",
    "records",
    "rows_of",
]

CLONE_FILES = (".huggingface.yaml", "dataset_infos.json")
"""Files that mark a folder as a clone of a data set of the hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of one client, or of all clients, read lazily; in a folder, `client` is the file's stem."""

    client: str
    rows: Iterable[Placed]


def parts(
    source: str, config: str | None, part: str, *, folder_only: bool = False, form: Form = USUAL
) -> list[Part]:
    """Parts of a source, in natural order of their names.

    In a folder each part is a file, the shards of one client, or a saved data set. A clone of a data set of
    the hub is one part, unless `folder_only` says that its files are clients.

    Raises:
        DataError: nothing readable is there, or `folder_only` is set and the source is no folder of files.
    """
    path = Path(source).expanduser()
    _require_utf8(path)
    if _is_client_folder(path) or (folder_only and _has_data_files(path)):
        return [
            Part(client=client, rows=chain.from_iterable(_entry(file, part, form) for file in files))
            for client, files in _clients(path).items()
        ]
    if folder_only:
        what = "is one data set and" if path.is_dir() else "is"
        raise DataError(
            f'split.by is "ready-made" but {source} {what} not a folder with one file per client; name one in'
            " data.source"
        )
    if path.is_dir():
        rows = _saved(path, part) if _is_saved(path) else _clone(path, config, part, form)
        return [Part(client="", rows=rows)]
    if path.exists():
        return [Part(client="", rows=rows_of(path, form))]
    require_there(source)
    return [Part(client="", rows=_hub(source, config, part))]


def require_there(source: str, key: str = "data.source") -> None:
    """Raise DataError unless a source is built in, a file or folder that exists, or maybe an id of the hub.

    Args:
        key: the key of the run file that names it.
    """
    here = source in (WORLD, PREFERENCES, MEMORY) or Path(source).expanduser().exists()
    if not here and not is_hub_id(source):
        raise DataError(
            f"there is no data file or folder {source}; check {key} (an id of the hub is owner/name)"
        )


def data_files(source: str) -> list[Path]:
    """Data files of a source: those of a folder's clients, or the one file; empty for any other source.

    Raises:
        DataError: the folder cannot be read, or holds none.
    """
    path = Path(source).expanduser()
    if _is_client_folder(path):
        return [file for own in _clients(path).values() for file in own if file.is_file()]
    return [path] if path.is_file() else []


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Natural sort key, under which client_2 comes before client_10.

    >>> sorted(["c10", "c2"], key=natural)
    ['c2', 'c10']
    """
    pieces = re.findall(r"\d+|\D+", name)
    return tuple((int(piece), "") if piece.isdecimal() else (sys.maxsize, piece) for piece in pieces)


def left_out(source: str, config: str | None = None, part: str = "train") -> list[str]:
    """Sentences on what is in a folder and is not read; empty where the source is no folder.

    Raises:
        DataError: the folder cannot be read.
    """
    path = Path(source).expanduser()
    if source in (WORLD, PREFERENCES, MEMORY):
        return []
    if _is_client_folder(path):
        return listing.sentences(_listed(path))
    if not path.is_dir():
        return []
    reasons: list[tuple[Iterable[Any], str, str]]
    if _is_saved(path):
        reasons = [(_saved_parts(path), "data.part", part)]
    else:
        builder = _builder(path, config)
        reasons = [
            (builder.builder_configs, "data.config", builder.config.name),
            (builder.config.data_files or {}, "data.part", part),
        ]
    return [
        f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} left out, since {key} is {chosen}"
        for names, key, chosen in reasons
        if (others := [str(name) for name in names if name != chosen])
    ]


def _is_client_folder(path: Path) -> bool:
    """Whether `path` is a folder of clients' data files, and not one data set as a whole."""
    return path.is_dir() and not _is_saved(path) and not _is_clone(path)


def _has_data_files(folder: Path) -> bool:
    """Whether a folder has data files at its top level, even if it is a clone of a data set of the hub."""
    return folder.is_dir() and not _is_saved(folder) and bool(_listed(folder).data)


def _is_clone(folder: Path) -> bool:
    """Whether a folder is a cloned or downloaded data set of the hub."""
    if any((folder / name).is_file() for name in CLONE_FILES) or is_card(folder / "README.md"):
        return True
    inner = folder / "data"
    return inner.is_dir() and not _is_saved(inner) and not _listed(folder).data and bool(_listed(inner).data)


def _listed(folder: Path) -> Listing:
    try:
        entries = list(folder.iterdir())
        folders = {entry for entry in entries if entry.is_dir()}
        sets = set(filter(_is_saved, folders))
        strange = set(filter(_is_strange, entries))
    except OSError as error:
        raise DataError(
            f"folder {folder} cannot be read ({error.strerror}); check its permissions"
        ) from error
    found = listing.listing(entries, READERS, folders | strange, sets)
    for name in (*(path.name for path in found.data), *found.testing):
        _require_utf8(folder / name)
    return found


def _is_strange(path: Path) -> bool:
    """Whether a path is a pipe, a device or a socket."""
    return not path.is_file() and not path.is_dir() and path.exists()


def _require_utf8(path: Path) -> None:
    """Raise DataError where a path is not UTF-8: a client, run file or page could not be named after it."""
    if not is_utf8(str(path)):
        raise DataError(f"the name of data file {os.fsencode(path)!r} is not UTF-8; rename it")


def _clients(folder: Path) -> dict[str, list[Path]]:
    """The files of each client, in natural order of the clients' names."""
    found = _listed(folder)
    if not found.data:
        left = f" but {', '.join(found.testing)}, not for training" if found.testing else ""
        below = [name for name in found.others if (folder / name).is_dir() and _listed(folder / name).data]
        inner = (
            f" (its folder {below[0]} does: name that one, or put one file per client here)" if below else ""
        )
        odd = next((f" ({name}: {fix[:-2]})" for name in found.others if (fix := _fix(folder / name))), "")
        raise DataError(
            f"folder {folder} has no data file{left}{inner or odd}; put {_extensions()} files there"
        )
    groups = listing.grouped(found.data, folder)
    return {client: groups[client] for client in sorted(groups, key=natural)}


def _entry(path: Path, part: str, form: Form) -> Iterator[Placed]:
    """The rows of one file, or of one saved data set."""
    return _saved(path, part) if path.is_dir() else rows_of(path, form)


def rows_of(path: Path, form: Form = USUAL) -> Iterator[Placed]:
    """Rows of one file, each with its place.

    Raises:
        DataError: the extension is unknown, or the file is unreadable, empty or broken as a whole.
    """
    empty = True
    try:
        if _is_strange(path):  # reading it might never end
            raise DataError(f"{path} is a pipe or a device and no file; write its rows to a file")
        if fault := lfs.fault(path):
            raise DataError(fault)
        for where, row in _reader(path)(path, form):
            empty = False
            yield where, untangled(row)
    except OSError as error:
        raise DataError(
            f"data file {path} cannot be read ({error.strerror}); check its path and permissions"
        ) from error
    if empty:
        raise DataError(f"data file {path} has no rows; fill it or remove it")


def _reader(path: Path) -> Reader:
    suffix = packed.suffix(path)
    if suffix in READERS:
        return READERS[suffix]
    if suffix in NO_KIND and holds_json(path):
        return json_rows
    raise DataError(f"data file {path} has an unknown extension; {_fix(path)}use one of {_extensions()}")


def _fix(path: Path) -> str:
    suffix = packed.suffix(path)
    return next((fix for suffixes, fix in CONVERSIONS.items() if suffix in suffixes), "")


def _parquet(path: Path, form: Form) -> Iterator[Placed]:
    """Rows of one Parquet file; `Dataset.from_parquet` would treat its name as a pattern of several."""
    from pyarrow import parquet

    return _batched(path, "Parquet", lambda file: parquet.ParquetFile(file).iter_batches())


def _arrow(path: Path, form: Form) -> Iterator[Placed]:
    """Rows of one Arrow file, in the stream or the file (Feather) format."""
    from pyarrow import ArrowInvalid, ipc

    def batches(file: BinaryIO) -> Iterator[Any]:
        try:
            stream = ipc.open_stream(file)
        except ArrowInvalid:
            whole = ipc.open_file(file)
            return map(whole.get_batch, range(whole.num_record_batches))
        return iter(stream)

    return _batched(path, "Arrow", batches)


def _batched(path: Path, name: str, opened: Callable[[BinaryIO], Iterator[Any]]) -> Iterator[Placed]:
    """Rows of a file in the format `name`, one batch after another, so that not all are in memory."""
    first = 1
    for table in _tables(path, name, opened):
        yield from records(table, str(path), first)
        first += len(table)


def _tables(path: Path, name: str, opened: Callable[[BinaryIO], Iterator[Any]]) -> Iterator[Any]:
    from pyarrow import Table

    with _seekable(path) as file:
        try:
            for batch in opened(file):
                batch.validate(full=True)  # or a text that is not UTF-8 would be found at its row
                with _quiet() as datasets:
                    held = datasets.table.InMemoryTable(Table.from_batches([batch]))
                    table = datasets.Dataset(held, fingerprint=name)  # else one is made of all its bytes
                yield table
        except Exception as error:
            raise DataError(
                f"data file {path} cannot be read as {name} ({_first_line(error)}); write it again"
            ) from error


def _seekable(path: Path) -> BinaryIO:
    return BytesIO(packed.read(path)) if packed.is_packed(path) else path.open("rb")


def _is_saved(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _saved(folder: Path, part: str) -> Iterator[Placed]:
    if "::" in str(folder):
        raise DataError(
            f"saved data set {folder} has :: in its path, which the library datasets would read as another"
            " path; rename it"
        )
    _require_own_files(folder)
    if fault := next(filter(None, map(lfs.fault, sorted(folder.rglob("*.arrow")))), ""):
        raise DataError(fault)
    with _quiet() as datasets:
        try:
            table = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise DataError(
                f"saved data set {folder} cannot be read ({_first_line(error)}); save it again with"
                " save_to_disk()"
            ) from error
    return records(_chosen(table, str(folder), part), str(folder))


def _saved_parts(folder: Path) -> list[str]:
    """Names of the parts of a saved data set; none where it is one table, or cannot be read."""
    try:
        return list(map(str, json.loads((folder / "dataset_dict.json").read_text(encoding="utf8"))["splits"]))
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _require_own_files(folder: Path) -> None:
    """Raise DataError where a saved data set names files outside its folder as its data."""
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
                    " of its own; nothing was read from there: save it again with save_to_disk()"
                )


def _chosen(table: Any, source: str, part: str) -> Any:
    if not isinstance(table, Mapping):
        return table
    if part not in table:
        raise DataError(f"{source} has no part {part}; set data.part to one of {', '.join(table)}")
    return table[part]


def _clone(folder: Path, config: str | None, part: str, form: Form) -> Iterator[Placed]:
    """Rows of one part of a cloned data set of the hub."""
    builder = _builder(folder, config)
    found, named = _own_files(folder, builder), namer(builder.info.features)
    if part not in found:
        raise DataError(
            f"data set {folder} has no part {part}; set data.part to one of {', '.join(found) or 'none'}"
        )
    for where, row in chain.from_iterable(rows_of(file, form) for file in found[part]):
        yield where, named(row)


def _builder(folder: Path, config: str | None) -> Any:
    """The builder that `datasets` makes for a cloned data set: configurations, parts, files, column types.

    Raises:
        DataError: it cannot be read, or its card names a file outside the folder.
    """
    if re.search(r"[][*?{}%]|::", str(folder)):
        raise DataError(
            f"data set {folder} has a character in its path that the library datasets treats as a pattern;"
            " rename the folder"
        )
    require_own_card(folder)
    with _quiet() as datasets:
        try:
            return datasets.load_dataset_builder(str(folder), config)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"data set {folder} cannot be read ({reason}); check data.config, or give data.source one of"
                " its files"
            ) from error


def _own_files(folder: Path, builder: Any) -> dict[str, list[Path]]:
    """Files of each part of a cloned data set.

    Raises:
        DataError: a file is outside the folder, as by a link.
    """
    found = {
        str(name): [Path(file) for file in files] for name, files in (builder.config.data_files or {}).items()
    }
    homes = [folder.resolve()]
    if folder.absolute().parent.name == "snapshots":  # the hub's cache, whose files are links
        homes.append(folder.absolute().parent.parent.resolve() / "blobs")
    for file in chain.from_iterable(found.values()):
        if not any(file.resolve().is_relative_to(home) for home in homes):
            raise DataError(
                f"data set {folder} names {str(file)!r} as its data, which is no file of its own; nothing was"
                " read from there: name the files to read in data.source"
            )
    return found


def _hub(source: str, config: str | None, part: str) -> Iterator[Placed]:
    with _quiet() as datasets:
        if hasattr(datasets.packaged_modules, source):  # "pandas" would unpickle what lies in this folder
            raise DataError(
                f"data.source {source!r} is a file format of the library datasets, not a data set; write"
                " owner/name"
            )
        try:
            table = datasets.load_dataset(source, config, split=part, revision=own_commit(source))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"there is no file or folder {source} (searched next to the run file and in {Path.cwd()}), "
                f"and the hub gives no data set of that name ("
                f"{_first_line(error)}); check the path, the id, data.config, data.part and the network"
            ) from error
    return records(table, source)


def records(table: Any, where: str, first: int = 1) -> Iterator[Placed]:
    """Rows of a `datasets.Dataset`, with class labels replaced by their names; they count from `first`."""
    features = _stored(dict(table.features))
    if features != table.features:
        with _quiet() as datasets:
            table = table.cast(datasets.Features(features))
    named = namer(features)
    return ((f"{where}, record {number}", untangled(named(row))) for number, row in enumerate(table, first))


def _stored(feature: Any) -> Any:
    """A column's type with images and sound left encoded, since decoding one may fetch its address."""
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
    """Import `datasets` late, with its progress bars off for the duration."""
    import datasets

    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        if shown:
            datasets.enable_progress_bars()


def columns(**values: list[Any]) -> Any:
    """An in-memory `datasets.Dataset` of these columns."""
    with _quiet() as datasets:
        return datasets.Dataset.from_dict(values)


Reader = Callable[[Path, Form], Iterator[Placed]]
READERS: Mapping[str, Reader] = {
    ".json": json_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".jsonlines": json_rows,
    ".jl": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".xlsx": excel_rows,
    ".xlsm": excel_rows,
}
CONVERSIONS = {
    (".xls", ".ods", ".numbers", ".xlsb"): "save it as .xlsx or CSV: ",
    listing.ARCHIVES: "it is an archive; unpack it, and name a file or the folder: ",
    (".yml", ".yaml"): "it is YAML; write its rows as JSONL, or give them from Python: ",
}
"""Advice for files whose extension cannot be read."""
NO_KIND = ("", ".txt", ".text")
"""Extensions that do not say what a file holds."""


def _extensions() -> str:
    return ", ".join(READERS)
