"""The documents as a site: what `make docs` cannot see."""

from __future__ import annotations

import re
from pathlib import Path

from tools import docs_hook

import shepherd
from shepherd import core, errors

DOCS = Path(__file__).parents[2] / "docs"


def documented() -> set[str]:
    return set(re.findall(r"^::: shepherd\.([\w.]+)$", (DOCS / "api.md").read_text("utf8"), re.MULTILINE))


def test_the_reference_has_every_public_name() -> None:
    """But helpers of plug-ins that check layouts, and the names of types."""
    by_value = {path.rpartition(".")[2] for path in documented()}
    classes = {name for name in dir(errors) if isinstance(getattr(errors, name), type)}
    assert set(shepherd.__all__) - classes <= by_value
    helpers = {"Array", "Layout", "not_finite", "require_same_layout", "require_shapes", "shapes_of"}
    assert set(core.__all__) - helpers <= by_value
    assert "errors" in documented()


def test_every_decision_is_in_the_navigation() -> None:
    config = {"nav": [{"Tutorial": []}, {docs_hook.SECTION: []}], "docs_dir": str(DOCS)}
    docs_hook.on_config(config)
    listed = config["nav"][1][docs_hook.SECTION]
    assert listed == sorted(f"decisions/{path.name}" for path in (DOCS / "decisions").glob("*.md"))
    assert len(listed) >= 25


def test_no_page_calls_another_host() -> None:
    """Fonts and diagrams of the theme would come from elsewhere."""
    config = (DOCS.parent / "mkdocs.yml").read_text("utf8")
    assert re.search(r"^  font: false\b", config, re.MULTILINE)
    assert not any("```mermaid" in page.read_text("utf8") for page in DOCS.rglob("*.md"))
