"""A hook of mkdocs: every page in docs/decisions is in the navigation, by its own title."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECTION, FOLDER = "Decisions", "decisions"


def on_config(config: dict[str, Any]) -> None:
    """Fill the section of the decisions; a new decision needs no line in mkdocs.yml."""
    (section,) = (entry for entry in config["nav"] if SECTION in entry)
    section[SECTION] = pages(Path(config["docs_dir"]))


def pages(docs: Path) -> list[str]:
    """The decisions in their order, as paths from the folder of the documents."""
    return [path.relative_to(docs).as_posix() for path in sorted((docs / FOLDER).glob("*.md"))]
