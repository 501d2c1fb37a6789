"""The documents as a site: what `make docs` cannot see."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

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
    helpers = {"Array", "Cohort", "Draw", "Layout", "names_at", "not_finite", "require_same_layout"}
    helpers |= {
        "Usable",
        "any_update",
        "require_shapes",
        "shapes_of",
        "share_of",
        "corner",
        "of_rank",
        "padded",
        "unpadded",
    }
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


def test_the_plugin_that_is_shown_is_one() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "plugins.md").read_text("utf8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(block, "plugins.md", "exec", dont_inherit=True), names)
    shown = names["build"](names["Config"](learning_rate=0.5))
    state = core.ServerState(round=0, adapter=core.Adapter({"a": [1.0]}))
    update = core.Update(round=0, delta=core.Adapter({"a": [2.0]}), weight=1.0, clients=("c",))
    assert isinstance(shown, core.ServerOptimiser)
    assert shown.apply(state, update).adapter["a"].tolist() == [2.0]


def test_links_of_the_front_pages_lead_somewhere() -> None:
    """mkdocs looks at docs/ alone."""
    root = DOCS.parent
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)", (root / page).read_text("utf8")):
            assert (root / link).exists(), (page, link)


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf8"))["project"]
    citation = (DOCS.parent / "CITATION.cff").read_text("utf8")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
