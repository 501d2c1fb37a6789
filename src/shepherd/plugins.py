"""Find an algorithm or a transform by the name of its module: the file is the plug-in.

`name = "fedprox"` is `shepherd/algorithms/fedprox.py`; `name = "your_package.module"` is one outside, which
is imported only where it is allowed by name (law 12). Such a module holds `Config`, a pydantic model of its
other keys, and `build(config)`.
"""

from __future__ import annotations

import importlib
import pkgutil
import shlex
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from shepherd import algorithms, transforms
from shepherd.core import Algorithm, Transform, chain
from shepherd.errors import PluginError, SettingsError
from shepherd.settings import PartTable, validated


def algorithm(table: PartTable, allowed: Collection[str] = ()) -> Algorithm:
    """The algorithm that `[algorithm]` names, built with the table's other keys.

    >>> algorithm(PartTable(name="fedprox", mu=0.1)).aggregate.__name__
    'mean'

    Args:
        allowed: dotted names of modules outside the package that may be imported; those inside always may.

    Raises:
        PluginError: a module outside that is not allowed, and was not imported; or one that cannot be.
        SettingsError: no such module, a module that is no algorithm, or a key it does not have.
    """
    built: Algorithm = _built(algorithms, "algorithm", table, allowed)
    return built


def transform(tables: Sequence[PartTable], allowed: Collection[str] = ()) -> Transform:
    """The chain that the `[[transforms]]` name, in their order on the client; `allowed` as for `algorithm`.

    Raises:
        PluginError: a module outside that is not allowed, and was not imported; or one that cannot be.
        SettingsError: no such module, a module that is no transform, or a key it does not have.
    """
    return chain(*(_built(transforms, "transform", table, allowed) for table in tables))


def names(folder: ModuleType) -> list[str]:
    """The modules of a folder, such as `shepherd.algorithms`."""
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def _built(folder: ModuleType, kind: str, table: PartTable, allowed: Collection[str]) -> Any:
    module = _module(folder, kind, table.name, allowed)
    config = validated(module.Config, table.model_extra or {}, f"the {kind} {table.name!r}")
    return module.build(config)


def _module(folder: ModuleType, kind: str, name: str, allowed: Collection[str] = ()) -> ModuleType:
    inside = names(folder)
    if name not in inside and "." not in name:
        close = get_close_matches(name, inside, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingsError(f"no {kind} called {name!r}; there are {', '.join(inside)}{meant}")
    if name not in inside and name not in allowed:
        raise PluginError(
            f"{kind} {name!r} is a module from outside shepherd-fit, whose code would run on this machine,"
            " and settings alone do not decide that; it was not imported: to trust it, give --allow-plugin"
            f" {shlex.quote(name)} (in Python: consent=Consent(plugins=frozenset({{{name!r}}})))"
        )
    try:
        module = importlib.import_module(f"{folder.__name__}.{name}" if name in inside else name)
    except (Exception, SystemExit) as error:  # ".x" is no module, and a module may fail in any way
        fault = f"{type(error).__name__}: {error}"
        raise PluginError(f"{kind} {name!r} cannot be imported ({fault}); install or mend it") from error
    if not (hasattr(module, "Config") and hasattr(module, "build")):
        raise SettingsError(f"module {name} is no {kind}; give it a Config and a build(config)")
    return module
