"""A name that is imported is one of the package, or one that whoever runs the server has listed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from shepherd.errors import FederationError
from shepherd.overrides import parse
from shepherd.silos.server import trusted_modules
from shepherd.silos.server.trusted_modules import NO_OTHERS, Trusted


def run(**tables: Any) -> Any:
    return parse({"model": {"base": "tiny"}, "data": {"source": "world"}, **tables})


def test_the_packages_own_are_taken() -> None:
    for name in ("fedavg", "fedprox", "ffa_lora"):
        trusted_modules.require(run(algorithm={"name": name}, transforms=[{"name": "clip"}]), NO_OTHERS)


@pytest.mark.parametrize(
    "name",
    ["venv.__main__", "this", "shepherd.algorithms.fedavg", "fedavg.", ".fedavg", "clip", "", "a\x1b[2J.b"],
)
def test_others_are_refused_and_not_imported(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(FederationError, match=r"not allow the algorithm .* local/plugins\.json") as error:
        trusted_modules.require(run(algorithm={"name": name}), NO_OTHERS)
    with pytest.raises(FederationError, match="does not allow the selection"):
        trusted_modules.require(run(selection={"name": name}), NO_OTHERS)
    with pytest.raises(FederationError, match="does not allow the transform"):
        trusted_modules.require(
            run(transforms=[{"name": "clip"}, {"name": name or "x"}, {"name": "no"}]), NO_OTHERS
        )
    assert set(sys.modules) == before
    assert str(error.value).isprintable()


def test_a_run_has_a_handful_of_transforms() -> None:
    trusted_modules.require(
        run(transforms=[{"name": "clip"}] * trusted_modules.MAX_SERVER_TRANSFORMS), NO_OTHERS
    )
    with pytest.raises(FederationError, match="3000 transforms"):
        trusted_modules.require(run(transforms=[{"name": "clip"}] * 3000), NO_OTHERS)


def test_a_server_lists_others_by_kind(tmp_path: Path) -> None:
    assert trusted_modules.read(tmp_path) == NO_OTHERS
    (tmp_path / "plugins.json").write_text('{"algorithms": ["their.method"]}')
    listed = trusted_modules.read(tmp_path)
    assert listed == Trusted(algorithms=frozenset({"their.method"}))
    trusted_modules.require(run(algorithm={"name": "their.method"}), listed)
    with pytest.raises(FederationError, match="does not allow the transform"):
        trusted_modules.require(run(transforms=[{"name": "their.method"}]), listed)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"algorithm": []}', '{"algorithms": "x"}', '{"algorithms": [1]}']
)
def test_a_damaged_list_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "plugins.json").write_text(text)
    with pytest.raises(FederationError, match=r"plugins\.json in the server's kit cannot be used"):
        trusted_modules.read(tmp_path)
