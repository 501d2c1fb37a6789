"""Keys for plug-ins of which one has no default."""

from __future__ import annotations

from typing import Any

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.plugins import Kind

VALUES: dict[str, Any] = {"share": 0.5, "field": "author"}
"""A value that would do, by the name of the key."""


def filled(kind: Kind, name: str) -> dict[str, Any]:
    """The keys that a module has to be given."""
    fields = plugins.module_of(kind, name).Config.model_fields
    return {key: VALUES[key] for key, field in fields.items() if field.is_required()}


def built(kind: Kind, name: str) -> Any:
    """A part by its name, with defaults where there are any."""
    return plugins.built(kind, PartTable(name=name, **filled(kind, name)))
