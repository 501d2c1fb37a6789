"""Whole runs that end their rounds early: rows, the clock, what is left after an interrupt, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shepherd.errors import SettingsError
from shepherd.rounds.loop import next_broadcast
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.settings import RunSettings
from tests import runs

SPEEDS = {"examples_per_s": 4.0, "slow_share": 0.25, "slow_factor": 2.5}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


def asked(base: Path, source: Path, output: Path, *, rounds: int = 6, more: Any = None, **keys: Any):
    """All of four clients in each round, with two steps of four examples a visit: two seconds, or five."""
    return runs.settings(
        base,
        source,
        output,
        selection={"share": 1.0},
        federation={"rounds": rounds},
        tuning={"max_steps": 2},
        stragglers={"min_updates": 3, "speeds": SPEEDS, **keys},
        **(more or {}),
    )


def rows_of(settings: RunSettings) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    with open_run(settings) as run:
        for _ in run.rounds():
            pass
        adapter = {name: tensor.tobytes() for name, tensor in run.state.adapter.items()}
    return read_rows(Path(settings.output)), adapter


@pytest.fixture(scope="module")
def carried(llama_folder, source, tmp_path_factory) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Rows and adapter of an undisturbed run that carries late updates."""
    return rows_of(asked(llama_folder, source, tmp_path_factory.mktemp("carried") / "run", carry=True))


def test_rounds_last_two_seconds_and_the_slow_client_is_dropped(llama_folder, source, tmp_path) -> None:
    dropped, _ = rows_of(asked(llama_folder, source, tmp_path / "dropped", rounds=2))
    (who,) = dropped[1]["late"]
    assert [row["clock_s"] for row in dropped[1:]] == [2.0, 4.0]
    assert all(row["late"] == row["dropped"] == [who] and len(row["cohort"]) == 4 for row in dropped[1:])
    assert dropped[-1]["coverage"][who] == 0.0
    assert all(row["failures"] == {} and who not in row["weights"] for row in dropped[1:])


def test_the_slow_client_is_two_rounds_late(carried) -> None:
    rows, _ = carried
    (who,) = rows[1]["late"]
    # it begins at 0 and is there at 5, in the round that ends at 6; it is asked again then, and there at 11
    assert [row.get("carried", {}) for row in rows[1:]] == [{}, {}, {who: 2}, {}, {}, {who: 2}]
    assert [row.get("late", []) for row in rows[1:]] == [[who], [], [], [who], [], []]
    assert [len(row["cohort"]) for row in rows[1:]] == [4, 3, 3, 4, 3, 3]
    each = rows[2]["bytes_up"] / 3
    assert [row["bytes_up"] / each for row in rows[1:]] == [3, 3, 4, 3, 3, 4]
    assert [row["bytes_down"] / each for row in rows[1:]] == [4, 3, 3, 4, 3, 3]
    weights = rows[3]["weights"]
    others = [part for name, part in weights.items() if name != who]
    assert weights[who] == pytest.approx(others[0] / 3**0.5)
    assert rows[-1]["coverage"][who] > 0


def test_waiting_for_all_has_the_bits_of_a_run_without_the_table(llama_folder, source, tmp_path) -> None:
    waits, adapter = rows_of(asked(llama_folder, source, tmp_path / "waits", rounds=2, min_updates=4))
    assert [row["clock_s"] for row in waits[1:]] == [5.0, 10.0]
    plain = asked(llama_folder, source, tmp_path / "plain", rounds=2).model_copy(update={"stragglers": None})
    rows, same = rows_of(plain)
    assert adapter == same
    assert [runs.without_times(row) for row in rows] == [
        {key: value for key, value in runs.without_times(row).items() if key != "clock_s"} for row in waits
    ]


@pytest.mark.parametrize("stop", [1, 3])
def test_it_resumes_to_the_same_bits_with_what_is_on_its_way(
    llama_folder, source, tmp_path, carried, stop
) -> None:
    rows, whole = carried
    with open_run(asked(llama_folder, source, tmp_path / "again", carry=True)) as run:
        for state, _ in run.rounds():
            if state.round == stop:
                break
    with resume(tmp_path / "again") as run:
        for _ in run.rounds():
            pass
        again = {name: tensor.tobytes() for name, tensor in run.state.adapter.items()}
    assert again == whole
    assert list(map(runs.without_times, read_rows(tmp_path / "again"))) == list(map(runs.without_times, rows))


def test_a_round_that_is_interrupted_leaves_no_trace(llama_folder, source, tmp_path, carried) -> None:
    _, whole = carried
    with open_run(asked(llama_folder, source, tmp_path / "again", carry=True)) as run:
        loop = run.rounds()
        next(loop)
        loop.close()
        cohort = run.simulation.local.datasets
        answers = run.clocked.run(next_broadcast(run.method, run.state, 3), sorted(cohort))
        next(answers)
        answers.close()
        for _ in run.rounds():
            pass
        assert {name: tensor.tobytes() for name, tensor in run.state.adapter.items()} == whole


def test_secure_sums_drop_who_is_late(llama_folder, source, tmp_path) -> None:
    more = {"federation": {"rounds": 2, "weights": "equal"}, "secure": {}}
    made = runs.settings(
        llama_folder, source, tmp_path / "run", selection={"share": 1.0}, tuning={"max_steps": 2},
        stragglers={"min_updates": 3, "speeds": SPEEDS}, **more,
    )  # fmt: skip
    made = made.model_validate({**made.model_dump(), "transforms": [{"name": "fixed_point", "norm": 10.0}]})
    rows, _ = rows_of(made)
    for row in rows[1:]:
        (who,) = row["late"]
        assert sorted({*row["summed"], who}) == sorted(row["cohort"])
        assert row["dropped"] == [who]


def test_what_cannot_be_is_refused_before_a_folder_is_written(llama_folder, source, tmp_path) -> None:
    with pytest.raises(SettingsError, match="min_updates = 5, and a round asks 4 clients"):
        open_run(asked(llama_folder, source, tmp_path / "run", min_updates=5))
    assert not (tmp_path / "run").exists()
