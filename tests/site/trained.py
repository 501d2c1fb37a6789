"""A trainer and requests to it over a tiny base, for the tests of a site."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import runs

from shepherd.core import Adapter, Broadcast, Failure
from shepherd.federation import wire
from shepherd.federation.wire import Kind, Reply, Request
from shepherd.model.digest import digest
from shepherd.site.settings import SiteSettings
from shepherd.site.trainer import Trainer

RUN = "0123456789abcdef"
NAME = "site-1"
TABLES: Mapping[str, Any] = {
    "seed": 3,
    "model": {"base": "llama", "dtype": "float32"},
    "adapter": {"rank": 2, "dropout": 0.1},
    "data": {"template": "plain", "max_tokens": 48, "holdout": 0.15},
    "federation": {"rounds": 4},
    "tuning": {"batch_size": 4, "learning_rate": 0.01, "max_steps": 3, "threads": 1},
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "transforms": [{"name": "clip", "norm": 0.05}],
}


def settings(base: Path, source: Path, **policy: Any) -> SiteSettings:
    return SiteSettings.model_validate(
        {
            "data": {"source": str(source)},
            "bases": [{"name": "llama", "folder": str(base), "sha256": digest(base)}],
            "trainer": {"device": "cpu"},
            "policy": policy,
        }
    )


def request(base: Path, kind: Kind = "train", sent: Broadcast | None = None, **more: Any) -> Request:
    round = sent.round if sent else 0
    given = {
        "kind": kind,
        "run": RUN,
        "id": wire.request_id(more.get("run", RUN), kind, round, sent),
        "round": round,
        "deadline": 120.0,
        "sent": time.time(),
        "version": wire.version(),
        "cohort": 3,
        "base": digest(base),
        "settings": TABLES,
        "broadcast": sent,
    }
    return Request(**{**given, **more})


def tables(**changed: Mapping[str, Any]) -> dict[str, Any]:
    return {**TABLES, **{name: {**TABLES.get(name, {}), **table} for name, table in changed.items()}}


def ask(trainer: Trainer, asked: Request) -> Reply:
    return wire.decode_reply(trainer.handle(wire.encode_request(asked)))


def reason(reply: Reply) -> str:
    assert isinstance(reply, Failure)
    assert reply.client == NAME
    return reply.reason


def broadcast(base: Any, round: int = 0, seed: int = 5) -> Broadcast:
    from tests.model import bases

    adapter: Adapter = bases.random_adapter(base, seed + round)
    return Broadcast(round=round, adapter=adapter, seed=100 + round, transforms=({},))


def written(folder: Path) -> Path:
    return runs.written(folder / "rows.jsonl")
