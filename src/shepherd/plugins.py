"""Find a part of a method by the name of its module: the file is the plug-in.

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
from typing import TYPE_CHECKING, Any

from shepherd import aggregations, algorithms, server_optimisers, transforms
from shepherd.config import PartTable
from shepherd.core import Aggregation, Algorithm, Method, ServerOptimiser, Transform, chain
from shepherd.errors import PluginError, SettingsError
from shepherd.settings import RunSettings, TuningTable, validated
from shepherd.training import objectives, optimisers

if TYPE_CHECKING:
    from shepherd.training.local import LocalTraining
    from shepherd.training.objective import Objective
    from shepherd.training.optimiser import Optimiser


def method(settings: RunSettings, allowed: Collection[str] = ()) -> Method:
    """The method that a run file describes; `allowed` as for `algorithm`.

    Raises:
        PluginError: a module outside that is not allowed, and was not imported; or one that cannot be.
        SettingsError: no such module, one of another kind, a key it does not have, or parts that do not go
            together.
    """
    return Method(
        algorithm=algorithm(settings.algorithm, allowed),
        aggregation=aggregation(settings.aggregation, allowed),
        server=server_optimiser(settings.server, allowed),
        transform=transform(settings.transforms, allowed),
    )


def algorithm(table: PartTable, allowed: Collection[str] = ()) -> Algorithm:
    """The algorithm that `[algorithm]` names, built with the table's other keys.

    >>> algorithm(PartTable(name="fedprox", mu=0.1)).correct is not None
    True

    Args:
        allowed: dotted names of modules outside the package that may be imported; those inside always may.

    Raises:
        PluginError: a module outside that is not allowed, and was not imported; or one that cannot be.
        SettingsError: no such module, a module that is no algorithm, or a key it does not have.
    """
    built: Algorithm = _built(algorithms, "algorithm", Algorithm, table, allowed)
    return built


def aggregation(table: PartTable, allowed: Collection[str] = ()) -> Aggregation:
    """The rule that `[aggregation]` names; arguments and errors as for `algorithm`."""
    built: Aggregation = _built(aggregations, "aggregation", Aggregation, table, allowed)
    return built


def server_optimiser(table: PartTable, allowed: Collection[str] = ()) -> ServerOptimiser:
    """The server optimiser that `[server]` names; arguments and errors as for `algorithm`."""
    built: ServerOptimiser = _built(server_optimisers, "server optimiser", ServerOptimiser, table, allowed)
    return built


def transform(tables: Sequence[PartTable], allowed: Collection[str] = ()) -> Transform:
    """The chain that the `[[transforms]]` name, in their order on the client; `allowed` as for `algorithm`.

    Raises:
        PluginError: a module outside that is not allowed, and was not imported; or one that cannot be.
        SettingsError: no such module, a module that is no transform, or a key it does not have.
    """
    return chain(*(_built(transforms, "transform", Transform, table, allowed) for table in tables))


def optimiser(table: PartTable, allowed: Collection[str] = ()) -> Optimiser:
    """The local optimiser that `[tuning.optimiser]` names; arguments and errors as for `algorithm`."""
    from shepherd.training.optimiser import Optimiser  # torch, which a server does without

    built: Optimiser = _built(optimisers, "optimiser", Optimiser, table, allowed)
    return built


def objective(table: PartTable, allowed: Collection[str] = ()) -> Objective:
    """The local objective that `[tuning.objective]` names; arguments and errors as for `algorithm`."""
    from shepherd.training.objective import Objective

    built: Objective = _built(objectives, "objective", Objective, table, allowed)
    return built


def local_training(table: TuningTable, allowed: Collection[str] = ()) -> LocalTraining:
    """What `[tuning.optimiser]` and `[tuning.objective]` name; arguments and errors as for `algorithm`."""
    from shepherd.training.local import LocalTraining

    return LocalTraining(optimiser(table.optimiser, allowed), objective(table.objective, allowed))


def names(folder: ModuleType) -> list[str]:
    """The modules of a folder, such as `shepherd.algorithms`."""
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def _built(folder: ModuleType, kind: str, type_: type, table: PartTable, allowed: Collection[str]) -> Any:
    module = _module(folder, kind, table.name, allowed)
    config = validated(module.Config, table.model_extra or {}, f"the {kind} {table.name!r}")
    built = module.build(config)
    if not isinstance(built, type_):
        raise SettingsError(
            f"build of module {table.name} gives a {type(built).__name__} and no {type_.__name__}; name a"
            f" module that makes a {kind}"
        )
    return built


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
