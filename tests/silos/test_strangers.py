"""Whoever tries to get in where he should not: none does, nothing runs, and both ends say why in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from shepherd.silos.coordinator import coordinate
from tests.silos import scene as scenes
from tests.silos.cases import CASES, Case
from tests.silos.scene import Scene

pytestmark = pytest.mark.silos
TRIES = 2


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scenes.running(tmp_path_factory.mktemp("strangers"), TRIES) as made:
        yield made


@pytest.mark.parametrize("name", CASES)
def test_none_gets_in_and_both_ends_say_why(scene: Scene, name: str) -> None:
    case: Case = CASES[name]
    found = case(scene, TRIES)
    assert found.let_in == 0
    assert found.tries >= TRIES
    for said in (found.server, found.other):
        assert said, found
        assert "\n" not in said
        assert len(said) < 500
    assert list(scene.markers.iterdir()) == []


def test_the_others_go_on_as_if_nothing_had_happened(scene: Scene, tmp_path: Path) -> None:
    """After all of it: a run over the site that was let be."""
    settings = scenes.settings(tmp_path / "run", federation={"sites": ["site-2"]})
    run = coordinate.open_run(settings, scene.admin("admin"), lambda line: None)
    rows = [row for _, row in run.rounds()]
    run.finish()
    assert len(rows) == settings.federation.rounds
