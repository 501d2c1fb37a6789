"""Requests for the tests of a site."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shepherd.silos.protocol.wire import Request
from shepherd.silos.site import policy
from shepherd.silos.site.policy import MonthUsage, Refusal
from shepherd.silos.site.site_settings import PolicyTable

BASE = "ab" * 32
NOON = datetime(2026, 11, 22, 12, 0)


def request(kind: Any = "train", **changed: Any) -> Request:
    """A request that the default policy grants; a mapping is a table of the run's settings."""
    tables = {name: value for name, value in changed.items() if isinstance(value, Mapping | list)}
    whole = tables.pop("settings", None)
    plain = {name: value for name, value in changed.items() if name not in tables and name != "settings"}
    settings = {
        "seed": 0,
        "model": {"base": "/home/coordinator/base"},
        "adapter": {"rank": 8},
        "data": {"source": "", "template": "plain"},
        "federation": {"rounds": 5},
        "tuning": {"epochs": 1, "batch_size": 8},
        **tables,
    }
    values = {
        "kind": kind,
        "run": "0123456789abcdef",
        "id": "q1",
        "round": 0,
        "deadline": 60.0,
        "sent": 0.0,
        "version": "1",
        "cohort": 3,
        "base": BASE,
        "settings": settings if whole is None else whole,
        "broadcast": None,
    }
    return Request(**{**values, **plain})


def refused(table: PolicyTable | Mapping[str, Any], asked: Request, **about: Any) -> Refusal | None:
    """What site-1 with 100 examples says at noon, with nothing granted yet."""
    table = table if isinstance(table, PolicyTable) else PolicyTable(**table)
    granted = MonthUsage(**{name: about.pop(name, 0) for name in ("rounds", "runs", "tries", "failures")})
    now = about.pop("now", NOON)
    return policy.refusal(
        table, asked, site="site-1", bases={BASE}, **{"examples": 100, **about}
    ) or policy.refusal_now(table, asked, site="site-1", granted=granted, now=now)
