"""A commented run file with every key, its default and its meaning, read off the settings themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shepherd import algorithms, plugins, transforms
from shepherd.errors import FolderError
from shepherd.settings import RunSettings

HEAD = """\
# A run file: every key, what it means, and its default. Only model.base and data.source have to be
# there; any other line can go. A key behind a # is not set.
#
#   shepherd data check {name}    see the examples as they will be trained on
#   shepherd run {name}           train

"""
REQUIRED: dict[tuple[str, ...], str] = {("model", "base"): "tiny", ("data", "source"): "world"}
WIDTH = 100


def write(path: Path) -> None:
    """Write a new run file.

    Raises:
        FolderError: something is there already, or the file cannot be written.
    """
    try:
        with open(path, "x", encoding="utf8") as file:
            file.write(text(path.name))
    except FileExistsError:
        raise FolderError(f"{path} exists; name another file, or move it away first") from None
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror}); check the path") from error


def text(name: str = "run.toml") -> str:
    """The run file as TOML: it reads back as the defaults, on the embedded base and data.

    >>> text("my.toml").splitlines()[4]
    '#   shepherd run my.toml           train'
    """
    return HEAD.format(name=name) + "".join(f"{line}\n" for line in _table(RunSettings, ()))


def _table(kind: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """A table's own keys, then the tables inside it: the order that TOML wants."""
    yield from ("", f"[{'.'.join(path)}]") if path else ()
    for key, field in kind.model_fields.items():
        if _inner(field) is None and key != "transforms":
            yield from _key(key, field, path)
    if path == ("algorithm",):
        yield from _plugins(algorithms, "# There are:", "# name = ")
    for key, field in kind.model_fields.items():
        if key == "transforms":
            yield from _plugins(
                transforms,
                "\n# What happens to each update on its way. There are:",
                "# [[transforms]]\n# name = ",
            )
        elif inner := _inner(field):
            yield from _table(inner, (*path, key))


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _plugins(folder: ModuleType, title: str, start: str) -> Iterator[str]:
    """The modules of a folder and their keys, all commented out."""
    yield title
    for name in plugins.names(folder):
        module = import_module(f"{folder.__name__}.{name}")
        yield f"{start}{_toml(name)}"
        for key, field in module.Config.model_fields.items():
            yield from _comment(_meaning(field))
            default = _sample(field.annotation) if field.is_required() else _toml(field.get_default())
            yield f"# {key} = {default}"


def _key(key: str, field: FieldInfo, path: tuple[str, ...]) -> Iterator[str]:
    yield from _comment(_meaning(field))
    value = REQUIRED.get((*path, key)) if field.is_required() else field.get_default()
    yield f"# {key} = {_sample(field.annotation)}" if value is None else f"{key} = {_toml(value)}"


def _comment(meaning: str) -> list[str]:
    return textwrap.wrap(meaning, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _meaning(field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    if get_origin(field.annotation) is Literal:
        meaning += f" One of {', '.join(map(_toml, get_args(field.annotation)))}."
    return meaning.strip()


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, without None and without their constraints."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    bare = (get_args(part)[0] if get_origin(part) is Annotated else part for part in parts)
    return tuple(part for part in bare if part is not NoneType)


def _sample(kind: Any) -> str:
    """Some value of the type, as TOML: for a key that has no default to show."""
    first = _alternatives(kind)[0]
    return {int: "1", float: "1.0", str: '"..."', bool: "true"}.get(get_origin(first) or first, '["..."]')


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):  # on its line, before the tables
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
