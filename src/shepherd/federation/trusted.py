"""Which parts of a method a server lets a run name: a name is imported, so it is checked before that.

The package's own are taken. Whoever runs the server may list others, in `local/plugins.json` of its kit:

    {"algorithms": ["your_package.fedmine"], "transforms": []}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shepherd import aggregations, algorithms, plugins, server_optimisers, transforms
from shepherd.errors import FederationError
from shepherd.settings import RunSettings

FILE = "plugins.json"
FOLDERS = {
    "algorithms": algorithms,
    "aggregations": aggregations,
    "server_optimisers": server_optimisers,
    "transforms": transforms,
}
"""The keys of the list, and where the package's own are."""
MOST_TRANSFORMS = 16
"""Of a run: each looks at every update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """Modules outside the package, by their full names."""

    algorithms: frozenset[str] = frozenset()
    transforms: frozenset[str] = frozenset()
    aggregations: frozenset[str] = frozenset()
    server_optimisers: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """Every module that may be imported."""
        return self.algorithms | self.transforms | self.aggregations | self.server_optimisers


NO_OTHERS = Trusted()


def read(local: Path) -> Trusted:
    """The list in a kit's `local/`; nothing where there is none.

    Raises:
        FederationError: it is not such a list.
    """
    path = local / FILE
    try:
        table = json.loads(path.read_text(encoding="utf8"))
        if not isinstance(table, dict) or not table.keys() <= FOLDERS.keys():
            raise ValueError(f"its keys may be {', '.join(FOLDERS)}")
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
    parts = [
        ("algorithm", "algorithms", settings.algorithm),
        ("aggregation", "aggregations", settings.aggregation),
        ("server optimiser", "server_optimisers", settings.server),
        *(("transform", "transforms", part) for part in settings.transforms),
    ]
    for kind, folder, part in parts:
        if part.name not in {*plugins.names(FOLDERS[folder]), *getattr(trusted, folder)}:
            yield kind, part.name
