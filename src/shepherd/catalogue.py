"""The catalogue of plug-ins: every kind, from this package and from other packages.

Another package lists its modules by entry points of the group of their kind:

    [project.entry-points."shepherd.aggregations"]
    median = "your_package.median"

Only its metadata is read: no module of another package is imported unless a person allows it (law 12).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from shepherd import plugins
from shepherd.data.split import SPLIT
from shepherd.errors import SettingsError
from shepherd.evaluate.metric import METRIC
from shepherd.model.exporting import EXPORTER
from shepherd.plugins import Kind
from shepherd.training.local import OBJECTIVE, OPTIMISER

KINDS = (*plugins.KINDS, SPLIT, OPTIMISER, OBJECTIVE, METRIC, EXPORTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOf:
    """One key of a plug-in's table in a run file."""

    name: str
    default: Any
    """Default value; None if the key is required."""
    doc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One plug-in of a kind."""

    name: str
    """Its name in a run file: the module in its folder, or a dotted module outside the package."""
    doc: str
    """First line of its docstring; "" if it was not imported."""
    keys: tuple[KeyOf, ...] = ()
    package: str = ""
    """The other package that lists it, with its version; "" for this package's own."""
    imported: bool = True


def own(kind: Kind) -> list[Plugin]:
    """This package's own plug-ins of a kind, by name."""
    return [_describe(kind, name, "", ()) for name in plugins.names(kind.folder)]


def others(kind: Kind, allowed: Collection[str] = ()) -> list[Plugin]:
    """The plug-ins of a kind that other packages list, by name.

    Args:
        allowed: modules that may be imported, to show their keys.

    Raises:
        PluginError: an allowed module cannot be imported.
        SettingsError: an allowed module is of another kind.
    """
    found = {entry.module: _package(entry) for entry in entry_points(group=kind.group)}
    return [
        _describe(kind, name, package, allowed)
        if name in allowed
        else Plugin(name=name, doc="", package=package, imported=False)
        for name, package in sorted(found.items())
    ]


def lines(kinds: Collection[Kind], allowed: Collection[str] = ()) -> Iterator[str]:
    """Lines of text with every plug-in of these kinds and its keys; arguments and errors as for `others`."""
    for kind in kinds:
        yield f"{kind.chosen_by} (entry points: {kind.group})"
        for plugin in (*own(kind), *others(kind, allowed)):
            yield from _lines(plugin)
        yield ""


def kinds_named(names: Collection[str]) -> tuple[Kind, ...]:
    """The kinds by the last part of their group, such as "splits"; all kinds if `names` is empty.

    Raises:
        SettingsError: there is no such kind.
    """
    known = {kind.group.partition(".")[2]: kind for kind in KINDS}
    for name in names:
        if name not in known:
            raise SettingsError(
                f"there is no kind of plug-in called {name!r}; choose from {', '.join(known)}"
            )
    return tuple(known[name] for name in names) or KINDS


def first_line(module: ModuleType) -> str:
    """The first line of a module's docstring."""
    return (module.__doc__ or "").strip().partition("\n")[0]


def _lines(plugin: Plugin) -> Iterator[str]:
    whose = f" [{plugin.package}]" if plugin.package else ""
    doc = plugin.doc if plugin.imported else f"not imported; --allow-plugin {plugin.name} shows its keys"
    yield f"  {plugin.name}{whose}: {doc}"
    for key in plugin.keys:
        default = "required" if key.default is None else f"default {key.default!r}"
        yield f"      {key.name} ({default}): {key.doc}"


def _describe(kind: Kind, name: str, package: str, allowed: Collection[str]) -> Plugin:
    module = plugins.module_of(kind, name, allowed)
    keys = tuple(_keys(module.Config))
    return Plugin(name=name, doc=first_line(module), keys=keys, package=package)


def _keys(config: type[BaseModel]) -> Iterator[KeyOf]:
    for name, field in config.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        doc = " ".join((field.description or "").split())
        yield KeyOf(name=name, default=default, doc=doc)


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "another package"
