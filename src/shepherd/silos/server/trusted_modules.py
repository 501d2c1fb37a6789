"""The modules that a run may name at a server: a name is imported, so it is checked first.

Those of this package are allowed. The server's operator may list others, in `local/plugins.json` of its kit:

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

TRUSTED_FILE = "plugins.json"
KINDS = {
    "algorithms": plugins.ALGORITHM,
    "aggregations": plugins.AGGREGATION,
    "server_optimisers": plugins.SERVER,
    "selections": plugins.SELECTION,
    "transforms": plugins.TRANSFORM,
}
"""Keys of the list, and the kinds of plug-in that a server imports."""
MAX_SERVER_TRANSFORMS = 16
"""Transforms of one run: each processes every update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """Modules outside this package that a run may name, by full name."""

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
    """Read the list in a kit's `local/`; empty where there is none.

    Raises:
        FederationError: the file is not such a list.
    """
    path = local / TRUSTED_FILE
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
        raise ValueError("a value is not a list of names")
    return frozenset(names)


def require(settings: RunSettings, trusted: Trusted) -> None:
    """Refuse a run that names a module that is neither in this package nor trusted, without importing it.

    Raises:
        FederationError: the run names such a module, or too many transforms.
    """
    if len(settings.transforms) > MAX_SERVER_TRANSFORMS:
        raise FederationError(
            f"the run has {len(settings.transforms)} transforms, and the limit is {MAX_SERVER_TRANSFORMS};"
            " leave some out"
        )
    for kind, name in _untrusted(settings, trusted):
        raise FederationError(
            f"the server does not allow the {kind} {name[:80]!a}; use one of this package, or have the"
            f" server's operator list it in local/{TRUSTED_FILE} of its kit"
        )


def _untrusted(settings: RunSettings, trusted: Trusted) -> Iterator[tuple[str, str]]:
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
