"""The methods that are right for LoRA over a real server and real sites: the bits of a run in one process."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner

pytest.importorskip("nvflare")

from benchmarks import silos_same
from shepherd.core import ServerState
from shepherd.machine import memory
from shepherd.model import files
from shepherd.overrides import parse
from shepherd.run import checkpoint
from shepherd.run.folder import planned
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.loopback import Loopback
from shepherd.ui.cli import main

pytestmark = pytest.mark.silos

RUN: dict[str, Any] = {
    "seed": 5,
    "model": {"base": "tiny"},
    "adapter": {"rank": 2},
    "data": {"source": "world", "template": "alpaca-short", "holdout": 0.1, "limit": 72},
    "split": {"clients": 2, "by": "iid"},
    "federation": {"rounds": 2},
    "silos": {"deadline_s": 60.0},
    "tuning": {"max_steps": 2, "batch_size": 8, "learning_rate": 0.004},
    "evaluation": {"examples": 16, "answers": 0},
}
METHODS: dict[str, dict[str, Any]] = {
    "unequal ranks": {"adapter": {"rank": 4, "min_rank": 2}, "aggregation": {"name": "product"}},
    "rolora": {"algorithm": {"name": "rolora"}},
    "fedsvd": {"algorithm": {"name": "ffa_lora"}, "server": {"name": "fedsvd"}},
    "fedsa_lora": {"algorithm": {"name": "fedsa_lora"}},
}


@dataclass(frozen=True)
class Sites:
    """A federation on this machine whose first site allows two ranks."""

    made: Loopback
    configs: dict[str, Path]
    place: Path


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    place = tmp_path_factory.mktemp("methods")
    settings = parse({**RUN, "output": str(place / "unused")}, "the test")
    policy = {"algorithms": ["fedavg", "rolora", "ffa_lora", "fedsa_lora"]}
    configs = loopback.write_sites(settings, place / "sites", policy=policy)
    first = next(iter(configs.values()))
    table = tomllib.loads(first.read_text("utf8"))
    table["policy"]["max_rank"] = 2
    first.write_text(tomli_w.dumps(table), "utf8")
    with loopback.running(place / "federation", configs) as made:
        yield Sites(made, configs, place)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = memory.threads()
    memory.use_threads(1)
    yield
    memory.use_threads(before)


def ran(sites: Sites, name: str, **tables: Any) -> tuple[Path, list[str], ServerState]:
    """A run's folder, what was said, and its last state."""
    output, said = sites.place / re.sub(r"\W", "-", name), list[str]()
    run = coordinate.open_run(
        parse({**RUN, **tables, "output": str(output)}, "the test"), sites.made.admin, said.append
    )
    assert [row["failures"] for _, row in run.rounds()] == [{}, {}]
    run.finish()
    last = checkpoint.latest(output / "checkpoints")
    assert last is not None
    return output, said, checkpoint.load(last).state


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_bits_of_one_process(sites: Sites, name: str, tmp_path: Path) -> None:
    output, _, found = ran(sites, name, **METHODS[name])
    *_, (due, report) = silos_same.simulated(planned(output), sites.configs)
    assert report.failures == {}
    assert found.adapter.keys() == due.adapter.keys()
    for tensor, there in due.adapter.items():
        assert np.array_equal(found.adapter[tensor].view(np.uint32), there.view(np.uint32)), tensor
    rows = read_rows(output)
    if name != "fedsvd":  # its factors are rewritten, so that a site does not know them (decision 50)
        assert all(set(row["heldout"]["client"]) == set(sites.configs) for row in rows)
    assert rows[-1]["bytes_up"] == report.bytes_up
    if name == "fedsa_lora":
        _own_models_are_written(sites, planned(output), due, tmp_path)


def _own_models_are_written(sites: Sites, settings: Any, common: ServerState, tmp_path: Path) -> None:
    base, written = load_base(settings), []
    for site, config in sites.configs.items():
        (last,) = [
            path.name
            for path in sorted(
                (sites.made.kit(site) / "shepherd" / "state").iterdir(), key=lambda p: p.stat().st_mtime_ns
            )
        ][-1:]
        words = ["silos", "export", str(sites.made.kit(site)), "--config", str(config), "--run", last]
        said = CliRunner().invoke(main.main, [*words, "-o", str(tmp_path / site)])
        assert said.exit_code == 0, said.output
        assert "as after 2 rounds" in said.output
        written.append(files.read(tmp_path / site, base))
    for name in common.adapter:
        same = np.array_equal(written[0][name], written[1][name])
        assert same == (".lora_A." in name), name
        if same:
            assert np.array_equal(written[0][name], common.adapter[name])
