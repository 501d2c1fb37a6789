"""Write docs/run-file.md: every key of a run file, read off the settings themselves.

    python -m tools.run_file_page

A test holds the page to what this gives, so that it cannot go stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shepherd import catalogue, plugins
from shepherd.config import PartTable
from shepherd.data.split import SPLIT
from shepherd.evaluate.metric import METRIC
from shepherd.plugins import Kind
from shepherd.settings import RunSettings
from shepherd.training.local import OBJECTIVE, OPTIMISER

PAGE = Path(__file__).parent.parent / "docs" / "run-file.md"
KINDS = {
    "split": SPLIT,
    "selection": plugins.SELECTION,
    "algorithm": plugins.ALGORITHM,
    "aggregation": plugins.AGGREGATION,
    "server": plugins.SERVER,
    "transforms": plugins.TRANSFORM,
    "tuning.optimiser": OPTIMISER,
    "tuning.objective": OBJECTIVE,
}
"""Tables that name a plug-in, and the kind of part that it is."""
HEAD = """\
# The run file

<!-- Written by `python -m tools.run_file_page` from the settings; edit their docstrings and run it again. -->

A run file is TOML. Only `model.base` and `data.source` have to be there; every other key has the default
given here. `shepherd new run.toml` writes all of this as a commented file, with values that fit your data and
your base.

- Any key can be given again on the command line, by its dotted name:
  `shepherd run run.toml federation.rounds=2`.
- An unknown key is an error, with the keys that there are. So is a value of the wrong type.
- Paths in the file are relative to the file; paths on the command line, and `output` always, to the current
  folder.
- "-" as a default says that the key is not set.

"""


def page() -> str:
    """The page as Markdown."""
    return HEAD + "\n".join(_section(RunSettings, ())).rstrip() + "\n"


def _section(kind: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    name = ".".join(path)
    listed = name == "transforms"
    yield f"## `{'[[' if listed else '['}{name}{']]' if listed else ']'}`" if path else "## Top level"
    yield ""
    if name in KINDS:
        yield from _part(KINDS[name], kind)
        return
    if path and kind.__doc__:
        yield from (" ".join(kind.__doc__.split()), "")
    tables = {
        key: table for key, field in kind.model_fields.items() if (table := _table((*path, key), field))
    }
    optional = [key for key in tables if not _always(kind, key)]
    yield from _keys(
        {key: field for key, field in kind.model_fields.items() if key not in tables or key in optional}
    )
    if name == "evaluation":
        yield from ("What `metrics` may list:", "")
        yield from _modules(METRIC)
    for key, table in tables.items():
        yield from _section(table, (*path, key))


def _part(kind: Kind, table: type[BaseModel]) -> Iterator[str]:
    (finds,) = table.model_fields
    default = table.model_fields[finds].get_default()
    unset = "" if default is PydanticUndefined else f"; the default is `{default}`"
    yield (
        f"`{finds}` is one of those below, or a module outside the package, which is imported only with"
        f" `--allow-plugin NAME`{unset}. The other keys of the table are those of the module: a key that"
        " belongs to another one is an error."
    )
    yield ""
    yield from _modules(kind)


def _modules(kind: Kind) -> Iterator[str]:
    for name in plugins.names(kind.folder):
        module = plugins.module_of(kind, name)
        yield from (f"### `{name}`", "", catalogue.first_line(module), "")
        yield from _keys(module.Config.model_fields) if module.Config.model_fields else ("No keys.", "")


def _keys(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key, field in fields.items():
        yield f"| `{key}` | {_cell(type_name(field))} | {_default(field)} | {_cell(_meaning(field))} |"
    yield ""


def _table(path: tuple[str, ...], field: FieldInfo) -> type[BaseModel] | None:
    """The table that a key holds; of the transforms, which are a list of tables, one of them."""
    kind = field.annotation
    if path == ("transforms",):
        kind = get_args(kind)[0]
    # of a table that may be missing, the table
    kind = next(
        (each for each in get_args(kind) if isinstance(each, type) and issubclass(each, BaseModel)), kind
    )
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _always(kind: type[BaseModel], key: str) -> bool:
    """Whether a table is there even if the file does not have it."""
    return kind.model_fields[key].get_default(call_default_factory=True) is not None


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    return "-" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, PartTable):
        return _toml(value.name)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def type_name(field: FieldInfo) -> str:
    """What a key may hold, in words and in TOML's values.

    >>> type_name(RunSettings.model_fields["seed"])
    'integer, 0 or more'
    """
    return _named(field.annotation, field.metadata)


def _named(kind: Any, metadata: Any = ()) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(arguments[0], arguments[1:])
    if origin is Literal:
        return " or ".join(f"`{_toml(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_named(each) for each in arguments if each is not NoneType)
    if origin is tuple:
        many = "" if arguments[-1] is ... else f" of {len(arguments)}"
        return (
            f"list{many} of {_named(arguments[0])}"
            if not many
            else f"{len(arguments)} of {_named(arguments[0])}"
        )
    if origin is dict:
        return "table"
    if isinstance(kind, type) and issubclass(kind, PartTable):
        return "name"
    plain = {int: "integer", float: "number", str: "string", bool: "`true` or `false`"}.get(kind, "value")
    return plain + _bounds(metadata)


def _bounds(metadata: Any) -> str:
    """The limits of a number: pydantic nests them in the metadata of its own `Field`."""
    found = {}
    for item in metadata:
        for inner in (item, *getattr(item, "metadata", ())):
            for name in ("gt", "ge", "lt", "le"):
                if (limit := getattr(inner, name, None)) is not None:
                    found[name] = limit
    words = []
    if "ge" in found:
        words.append(f"{found['ge']:g} or more")
    if "gt" in found:
        words.append(
            "1 or more" if found["gt"] == 0 and isinstance(found["gt"], int) else f"above {found['gt']:g}"
        )
    if "le" in found:
        words.append(f"{found['le']:g} at most")
    if "lt" in found:
        words.append(f"below {found['lt']:g}")
    return f", {', '.join(words)}" if words else ""


def _cell(text: str) -> str:
    """A text as one cell of a table, in which nothing is HTML or ends the cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
