"""Write a commented run file with every key, its default and its meaning, from the settings' fields."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shepherd import catalogue, plugins
from shepherd.config import PartTable
from shepherd.consent import NOTHING, Consent
from shepherd.data.split import SPLIT
from shepherd.errors import FolderError
from shepherd.evaluate.metric import METRIC
from shepherd.run import fitting
from shepherd.run.fitting import Choice, Choices, Fit, Key
from shepherd.settings import TINY, WORLD, RunSettings
from shepherd.visible import shown, shown_toml

HEAD = """\
# A run file: every key with its meaning and a value. Only model.base and data.source are required; without
# any other line its default holds. A key behind a # is not set.
#
#   shepherd data check {name}    see the examples as they will be trained on
#   shepherd run {name}           train

"""
COMMENT_WIDTH = 100  # characters


def write(
    path: Path,
    data: str = WORLD,
    base: str = TINY,
    given: Mapping[str, str] | None = None,
    consent: Consent = NOTHING,
) -> tuple[str, ...]:
    """Write a new run file that fits some data and a base; returns the findings, in sentences.

    Args:
        data: the value of `data.source`; a path is relative to the current folder.
        base: the value of `model.base`, likewise.
        given: columns by their role; see `fitting.fit`.
        consent: whether code that comes with the base may run.

    Raises:
        FolderError: the file exists already, or cannot be written.
        DataError: the data cannot be read, or the role of a column is unclear.
        BaseError: the base cannot be used.
    """
    if path.exists():
        raise FolderError(f"{path} exists; name another file, or move it away first")
    found = fitting.fit(data, base, given, consent)
    named: Choices = {("output",): Choice(value=f"runs/{path.stem}", why="")}
    for key in (("data", "source"), ("model", "base")):
        choice = found.choices[key]
        named[key] = replace(choice, value=_path_from(path.parent, choice.value))
    found = replace(found, choices={**found.choices, **named})
    try:
        with open(path, "x", encoding="utf8") as file:
            file.write(text(found, path.name))
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror}); check the path") from error
    return found.found


def _path_from(folder: Path, given: str) -> str:
    """A path that is valid from the run file's folder and from the current one; an id or a name as it is."""
    path = Path(given).expanduser()
    here = folder.resolve() == Path.cwd()
    return given if here or given.startswith("~") or not path.exists() else str(path.resolve())


def text(fit: Fit, name: str = "run.toml") -> str:
    """Compose the run file as TOML, each choice with its reason; other keys have their defaults."""
    found = [line for sentence in fit.found for line in _comment(sentence, "#   ")]
    lines = ["# Found:", *found, ""] if found else []
    return HEAD.format(name=name) + "".join(
        f"{line}\n" for line in [*lines, *_table(RunSettings, (), fit.choices)]
    )


STAGES = (
    "# [[stages]]",
    '# tuning = {objective = {name = "sft"}}',
    "# [[stages]]",
    '# tuning = {objective = {name = "dpo"}, learning_rate = 1e-5}',
)
"""Lines of an example of stages, commented out."""
PARTS = {
    "split": SPLIT,
    "selection": plugins.SELECTION,
    "algorithm": plugins.ALGORITHM,
    "aggregation": plugins.AGGREGATION,
    "server": plugins.SERVER,
}
"""Tables that name a plug-in, and its kind."""


def _table(kind: type[BaseModel], path: Key, choices: Choices) -> Iterator[str]:
    """Lines of a table: its own keys, then the tables inside it, the order that TOML requires."""
    yield from ("", f"[{'.'.join(path)}]") if path else ()
    for key, field in kind.model_fields.items():
        if _table_of(field) is None and key not in ("transforms", "stages"):
            yield from _key_lines(key, field, choices.get((*path, key)))
        if (*path, key) == ("evaluation", "metrics"):
            yield from _plugin_names(METRIC, "# There are:", "#   ")
    if path and path[0] in PARTS:
        yield from _plugin_keys(PARTS[path[0]], path[0], kind, choices)
    for key, field in kind.model_fields.items():
        if key == "transforms":
            title = "\n# What happens to each update on its way. There are:"
            yield from _plugins_commented(plugins.TRANSFORM, title, "# [[transforms]]\n# name = ")
        elif key == "stages":
            yield from ("", *_comment(_meaning(field)), *STAGES)
        elif inner := _table_of(field):
            yield from _table(inner, (*path, key), choices)


def _table_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _plugin_keys(kind: plugins.Kind, table: str, fields: type[BaseModel], choices: Choices) -> Iterator[str]:
    """Lines of the chosen plug-in's keys, and of the other plug-ins with theirs."""
    (finds,) = fields.model_fields
    choice = choices.get((table, finds))
    name = choice.value if choice is not None else fields.model_fields[finds].get_default()
    for key, field in plugins.module_of(kind, name).Config.model_fields.items():
        yield from _key_lines(key, field, choices.get((table, key)))
    if len(plugins.names(kind.folder)) > 1:
        yield from _plugins_commented(
            kind, "# Instead, each with keys of its own:", f"# {finds} = ", but=name
        )


def _plugins_commented(kind: plugins.Kind, title: str, start: str, but: str = "") -> Iterator[str]:
    """Lines of all plug-ins of a kind with their keys, commented out."""
    yield title
    for name in plugins.names(kind.folder):
        if name == but:
            continue
        module = plugins.module_of(kind, name)
        yield from _comment(catalogue.first_line(module), "#   ")
        yield f"{start}{_toml(name)}"
        for key, field in module.Config.model_fields.items():
            yield from _comment(_meaning(field))
            usual = None if field.is_required() else field.get_default()
            yield f"# {key} = {_sample(field) if usual is None else _toml(usual)}"


def _plugin_names(kind: plugins.Kind, title: str, start: str) -> Iterator[str]:
    """Lines of all plug-ins of a kind, one each."""
    yield title
    for name in plugins.names(kind.folder):
        yield from _comment(f"{name}: {catalogue.first_line(plugins.module_of(kind, name))}", start)


def _key_lines(key: str, field: FieldInfo, choice: Choice | None) -> Iterator[str]:
    yield from _comment(_meaning(field))
    if choice is not None and choice.why:
        yield from _comment(f"Here: {choice.why.rstrip('.')}.")
    usual = None if field.is_required() else field.get_default(call_default_factory=True)
    value = choice.value if choice is not None else usual
    yield f"# {key} = {_sample(field)}" if value is None else f"{key} = {_toml(value)}"


def _comment(meaning: str, indent: str = "# ") -> list[str]:
    """Lines of a comment; text from elsewhere, such as a system prompt, cannot leave it."""
    line = shown(" ".join(meaning.split()))
    return textwrap.wrap(
        line, COMMENT_WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _meaning(field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    if get_origin(field.annotation) is Literal:
        meaning += f" One of {', '.join(map(_toml, get_args(field.annotation)))}."
    return meaning.strip()


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Members of a union, without None and without their constraints."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    bare = (get_args(part)[0] if get_origin(part) is Annotated else part for part in parts)
    return tuple(part for part in bare if part is not NoneType)


def _sample(field: FieldInfo) -> str:
    """A valid value as TOML, for a key without a default to show."""
    if field.examples:
        return _toml(field.examples[0])
    first = _alternatives(field.annotation)[0]
    return {int: "1", float: "1.0", str: '"..."', bool: "true"}.get(get_origin(first) or first, '["..."]')


def _toml(value: Any) -> str:
    if isinstance(value, PartTable):
        return _toml({"name": value.name, **value.own} if value.own else value.name)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):  # inline, since tables follow
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    return shown_toml(tomli_w.dumps({"x": value})).removeprefix("x = ").rstrip("\n")
