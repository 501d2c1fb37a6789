"""Federated instruction tuning of language models: private data stay, small adapters travel.

    run = shepherd.open_run(shepherd.read("examples/demo.toml"))
    for state, row in run.rounds():
        print(row["round"], row["loss"])
    print(run.finish())

Importing the package is cheap: each name below is imported from its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shepherd import visible

if TYPE_CHECKING:
    from shepherd.consent import Consent
    from shepherd.core import (
        Adapter,
        Algorithm,
        Broadcast,
        ClientInfo,
        Failure,
        Federation,
        ServerState,
        Transform,
        Update,
        chain,
        seed_for,
    )
    from shepherd.errors import ShepherdError
    from shepherd.overrides import dump, overridden, parse, read
    from shepherd.run.answerer import Answerer, generate, load_run
    from shepherd.run.evaluation import Evaluation, evaluate_run
    from shepherd.run.inspection import inspect_data
    from shepherd.run.opening import open_run
    from shepherd.run.resuming import resume
    from shepherd.run.run import Run
    from shepherd.run.stages import open_stages
    from shepherd.settings import RunSettings

__all__ = [
    "Adapter",
    "Algorithm",
    "Answerer",
    "Broadcast",
    "ClientInfo",
    "Consent",
    "Evaluation",
    "Failure",
    "Federation",
    "Run",
    "RunSettings",
    "ServerState",
    "ShepherdError",
    "Transform",
    "Update",
    "chain",
    "dump",
    "evaluate_run",
    "generate",
    "inspect_data",
    "load_run",
    "open_run",
    "open_stages",
    "overridden",
    "parse",
    "read",
    "resume",
    "seed_for",
]

_HOME = {
    "consent": ("Consent",),
    "errors": ("ShepherdError",),
    "run.answerer": ("Answerer", "generate", "load_run"),
    "run.evaluation": ("Evaluation", "evaluate_run"),
    "run.inspection": ("inspect_data",),
    "run.opening": ("open_run",),
    "run.resuming": ("resume",),
    "run.run": ("Run",),
    "run.stages": ("open_stages",),
    "overrides": ("dump", "overridden", "parse", "read"),
    "settings": ("RunSettings",),
}

visible.in_logs(
    *("shepherd", "accelerate", "datasets", "flwr", "huggingface_hub", "nvflare", "peft", "safetensors"),
    *("tokenizers", "torch", "transformers"),
)
visible.in_warnings()


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOME.items() if name in names), "core")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
