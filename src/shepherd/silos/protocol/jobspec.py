"""The specification of a job, and the part of the run file that sites receive."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shepherd.errors import FederationError
from shepherd.legacy import modern
from shepherd.overrides import plain
from shepherd.settings import FederationTable, RunSettings, SilosTable, published
from shepherd.silos.protocol.schema import label

RUN_ID = "[0-9a-f]{16}"
MAX_SITES = 1000
MAX_ROUNDS = 10**9
SITE_TABLES = (
    *("model", "adapter", "federation", "tuning", "algorithm", "transforms", "privacy", "secure"),
    "evaluation",
)
"""Tables of the run file that are sent to sites."""
SITE_DATA_KEYS = ("template", "template_options", "system", "date", "holdout", "max_tokens", "seed")
"""Keys of [data] that are sent to sites: how examples are rendered, never where they come from."""
OMITTED_KEYS = {"evaluation": ("data", "metrics"), "adapter": ("start",)}
"""Keys of those tables that are not sent, since no site uses them: only the coordinator compares answers, and
reads the adapter to begin with, which sites get in the broadcast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a job brings to the server: plain values, and no secret among them."""

    run: str
    """The run's id, 16 hex digits."""
    base: str
    """Digest of the base's files."""
    fingerprint: str
    """Fingerprint of the base in memory, as checkpoints carry it."""
    version: str
    """Version of shepherd-fit at the coordinator."""
    sites: tuple[str, ...]
    """Names of the run's sites."""
    settings: Mapping[str, Any]
    """The run file with every open key filled in; see `settings_of`."""
    released: int = 0
    """Rounds that the coordinator knows of. A server that has lost some of them makes them again, and counts
    what these have spent of privacy as well."""
    again: Mapping[str, int] = field(default_factory=dict)
    """Rounds that are counted besides, by the key of a row that says what is spent; see `run.ledger`."""

    @property
    def federation(self) -> FederationTable:
        """The [federation] table of the run file."""
        return FederationTable.model_validate(modern(self.settings, "the job").get("federation", {}))

    @property
    def silos(self) -> SilosTable:
        """The [silos] table of the run file."""
        return SilosTable.model_validate(modern(self.settings, "the job").get("silos", {}))

    def text(self) -> str:
        """The specification as JSON; `read` parses it."""
        return json.dumps(
            {
                "run": self.run,
                "base": self.base,
                "fingerprint": self.fingerprint,
                "version": self.version,
                "sites": list(self.sites),
                "settings": self.settings,
                "released": self.released,
                "again": dict(self.again),
            },
            indent=1,
        )


def read(text: str) -> JobSpec:
    """Parse the specification of a job.

    Raises:
        FederationError: the text is not one.
    """
    try:
        found = json.loads(text)
        order = JobSpec(**{**found, "sites": _sites(found["sites"])})
        if not re.fullmatch(RUN_ID, order.run):  # it names a folder at the server
            raise ValueError("its run id is not 16 hex digits")
        if not all(type(count) is int and 0 <= count <= MAX_ROUNDS for count in _counts(order)):
            raise ValueError("it counts no whole number of rounds")
        return order
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FederationError(
            f"the job's specification cannot be read ({error}); submit the job again"
        ) from error


def _counts(order: JobSpec) -> tuple[int, ...]:
    return order.released, *order.again.values()


def settings_of(settings: RunSettings) -> dict[str, Any]:
    """The run file as a job carries it: without paths, and without the coordinator's [machine] table."""
    return {name: table for name, table in plain(published(settings)).items() if name != "machine"}


def _sites(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) > MAX_SITES:
        raise ValueError(f"its sites are not a list of at most {MAX_SITES} names")
    return tuple(map(label, names))


def settings_for_site(settings: RunSettings) -> dict[str, Any]:
    """The part of the run file that sites receive: no path of the coordinator's but the base's name."""
    whole = plain(published(settings))
    data = {key: whole["data"][key] for key in SITE_DATA_KEYS if key in whole["data"]}
    there = [table for table in SITE_TABLES if table in whole]  # [secure] may not be
    sent = {table: _without(whole[table], OMITTED_KEYS.get(table, ())) for table in there}
    return {**sent, "data": {"source": "the site's own", **data}}


def _without(table: Any, keys: tuple[str, ...]) -> Any:
    return {key: value for key, value in table.items() if key not in keys} if keys else table
