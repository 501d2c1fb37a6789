"""docs/architecture.md: its tree is the package's, and each law has tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf8")
LAWS = dict(re.findall(r"^### Law (\d+): .*?\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def modules(folder: Path) -> list[str]:
    entries = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return sorted(path.stem for path in entries if not path.stem.startswith("__"))


def test_the_tree_is_that_of_the_package() -> None:
    """All of the top level, and of a room that is drawn inside, all of it too, but for single files."""
    (tree,) = re.findall(r"```text\nsrc/shepherd/\n(.*?)```", PAGE, re.DOTALL)
    shown = re.findall(r"^(  |    )(\w+) {2,}\w", tree, re.MULTILINE)
    assert len(shown) == len(tree.splitlines())
    package = ROOT / "src" / "shepherd"
    inside: dict[str, list[str]] = {}
    for indent, name in shown:
        if len(indent) == 2:
            inside[room := name] = []
        else:
            inside[room].append(name)
    assert sorted(inside) == modules(package)
    for room, names in inside.items():
        if names:
            folders = {name for name in modules(package / room) if (package / room / name).is_dir()}
            assert folders <= set(names) <= set(modules(package / room))


@pytest.mark.parametrize("number", LAWS)
def test_a_law_has_tests(number: str) -> None:
    named = re.findall(r"`([a-z_/]+\.py)(?:::(\w+))?`", LAWS[number].partition("Tests:")[2])
    assert named
    for path, function in named:
        text = (ROOT / "tests" / path).read_text(encoding="utf8")
        assert f"\ndef {function or 'test_'}" in text, (path, function)


def test_every_law_that_the_code_cites_is_there() -> None:
    assert list(LAWS) == [str(number) for number in range(1, 13)]
    sources = (path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
    cited = {number for path in sources for number in re.findall(r"\b[Ll]aw (\d+)\b", path.read_text("utf8"))}
    assert cited
    assert cited <= LAWS.keys()
