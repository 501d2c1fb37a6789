"""A trainer and requests to it over a tiny base, for the tests of a site."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shepherd.core import Adapter, Broadcast, Failure
from shepherd.model import lora
from shepherd.model.digest import digest
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Kind, Reply, Request
from shepherd.silos.site.site_settings import SiteSettings
from shepherd.silos.site.trainer import Trainer
from tests.model import bases

RUN = "0123456789abcdef"
NAME = "site-1"
TABLES: Mapping[str, Any] = {
    "seed": 3,
    "model": {"base": "llama", "dtype": "float32"},
    "adapter": {"rank": 2, "dropout": 0.1},
    "data": {"template": "plain", "max_tokens": 48, "holdout": 0.15},
    "federation": {"rounds": 4},
    "tuning": {"batch_size": 4, "learning_rate": 0.01, "max_steps": 3},
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "transforms": [{"name": "clip", "norm": 0.05}],
}
SCORING: Mapping[str, Any] = {"share": 0.15, "seed": 3, "template": "plain", "max_tokens": 48}
REMEMBERING, SLEEPING = "tests.silos.site.remembering", "tests.silos.site.sleeping"


def settings(base: Path, source: Path, **policy: Any) -> SiteSettings:
    return SiteSettings.model_validate(
        {
            "data": {"source": str(source)},
            "bases": [{"name": "llama", "folder": str(base), "sha256": digest(base)}],
            "scoring": SCORING,
            "trainer": {"device": "cpu", "threads": 1, "order_seed": 3},
            "policy": {
                "max_epochs": 100.0,
                "min_examples": 4,  # the few that these tests hold out
                "min_batch": 4,
                "max_tokens": [40, 48],
                "metrics": ["loss", "examples", "tokens", "trained_tokens", "steps", "heldout"],
                "algorithms": ["fedprox", REMEMBERING, SLEEPING],
                **policy,
            },
        }
    )


def tables(**changed: Mapping[str, Any]) -> dict[str, Any]:
    """The run's tables with some keys changed; an algorithm takes the place of the other."""
    merged = {name: {**TABLES.get(name, {}), **table} for name, table in changed.items()}
    return {**TABLES, **merged, **({"algorithm": changed["algorithm"]} if "algorithm" in changed else {})}


def request(folder: Path, sent: Broadcast | None = None, kind: Kind | None = None, /, **more: Any) -> Request:
    kind = kind or ("train" if sent else "join")
    round = sent.round if sent else 0
    given = {
        "kind": kind,
        "run": RUN,
        "id": "",
        "round": round,
        "deadline": 120.0,
        "sent": time.time(),
        "version": wire.version(),
        "cohort": 3,
        "base": digest(folder),
        "settings": TABLES,
        "broadcast": sent,
    }
    made = Request(**{**given, **more})
    return made if made.id else replace(made, id=wire.request_id(made))


def broadcast(base: Any, round: int = 0, seed: int = 5) -> Broadcast:
    adapter: Adapter = bases.random_adapter(base, seed + round)
    return Broadcast(round=round, adapter=adapter, seed=100 + round, transforms=({},))


def blank(base: Any, round: int = 0) -> Broadcast:
    """What a run begins with: an adapter that changes nothing."""
    adapter = lora.fresh(base.targets, TABLES["adapter"]["rank"], round)
    return Broadcast(round=round, adapter=adapter, seed=100 + round, transforms=({},))


def ask(trainer: Trainer, asked: Request) -> Reply:
    return wire.decode_reply(trainer.handle(wire.encode_request(asked)))


def reason(reply: Reply) -> str:
    """Why a failure failed."""
    assert isinstance(reply, Failure), reply
    assert reply.client == NAME
    return reply.reason
