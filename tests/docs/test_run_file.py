"""docs/run-file.md is what the settings say, and says all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import tomli_w
from pydantic import BaseModel
from tools import run_file_page

from shepherd.algorithms import fedprox
from shepherd.settings import RunSettings


def test_the_page_is_fresh() -> None:
    there = run_file_page.PAGE.read_text(encoding="utf8")
    assert there == run_file_page.page(), "the settings have changed: run `python -m tools.run_file_page`"


def leaves(kind: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], BaseModel]]:
    for key, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key), field


def section(title: str) -> str:
    text = run_file_page.page()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("path", [path for path, _ in leaves(RunSettings)], ids=".".join)
def test_every_key_stands_in_its_table(path: tuple[str, ...]) -> None:
    *table, key = path
    if key == "transforms" or ".".join(table) in run_file_page.KINDS:
        assert section(f"`[[{key}]]`" if key == "transforms" else f"`[{'.'.join(table)}]`")
        return
    assert f"\n| `{key}` |" in section(f"`[{'.'.join(table)}]`" if table else "Top level")


def test_a_row_has_type_default_and_meaning() -> None:
    (row,) = re.findall(r"\| `quorum` .*", section("`[federation]`"))
    _, key, kind, default, meaning, _ = (cell.strip() for cell in row.split("|"))
    assert (key, kind, default) == ("`quorum`", "number, above 0, 1 at most", "`0.5`")
    assert meaning == RunSettings.model_fields["federation"].annotation.model_fields["quorum"].description


def test_a_plugin_has_its_own_keys() -> None:
    found = section("`[algorithm]`").partition("### `fedprox`")[2].partition("###")[0]
    assert f"`{tomli_w.dumps({'mu': fedprox.Config().mu}).split()[-1]}`" in found
