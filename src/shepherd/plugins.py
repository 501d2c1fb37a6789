"""Plug-ins: find a part of a run by the name of its module.

`name = "fedprox"` is `shepherd/algorithms/fedprox.py`; `name = "your_package.module"` is outside the package
and imported only if it is allowed by name (law 12). A plug-in defines `Config`, a pydantic model of its other
keys, and `build(config)`.
"""

from __future__ import annotations

import importlib
import pkgutil
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import combinations, pairwise
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from shepherd import aggregations, algorithms, checkers, selections, server_optimisers, transforms
from shepherd.config import PartTable, validated
from shepherd.core import (
    IN_PYTHON,
    NAMED,
    Aggregation,
    Algorithm,
    Method,
    Parts,
    Selection,
    ServerOptimiser,
    Transform,
    chain,
)
from shepherd.core.algorithm import as_accepted
from shepherd.core.checker import Checker
from shepherd.core.stragglers import Stragglers
from shepherd.core.transform import require_readable
from shepherd.errors import PluginError, SettingsError
from shepherd.settings import RunSettings, SplitTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of plug-in: the folder of its modules, and the type that each of them builds."""

    name: str
    folder: ModuleType
    type: type
    chosen_by: str
    """What a person writes to choose one."""

    @property
    def group(self) -> str:
        """Group of entry points under which other packages list their plug-ins."""
        return f"shepherd.{self.folder.__name__.rpartition('.')[2]}"


ALGORITHM = Kind(name="algorithm", folder=algorithms, type=Algorithm, chosen_by="[algorithm] name")
AGGREGATION = Kind(name="aggregation", folder=aggregations, type=Aggregation, chosen_by="[aggregation] name")
SERVER = Kind(
    name="server optimiser", folder=server_optimisers, type=ServerOptimiser, chosen_by="[server] name"
)
SELECTION = Kind(name="selection", folder=selections, type=Selection, chosen_by="[selection] name")
TRANSFORM = Kind(name="transform", folder=transforms, type=Transform, chosen_by="[[transforms]] name")
CHECKER = Kind(name="checker", folder=checkers, type=Checker, chosen_by="check = {kind}")
KINDS = (ALGORITHM, AGGREGATION, SERVER, SELECTION, TRANSFORM, CHECKER)
"""The kinds that need no torch; a server that only aggregates needs no others."""


def method(settings: RunSettings, allowed: Collection[str] = (), parts: Parts = NAMED) -> Method:
    """The method that a run file describes; `allowed` as for `built`.

    Args:
        parts: values that stand in for parts that the run file names.

    Raises:
        PluginError: a module outside the package is not allowed and was not imported, or cannot be imported.
        SettingsError: there is no such module, it is of another kind, a key is not its own, or two parts are
            incompatible.
    """
    made = Method(
        algorithm=parts.algorithm or algorithm(settings.algorithm, allowed),
        aggregation=parts.aggregation or aggregation(settings.aggregation, allowed),
        server=parts.server or server_optimiser(settings.server, allowed),
        transform=parts.transform or transform(settings.transforms, allowed),
        stragglers=stragglers(settings),
        names=_names_of(settings, parts),
    )
    unequal = next((key for key in ("ranks", "min_rank") if getattr(settings.adapter, key)), "")
    if unequal and not made.aggregation.takes_ranks:
        raise SettingsError(
            f"adapter.{unequal} gives clients unequal ranks, and aggregation.name ="
            f' "{settings.aggregation.name}" averages factors of one rank; set [aggregation] name = "product"'
        )
    if unequal and made.algorithm.personal:
        raise SettingsError(
            f"adapter.{unequal} has clients train a part of the adapter, and algorithm.name ="
            f' "{settings.algorithm.name}" leaves a part of its own with each client; remove one of them'
        )
    if settings.adapter.target_parameters and made.algorithm.adds_ranks:
        raise SettingsError(
            "adapter.target_parameters names parameters that stack the matrices of experts, and"
            f' algorithm.name = "{settings.algorithm.name}" trains ranks beside the common ones, for which'
            ' these have no place; set adapter.target_parameters = [], or [algorithm] name = "fedavg"'
        )
    weights = settings.federation.weights
    if made.algorithm.needs_equal_weights and weights != "equal":
        raise SettingsError(
            f"the algorithm {settings.algorithm.name!r} counts each client the same, which"
            f' federation.weights = "{weights}" does not; set federation.weights = "equal"'
        )
    if made.transform.needs_equal_weights and weights != "equal":
        name = ", ".join(table.name for table in settings.transforms)
        raise SettingsError(
            f"the transform {name!r} has each client count the same, which federation.weights ="
            f' "{weights}" does not; set federation.weights = "equal", or largest_weight of fixed_point'
        )
    if made.is_private:
        _require_private(settings, noisy_name(settings, allowed), weights)
    if settings.secure is not None:
        _require_sums(settings, made, allowed)
    return made


def stragglers(settings: RunSettings) -> Stragglers | None:
    """What [stragglers] says of a round; None without it."""
    table = settings.stragglers
    if table is None:
        return None
    if table.carry and settings.secure is not None:
        raise SettingsError(
            "stragglers.carry = true adds a late update to a later round, and [secure] makes a sum of one"
            " round alone; set stragglers.carry = false, which drops it, or remove [secure]"
        )
    return Stragglers(min_updates=table.min_updates, wait_s=table.wait_s, carry=table.carry)


def _require_sums(settings: RunSettings, made: Method, allowed: Collection[str]) -> None:
    """Raise SettingsError, naming the key, unless a sum of whole numbers is all that the server needs."""
    if not made.transform.largest_code:
        if made.is_private:
            raise SettingsError(
                f"the transform {noisy_name(settings, allowed)!r} checks each update and has the server add"
                ' the noise, and with [secure] it gets sums alone; set [[transforms]] name = "skellam", with'
                " which the clients add it, or remove [secure]"
            )
        raise SettingsError(
            "[secure] adds up whole numbers, and no transform makes them; add [[transforms]] name ="
            ' "fixed_point" as the last one'
        )
    if not made.aggregation.is_mean:
        raise SettingsError(
            f"{made.called('aggregation')} is not a mean, which is all that can be taken of the sums that a"
            ' server gets with [secure]; set [aggregation] name = "mean", or remove [secure]'
        )
    if made.algorithm.accept is not as_accepted:
        raise SettingsError(
            f"{made.called('algorithm')} corrects each update by what its client reports, and with [secure]"
            ' the server gets sums alone; set [algorithm] name = "fedavg", or remove [secure]'
        )
    unequal = next((key for key in ("ranks", "min_rank") if getattr(settings.adapter, key)), "")
    if unequal:
        raise SettingsError(
            f"adapter.{unequal} gives clients updates of unequal shapes, which [secure] cannot add up; remove"
            f" adapter.{unequal}, or [secure]"
        )
    if settings.evaluation.contribution:
        raise SettingsError(
            "evaluation.contribution reports on single updates, and with [secure] the server gets sums alone;"
            " set evaluation.contribution = false, or remove [secure]"
        )
    if made.transform.needs_each:
        raise SettingsError(
            f"{made.called('transform')} reads each update at the server, and with [secure] it gets sums"
            " alone; remove the one that reads them, or remove [secure]"
        )
    require_alike(settings, made.algorithm)


def require_alike(settings: RunSettings, algorithm: Algorithm) -> None:
    """Raise SettingsError unless clients make their updates alike, so that a sum of them hides each.

    A sum is nearly the update of a client whose own is far longer than the others', by its weight or by the
    steps of its visit, and exactly that of the only client with a memory that makes its update differ from 0.

    Args:
        algorithm: that of the run, as a server and each site of it build it.
    """
    if settings.federation.weights not in ("equal", "size"):
        raise SettingsError(
            f'federation.weights = "{settings.federation.weights}" is known after a visit alone, so that with'
            " [secure] nobody sees whether one client outweighs the rest; set federation.weights ="
            ' "equal" or "size"'
        )
    if settings.tuning.max_steps is None:
        raise SettingsError(
            "visits by epochs are longer where a client has more examples, and so is its update, which the"
            " sum of [secure] would show; set tuning.max_steps in place of tuning.epochs"
        )
    if algorithm.keeps_memory:
        raise SettingsError(
            f"the algorithm {settings.algorithm.name!r} has clients keep something from visit to visit, so"
            " that a server can choose whose update differs from zero, and the sum of [secure] would be"
            ' that one; set [algorithm] name = "fedavg", or remove [secure]'
        )


def _require_private(settings: RunSettings, name: str, weights: str) -> None:
    """Raise SettingsError, naming the key, if a setting would void what a mechanism promises."""
    if weights != "equal":
        raise SettingsError(
            f"the transform {name!r} hides each client with the same noise, so all must count the same, which"
            f' federation.weights = "{weights}" does not; set federation.weights = "equal"'
        )
    if settings.adapter.ranks:
        raise SettingsError(
            f"the transform {name!r} divides one sum by a fixed number, and with adapter.ranks each rank has"
            " another number of clients; remove adapter.ranks"
        )
    if settings.evaluation.contribution:
        raise SettingsError(
            f"evaluation.contribution would report on single updates, which the noise of the transform"
            f" {name!r} is to hide; set evaluation.contribution = false, or remove the transform"
        )


def noisy_name(settings: RunSettings, allowed: Collection[str] = ()) -> str:
    """What the run file calls the transform that adds noise."""
    table = noisy_table(settings, allowed)
    return IN_PYTHON if table is None else table.name


def noisy_table(settings: RunSettings, allowed: Collection[str] = ()) -> PartTable | None:
    """The `[[transforms]]` table that spends privacy budget, if the run file has one."""
    for table in settings.transforms:
        if table.name != IN_PYTHON and (table.name in names(transforms) or table.name in allowed):
            part: Transform = built(TRANSFORM, table, allowed)
            if part.mechanism is not None:
                return table
    return None


def noise_of(settings: RunSettings, allowed: Collection[str] = ()) -> float | None:
    """The noise multiplier that the run file names, if its transform has such a key."""
    table = noisy_table(settings, allowed)
    if table is None:
        return None
    noise = completed_table(TRANSFORM, table, allowed).own.get("noise")
    return float(noise) if isinstance(noise, float | int) else None


def selection(settings: RunSettings, allowed: Collection[str] = (), parts: Parts = NAMED) -> Selection:
    """The selection that `[selection]` names, if it fits `federation.weights`; as for `method`."""
    made: Selection = parts.selection or built(SELECTION, settings.selection, allowed)
    weights = settings.federation.weights
    if made.by_size and weights != "equal":
        raise SettingsError(
            f'selection.name = "{settings.selection.name}" draws clients by their size, which'
            f' federation.weights = "{weights}" would count a second time; set federation.weights = "equal"'
        )
    transforms_ = parts.transform or transform(settings.transforms, allowed)
    mechanism = transforms_.mechanism
    honest = 0 if mechanism is None else mechanism.honest
    if mechanism is not None and made.sampling is None:
        raise SettingsError(
            f"the selection {settings.selection.name!r} draws clients by chances for which no guarantee is"
            f" known, and the transform {noisy_name(settings, allowed)!r} hides clients; set"
            f' [selection] name = "{"uniform" if honest else "poisson"}"'
        )
    if made.may_be_empty and (honest or settings.secure is not None):
        why = f"the transform {noisy_name(settings, allowed)!r}" if honest else "[secure]"
        raise SettingsError(
            f"the selection {settings.selection.name!r} asks any number of clients in a round, and {why}"
            ' needs enough of them in each; set [selection] name = "uniform"'
        )
    if made.by_size and settings.secure is not None:
        raise SettingsError(
            f"the selection {settings.selection.name!r} draws clients by their size, which a server that was"
            " restarted in the middle of a round may not know of all, and [secure] must ask the same ones"
            ' again; set [selection] name = "uniform"'
        )
    if made.by_loss and settings.stragglers is not None and settings.stragglers.carry:
        raise SettingsError(
            f"the selection {settings.selection.name!r} draws clients by their last losses, and"
            " stragglers.carry = true brings losses of earlier rounds; set stragglers.carry = false, or"
            ' [selection] name = "uniform"'
        )
    if made.by_list and settings.stragglers is not None and settings.stragglers.carry:
        raise SettingsError(
            f"the selection {settings.selection.name!r} gives each client its turn or a chance of its own,"
            " which stragglers.carry = true breaks by leaving out clients that are still at work; set"
            ' stragglers.carry = false, or [selection] name = "uniform"'
        )
    if made.by_loss:
        aggregation_ = parts.aggregation or aggregation(settings.aggregation, allowed)
        _require_losses(settings, aggregation_, transforms_)
    if made.by_size and (parts.algorithm or algorithm(settings.algorithm, allowed)).needs_equal_weights:
        raise SettingsError(
            f"the algorithm {settings.algorithm.name!r} counts each client the same, and the selection"
            f' {settings.selection.name!r} asks large ones more often; set [selection] name = "uniform"'
        )
    return made


def _require_losses(settings: RunSettings, aggregation: Aggregation, transform: Transform) -> None:
    """Raise SettingsError, naming both, where cohorts may not depend on what clients report of their loss."""
    instead = 'set [selection] name = "uniform"'
    if settings.privacy.examples is not None:
        raise SettingsError(
            f"the selection {settings.selection.name!r} asks clients by the loss that they report, and with"
            f" [privacy.examples] they report none; {instead}"
        )
    if settings.secure is not None:
        raise SettingsError(
            f"the selection {settings.selection.name!r} asks clients by the loss that they report, and under"
            f" [secure] the server learns no single one's; {instead}"
        )
    wary = f"the aggregation {settings.aggregation.name!r}" if aggregation.robust else ""
    if transform.needs_each:
        wary = f"the transform {', '.join(table.name for table in settings.transforms)!r}"
    if wary:
        raise SettingsError(
            f"the selection {settings.selection.name!r} asks clients by the loss that they report, which lets"
            f" one that lies into every cohort, and {wary} is there because some may lie; {instead}"
        )


def _names_of(settings: RunSettings, parts: Parts) -> dict[str, str]:
    """What the run file calls the parts of the method that are not given as values."""
    named = {each: getattr(settings, each).name for each in ("algorithm", "aggregation", "server")}
    if settings.transforms:
        named["transform"] = ", ".join(table.name for table in settings.transforms)
    return {part: name for part, name in named.items() if getattr(parts, part) is None}


def require(settings: RunSettings, allowed: Collection[str] = ()) -> None:
    """Raise the errors of `method` if a part of the method, or the selection, cannot be built."""
    method(settings, allowed)
    selection(settings, allowed)


def completed(settings: RunSettings, allowed: Collection[str] = ()) -> RunSettings:
    """The settings with the defaults of the method's parts and of the selection filled in."""
    tables: dict[str, Any] = {
        name: completed_table(kind, getattr(settings, name), allowed)
        for name, kind in (
            ("algorithm", ALGORITHM),
            ("aggregation", AGGREGATION),
            ("server", SERVER),
            ("selection", SELECTION),
        )
    }
    tables["transforms"] = tuple(completed_table(TRANSFORM, table, allowed) for table in settings.transforms)
    return settings.model_copy(update=tables)


def with_given(settings: RunSettings, parts: Parts) -> RunSettings:
    """The settings with `IN_PYTHON` as the name of each part that is given as a value."""
    tables: dict[str, Any] = {
        name: type(getattr(settings, name))(name=IN_PYTHON) for name in parts.given if name != "transform"
    }
    if parts.transform:
        tables["transforms"] = (PartTable(name=IN_PYTHON),)
    return settings.model_copy(update=tables)


def given(settings: RunSettings) -> list[str]:
    """Names of the parts of a run that were given as values; see `core.Parts`."""
    named = {
        each: getattr(settings, each).name for each in ("algorithm", "aggregation", "server", "selection")
    }
    if any(table.name == IN_PYTHON for table in settings.transforms):
        named["transform"] = IN_PYTHON
    return [part for part, name in named.items() if name == IN_PYTHON]


def completed_table(kind: Kind, table: PartTable | SplitTable, allowed: Collection[str]) -> Any:
    """A part's table with its defaults filled in; errors as for `built`."""
    if table.name == IN_PYTHON:
        return table
    _, config = _load_config(kind, table, allowed)
    return table.model_copy(update=config.model_dump(mode="json", exclude_none=True))


def algorithm(table: PartTable, allowed: Collection[str] = ()) -> Algorithm:
    """The algorithm that `[algorithm]` names; arguments and errors as for `built`.

    >>> algorithm(PartTable(name="fedprox", mu=0.1)).correct is not None
    True
    """
    made: Algorithm = built(ALGORITHM, table, allowed)
    return made


def aggregation(table: PartTable, allowed: Collection[str] = ()) -> Aggregation:
    """The aggregation that `[aggregation]` names; arguments and errors as for `built`."""
    made: Aggregation = built(AGGREGATION, table, allowed)
    return made


def server_optimiser(table: PartTable, allowed: Collection[str] = ()) -> ServerOptimiser:
    """The server optimiser that `[server]` names; arguments and errors as for `built`."""
    made: ServerOptimiser = built(SERVER, table, allowed)
    return made


def transform(tables: Sequence[PartTable], allowed: Collection[str] = ()) -> Transform:
    """The `[[transforms]]` combined, in their order at the client; errors as for `built`."""
    made = [built(TRANSFORM, table, allowed) for table in tables]
    require_readable(made, [table.name for table in tables])
    noisy = [table.name for table, part in zip(tables, made, strict=True) if part.mechanism is not None]
    if len(noisy) > 1:
        raise SettingsError(
            f"the transforms {noisy[0]!r} and {noisy[1]!r} both add noise for privacy; remove one of them"
        )
    for (before, one), (after, two) in combinations(zip(tables, made, strict=True), 2):
        if one.largest_code or (two.largest_code and one.mechanism is not None):
            first, second = (before, after) if one.largest_code else (after, before)
            raise SettingsError(
                f"the transform {first.name!r} sends whole numbers, after which {second.name!r} cannot work;"
                f" list {first.name} last, and remove {second.name} if it encodes updates or adds noise (for"
                ' both at once there is [[transforms]] name = "skellam")'
            )
        if two.largest_code and one.norm < two.norm:
            raise SettingsError(
                f"the transform {before.name!r} refuses an update that is longer than its norm, which the"
                f" rounding or the noise of {after.name!r} may make of it; remove {before.name}, since"
                f" {after.name} clips as well"
            )
    for place, (table, part) in enumerate(zip(tables, made, strict=True)):
        later = [t.name for t, p in zip(tables[place + 1 :], made[place + 1 :], strict=True) if p.alters]
        if part.mechanism is not None and later:
            raise SettingsError(
                f"the transform {later[0]!r} comes after {table.name!r} and would change the sum that the"
                f" noise is made for; list {table.name} last under [[transforms]]"
            )
        checking = [t.name for t, p in zip(tables[:place], made[:place], strict=True) if p.checks]
        if part.adds and checking:
            order = f"list {table.name} before {checking[-1]}" if table.name not in checking else "keep one"
            raise SettingsError(
                f"the transform {checking[-1]!r} checks each update, and would take what {table.name!r} adds"
                f" to one for a part of the change; {order} under [[transforms]]"
            )
    for (before, one), (after, two) in pairwise(zip(tables, made, strict=True)):
        if two.relative is not None and one.relative is None:
            raise SettingsError(
                f"the transform {after.name!r} reads the change as it was trained, and comes after"
                f" {before.name!r}, which bounds or encodes it; list {after.name} first under [[transforms]]"
            )
    return chain(*made)


def checker(check: Mapping[str, Any], allowed: Collection[str] = ()) -> Checker:
    """The checker that an example's `check` names by its `kind`; arguments and errors as for `built`.

    >>> checker({"kind": "exact", "answer": "baker"}).right(" Baker. ")
    True
    """
    if "kind" not in check:
        raise SettingsError(f"it has no kind; choose one of {', '.join(names(checkers))}")
    keys = {str(key): value for key, value in check.items() if key != "kind"}
    made: Checker = built(CHECKER, PartTable(**{**keys, "name": str(check["kind"])}), allowed)
    return made


def names(folder: ModuleType) -> list[str]:
    """The modules of a folder, such as `shepherd.algorithms`."""
    return list(_modules(tuple(folder.__path__)))


@cache  # asked for each part of a run, and for each example with a check
def _modules(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path)))


def built(kind: Kind, table: PartTable | SplitTable, allowed: Collection[str] = ()) -> Any:
    """The part that a table names, built with the table's other keys.

    Args:
        allowed: dotted names of modules outside the package that may be imported; those inside always may.

    Raises:
        PluginError: a module outside the package is not allowed and was not imported, or cannot be imported.
        SettingsError: there is no such module, it is of another kind, or a key is not its own.
    """
    module, config = _load_config(kind, table, allowed)
    made = module.build(config)
    if not isinstance(made, kind.type):
        raise SettingsError(
            f"build of module {table.name} returns a {type(made).__name__}, not a {kind.type.__name__}; name"
            f" a module that builds a {kind.name}"
        )
    return made


def _load_config(
    kind: Kind, table: PartTable | SplitTable, allowed: Collection[str]
) -> tuple[ModuleType, BaseModel]:
    module = module_of(kind, table.name, allowed)
    try:
        config: BaseModel = validated(module.Config, table.own, f"the {kind.name} {table.name!r}")
    except SettingsError as error:
        whose = "; ".join(_plugins_with_key(kind, module, table.own))
        raise SettingsError(f"{error}; {whose}" if whose else str(error)) from error
    return module, config


def _plugins_with_key(kind: Kind, module: ModuleType, keys: Collection[str]) -> Iterator[str]:
    """For each key that the module does not have, a sentence naming the plug-ins that have it."""
    for key in keys:
        if key not in module.Config.model_fields:
            others = [name for name in names(kind.folder) if key in module_of(kind, name).Config.model_fields]
            if others:
                yield f"{key} is a key of {', '.join(others)}"


def module_of(kind: Kind, name: str, allowed: Collection[str] = ()) -> ModuleType:
    """The module of this name; arguments and errors as for `built`."""
    inside = names(kind.folder)
    if name == IN_PYTHON:
        raise SettingsError(
            f"the {kind.name} of this run was given as a value in Python, and no file holds its code; give it"
            f" again in Python, as open_run(..., {kind.name.split()[0]}=VALUE) or"
            f" resume(..., {kind.name.split()[0]}=VALUE), or name a module in {kind.chosen_by}"
        )
    if name not in inside and "." not in name:
        close = get_close_matches(name, inside, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingsError(f"no {kind.name} called {name!r}; there are {', '.join(inside)}{meant}")
    if name not in inside and name not in allowed:
        raise PluginError(
            f"{kind.name} {name!r} is a module from outside shepherd-fit, whose code would run on this"
            " machine, and settings alone cannot allow that; it was not imported: to trust it, give"
            f" --allow-plugin {shlex.quote(name)} (in Python:"
            f" consent=Consent(plugins=frozenset({{{name!r}}})))"
        )
    try:
        module = importlib.import_module(f"{kind.folder.__name__}.{name}" if name in inside else name)
    except (Exception, SystemExit) as error:  # ".x" is no module, and a module may fail in any way
        if name in inside and isinstance(error, ModuleNotFoundError):  # a server without torch
            raise
        fault = f"{type(error).__name__}: {error}"
        raise PluginError(f"{kind.name} {name!r} cannot be imported ({fault}); install or fix it") from error
    if not (hasattr(module, "Config") and hasattr(module, "build")):
        raise SettingsError(
            f"module {name} is not a plug-in of kind {kind.name}; define Config and build(config) in it"
        )
    return module
