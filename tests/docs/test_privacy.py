"""docs/privacy.md says what the code sends and allows by default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shepherd.silos.protocol import jobspec
from shepherd.silos.site import released
from shepherd.silos.site.site_settings import PolicyTable

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf8")


def part(title: str) -> str:
    return PAGE.partition(f"\n### {title}\n")[2].partition("\n### ")[0]


def test_what_a_site_gets_of_the_run_file() -> None:
    text = part("What a site gets")
    tables, _, keys = text.partition("and how examples are to be written")
    named = set(re.findall(r"`([a-z_]+)`", tables.partition("these tables")[2]))
    assert named == set(jobspec.SITE_TABLES)
    data = {name.removeprefix("data.") for name in re.findall(r"`([a-z_.]+)`", keys.partition(")")[0])}
    assert data == set(jobspec.SITE_DATA_KEYS)


ROWS = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", part("Who decides it"), re.MULTILINE)


@pytest.mark.parametrize(("keys", "default"), ROWS, ids=[keys for keys, _ in ROWS])
def test_the_defaults_of_a_policy(keys: str, default: str) -> None:
    names = re.findall(r"`([a-z_]+)`", keys)
    if default[0].isdigit():
        wanted = [getattr(PolicyTable(), name) for name in names]
        assert wanted == [int(value) for value in default.split(", ")]
    for name in names:
        assert name in PolicyTable.model_fields


def test_what_bounds_a_number() -> None:
    assert set(PolicyTable().metrics) == {"loss", "examples", "tokens", "trained_tokens", "steps"}
    assert (released.CAP_NATS, released.LOSS_DIGITS, released.MAX_ROUNDS_SINCE_TRAINED) == (20.0, 2, 10)
    text = " ".join(PAGE.split())
    for words in ("counts 20 nats at most", "two digits after the point", "the last ten rounds"):
        assert words in text
