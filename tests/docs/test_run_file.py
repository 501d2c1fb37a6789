"""docs/run-file.md is what the settings say, and says all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from tools import run_file_page

from shepherd import catalogue
from shepherd.evaluate.metric import METRIC
from shepherd.plugins import Kind
from shepherd.settings import RunSettings


def test_the_page_is_fresh() -> None:
    there = run_file_page.PAGE.read_text(encoding="utf8")
    assert there == run_file_page.page(), "the settings have changed: run `python -m tools.run_file_page`"


def leaves(kind: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key)


def section(title: str) -> str:
    text = run_file_page.page()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("path", list(leaves(RunSettings)), ids=".".join)
def test_every_key_stands_in_its_table(path: tuple[str, ...]) -> None:
    *table, key = path
    name = ".".join(table)
    if key == "transforms":
        assert section("`[[transforms]]`")
    elif name in run_file_page.KINDS:
        assert f"`{key}` is one of those below" in section(f"`[{name}]`")
    else:
        assert f"\n| `{key}` |" in section(f"`[{name}]`" if table else "Top level")


@pytest.mark.parametrize("kind", [*run_file_page.KINDS.values(), METRIC], ids=lambda kind: kind.name)
def test_every_plugin_that_a_run_file_names_is_there(kind: Kind) -> None:
    text = run_file_page.page()
    for plugin in catalogue.own(kind):
        assert f"\n### `{plugin.name}`\n\n{plugin.doc}\n" in text
        for key in plugin.keys:
            assert f"\n| `{key.name}` |" in text


def test_a_row_has_type_default_and_meaning() -> None:
    (row,) = re.findall(r"\| `quorum` .*", section("`[federation]`"))
    _, key, kind, default, meaning, _ = (cell.strip() for cell in row.split("|"))
    assert (key, kind, default) == ("`quorum`", "number, above 0, 1 at most", "`0.5`")
    field = RunSettings.model_fields["federation"].annotation.model_fields["quorum"]
    assert meaning == " ".join(field.description.split())
