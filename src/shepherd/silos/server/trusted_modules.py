"""Which parts of a method a server lets a run name: a name is imported, so it is checked before that.

The package's own are taken. Whoever runs the server may list others, in `local/plugins.json` of its kit:

    {"algorithms": ["your_package.fedmine"], "transforms": []}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.errors import FederationError
from shepherd.io.decoding import decoded
from shepherd.settings import RunSettings

FILE = "plugins.json"
KINDS = {
    "algorithms": plugins.ALGORITHM,
    "aggregations": plugins.AGGREGATION,
    "server_optimisers": plugins.SERVER,
    "selections": plugins.SELECTION,
    "transforms": plugins.TRANSFORM,
}
"""The keys of the list, and the kinds of part that a server imports."""
MOST_TRANSFORMS = 16
"""Of a run: each looks at every update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """Modules outside the package, by their full names."""

    algorithms: frozenset[str] = frozenset()
    transforms: frozenset[str] = frozenset()
    aggregations: frozenset[str] = frozenset()
    server_optimisers: frozenset[str] = frozenset()
    selections: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """Every module that may be imported."""
        return frozenset().union(*(getattr(self, kind) for kind in KINDS))


NO_OTHERS = Trusted()


def read(local: Path) -> Trusted:
    """The list in a kit's `local/`; nothing where there is none.

    Raises:
        FederationError: it is not such a list.
    """
    path = local / FILE
    try:
        table = json.loads(decoded(path.read_bytes()))
        if not isinstance(table, dict) or not table.keys() <= KINDS.keys():
            raise ValueError(f"its keys may be {', '.join(KINDS)}")
        return Trusted(**{kind: _names(names) for kind, names in table.items()})
    except FileNotFoundError:
        return Trusted()
    except (OSError, ValueError) as error:
        raise FederationError(
            f"{path.name} in the server's kit cannot be used ({error}); write"
            ' {"algorithms": [], "transforms": []}'
        ) from error


def _names(names: object) -> frozenset[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("a value is no list of names")
    return frozenset(names)


def require(settings: RunSettings, trusted: Trusted) -> None:
    """Refuse a run that names a module which is neither the package's own nor trusted; nothing is imported.

    Raises:
        FederationError: it names one, or more transforms than a server goes through.
    """
    if len(settings.transforms) > MOST_TRANSFORMS:
        raise FederationError(
            f"the run has {len(settings.transforms)} transforms, at most {MOST_TRANSFORMS} are taken;"
            " leave some out"
        )
    for kind, name in _unknown(settings, trusted):
        raise FederationError(
            f"the server takes no {kind} called {name[:80]!a}; use one of the package, or have whoever runs"
            f" the server list it in local/{FILE} of its kit"
        )


def _unknown(settings: RunSettings, trusted: Trusted) -> Iterator[tuple[str, str]]:
    parts: list[tuple[str, PartTable]] = [
        ("algorithms", settings.algorithm),
        ("aggregations", settings.aggregation),
        ("server_optimisers", settings.server),
        ("selections", settings.selection),
        *(("transforms", part) for part in settings.transforms),
    ]
    for listed, part in parts:
        kind = KINDS[listed]
        if part.name not in {*plugins.names(kind.folder), *getattr(trusted, listed)}:
            yield kind.name, part.name
