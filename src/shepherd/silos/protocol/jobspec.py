"""What a job brings to the server, and what of it a site is told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shepherd.errors import FederationError
from shepherd.legacy import modern
from shepherd.overrides import plain
from shepherd.settings import FederationTable, RunSettings, SilosTable, published
from shepherd.silos.protocol.schema import label

RUN_ID = "[0-9a-f]{16}"
MOST_SITES = 1000
TRAVELLING = ("model", "adapter", "federation", "tuning", "algorithm", "transforms", "evaluation")
"""Tables of the run file that a site is told."""
TRAVELLING_DATA = ("template", "template_options", "system", "date", "holdout", "max_tokens", "seed")
"""Keys of [data] that a site is told: how to render, and never where from."""
STAYING = {"evaluation": ("data", "metrics")}
"""Keys of travelling tables that no site has a use for: a site scores its own examples, and answers are
measured where they are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a job brings to the server: all of it plain, and no secret in it."""

    run: str
    base: str
    """Digest of the base's files."""
    fingerprint: str
    """Of the base in memory, as checkpoints carry it."""
    version: str
    sites: tuple[str, ...]
    settings: Mapping[str, Any]
    """The run file, with everything that it leaves open filled in; see `settings_of`."""

    @property
    def federation(self) -> FederationTable:
        """The run file's table."""
        return FederationTable.model_validate(modern(self.settings, "the order").get("federation", {}))

    @property
    def silos(self) -> SilosTable:
        """The run file's table."""
        return SilosTable.model_validate(modern(self.settings, "the order").get("silos", {}))

    def text(self) -> str:
        """JSON; `read` reads it back."""
        return json.dumps(
            {
                "run": self.run,
                "base": self.base,
                "fingerprint": self.fingerprint,
                "version": self.version,
                "sites": list(self.sites),
                "settings": self.settings,
            },
            indent=1,
        )


def read(text: str) -> JobSpec:
    """Read an order.

    Raises:
        FederationError: it is no order.
    """
    try:
        found = json.loads(text)
        order = JobSpec(**{**found, "sites": _sites(found["sites"])})
        if not re.fullmatch(RUN_ID, order.run):  # it names a folder at the server
            raise ValueError("its run is not 16 hex digits")
        return order
    except (ValueError, TypeError, KeyError) as error:
        raise FederationError(f"the job's order cannot be read ({error}); submit it anew") from error


def settings_of(settings: RunSettings) -> dict[str, Any]:
    """The run file that a job brings: without paths, and without what the coordinator's machine is told."""
    return {name: table for name, table in plain(published(settings)).items() if name != "machine"}


def _sites(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) > MOST_SITES:
        raise ValueError(f"its sites are no list of at most {MOST_SITES} names")
    return tuple(map(label, names))


def settings_for_site(settings: RunSettings) -> dict[str, Any]:
    """What a site is told of the run file: nothing of the coordinator's paths but the base's name."""
    whole = plain(published(settings))
    data = {key: whole["data"][key] for key in TRAVELLING_DATA if key in whole["data"]}
    told = {table: _without(whole[table], STAYING.get(table, ())) for table in TRAVELLING}
    return {**told, "data": {"source": "the site's own", **data}}


def _without(table: Any, keys: tuple[str, ...]) -> Any:
    return {key: value for key, value in table.items() if key not in keys} if keys else table
