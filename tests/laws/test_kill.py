"""Law 3: `kill -9` anywhere, then resume: the same bits, and no finished round is redone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests import runs

from shepherd.config import PartTable
from shepherd.consent import Consent
from shepherd.model import files
from shepherd.run import folder
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.settings import RunSettings, TrackingTable

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
SCAFFOLD = "scaffold"
FEEDBACK = {"name": "top_k", "share": 0.05}
CARRY: dict[str, Any] = {
    "selection": {"share": 1.0},
    "stragglers": {"min_updates": 3, "carry": True, "speeds": {"slow_share": 0.25, "slow_factor": 3.0}},
}
"""One of four clients is three rounds late, again and again."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def killer() -> Iterator[Callable[..., Any]]:
    """Asks `killing.py`, which is one process for all tests."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(Path(__file__).parent / "killing.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def ask(how: str, settings: RunSettings, *words: Any) -> Any:
            path = Path(settings.output).with_suffix(".toml")
            path.write_text(folder.dump(settings))
            print(json.dumps([how, str(path), *words]), file=asked, flush=True)
            return json.loads(answered.readline())

        yield ask
        asked.close()


def table(
    llama_folder: Path,
    source: Path,
    output: Path,
    algorithm: str,
    rounds: int,
    transforms: Sequence[Any] = (),
    more: dict[str, Any] | None = None,
):
    made = runs.settings(
        llama_folder,
        source,
        output,
        federation={"rounds": rounds, "weights": "equal" if algorithm == SCAFFOLD else "examples"},
        algorithm={"name": algorithm},
        tuning={"optimiser": {"name": "sgd"}} if algorithm == SCAFFOLD else {},
        evaluation={"every": 5},
        **(more or {}),
    )
    return made.model_copy(update={"transforms": tuple(PartTable(**each) for each in transforms)})


@pytest.mark.parametrize(
    ("algorithm", "transforms", "more", "rounds", "kills", "seed"),
    [
        ("fedavg", [], {}, 12, 3, 0),
        (SCAFFOLD, [], {}, 12, 3, 4),  # clients and server remember, under SGD
        ("fedavg", [FEEDBACK], {}, 12, 3, 5),  # what a client has left out so far waits for its next visit
        ("fedavg", [], CARRY, 12, 3, 0),  # late updates wait for the round in which they come
        pytest.param("fedavg", [], {}, 60, 30, 1, marks=pytest.mark.slow),
        pytest.param("fedprox", [], {}, 40, 20, 2, marks=pytest.mark.slow),
        pytest.param("ffa_lora", [], {}, 40, 20, 3, marks=pytest.mark.slow),
        pytest.param("fedavg", [FEEDBACK], {}, 40, 20, 6, marks=pytest.mark.slow),
        pytest.param("fedavg", [], CARRY, 40, 20, 8, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    killer, llama_folder, source, tmp_path, algorithm, transforms, more, rounds, kills, seed
) -> None:
    again = table(llama_folder, source, tmp_path / "killed", algorithm, rounds, transforms, more)
    lives = killer("at random", again, kills, seed)
    assert lives[-1]["exit"] == 0
    assert sum(life["exit"] == -9 for life in lives) >= min(kills - 1, 3)  # the last may be done too early
    assert any(life["exit"] == -9 and life["rounds"] for life in lives)  # some died between rounds
    told = [number for life in lives for number in life["rounds"]]
    assert told == sorted(set(told))  # no finished round is redone

    whole = table(llama_folder, source, tmp_path / "whole", algorithm, rounds, transforms, more)
    undisturbed = open_run(whole, consent=Consent(plugins=frozenset({algorithm})))
    for _ in undisturbed.rounds():
        pass
    undisturbed.finish()
    assert (tmp_path / "killed" / "adapter" / files.WEIGHTS).read_bytes() == (
        tmp_path / "whole" / "adapter" / files.WEIGHTS
    ).read_bytes()
    ours, theirs = (read_rows(tmp_path / name) for name in ("killed", "whole"))
    assert [row["round"] for row in ours] == list(range(rounds + 1))
    assert [runs.without_times(row) for row in ours] == [runs.without_times(row) for row in theirs]
    remembered = [
        {
            path.name: path.read_bytes()
            for kept in ("clients", "late")
            for path in (tmp_path / name / kept).glob("*.safetensors")
        }
        for name in ("killed", "whole")
    ]
    assert remembered[0] == remembered[1]
    assert bool(remembered[0]) == (algorithm == SCAFFOLD or bool(transforms) or bool(more))
    assert (sum(bool(row.get("carried")) for row in ours) > 1) == bool(more)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra [tensorboard]")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_around_the_trackers_log_neither_loses_nor_doubles_a_row(
    killer, llama_folder, source, tmp_path, after
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asked = table(llama_folder, source, tmp_path / "run", "fedavg", 4)
    asked = asked.model_copy(update={"tracking": TrackingTable(trackers=("tensorboard",))})
    assert killer("at a row", asked, 2, after) == -9
    assert [row["round"] for row in read_rows(tmp_path / "run")] == [0, 1, 2]
    time.sleep(1)  # TensorBoard reads files of one second in the order of their processes' numbers
    with resume(tmp_path / "run") as run:
        for _ in run.rounds():
            pass
    rows = read_rows(tmp_path / "run")
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("cohort")] == [0, 1, 2, 3, 4]
    filed = [(event.step, event.value) for event in events.Scalars("loss")]
    assert filed == [(row["round"], pytest.approx(row["loss"])) for row in rows[1:]]
