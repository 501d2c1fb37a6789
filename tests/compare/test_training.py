"""Whether a run that is there is the one that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shepherd.compare import training
from shepherd.errors import FolderError
from shepherd.machine.plan import Plan
from shepherd.overrides import parse
from shepherd.run import folder
from shepherd.settings import RunSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLAN = Plan(
    dtype="bfloat16",
    device="cuda:0",
    threads=8,
    workers=1,
    stack_size=10,
    micro_batch_tokens=16384,
    commit=COMMIT,
    date="2026-11-28",
)


def asked(**tables: Any) -> RunSettings:
    own = {"model": {"base": "owner/name"}, "data": {"source": "world", "template": "chat"}}
    return parse({name: {**own.get(name, {}), **tables.get(name, {})} for name in own.keys() | tables.keys()})


def kept(path: Path, settings: RunSettings, plan: Plan | None = PLAN) -> Path:
    folder.create(path, settings, plan and plan.text()).close()
    return path


OPEN = asked()
FILLED = asked(
    model={"dtype": "bfloat16", "revision": COMMIT},
    data={"date": "2026-11-28"},
    machine={"device": "cuda:0", "threads": 8, "stack_size": 10},
)


@pytest.mark.parametrize("wanted", [OPEN, FILLED, PLAN.over(OPEN)])
@pytest.mark.parametrize(
    ("settings", "plan"),
    [(OPEN, PLAN), (PLAN.over(OPEN), None)],
    ids=["with a plan", "of an earlier version"],
)
def test_what_a_run_took_where_it_was_left_open_is_what_was_asked(
    tmp_path: Path, settings: RunSettings, plan: Plan | None, wanted: RunSettings
) -> None:
    training.require_same(wanted, kept(tmp_path / "run", settings, plan))


@pytest.mark.parametrize("plan", [PLAN, None])
@pytest.mark.parametrize("key", ["device", "threads", "workers", "stack_size", "micro_batch_tokens"])
def test_how_a_machine_runs_it_is_no_difference(tmp_path: Path, plan: Plan | None, key: str) -> None:
    path = kept(tmp_path / "run", PLAN.over(OPEN) if plan is None else OPEN, plan)
    training.require_same(asked(machine={key: "cpu" if key == "device" else 3}), path)


@pytest.mark.parametrize(
    ("key", "tables"),
    [
        ("model.dtype", {"model": {"dtype": "float32"}}),
        ("model.revision", {"model": {"revision": "v2"}}),
        ("data.date", {"data": {"date": "2026-11-29"}}),
        ("tuning.max_steps", {"tuning": {"max_steps": 3}}),
        ("seed", {}),
    ],
)
def test_a_value_that_was_given_and_is_another_is_a_difference(
    tmp_path: Path, key: str, tables: dict[str, Any]
) -> None:
    wanted = asked(**tables)
    wanted = wanted.model_copy(update={"seed": 5}) if key == "seed" else wanted
    with pytest.raises(FolderError, match=rf"holds a run with {key} = .*; give output=ANOTHER_FOLDER"):
        training.require_same(wanted, kept(tmp_path / "run", OPEN))


def test_a_branch_is_no_difference_from_the_commit_that_an_earlier_version_wrote(tmp_path: Path) -> None:
    path = kept(tmp_path / "run", PLAN.over(OPEN), None)
    training.require_same(asked(model={"revision": "main"}), path)


def test_a_run_that_took_another_dtype_by_itself_is_not_the_one_that_is_asked_for(tmp_path: Path) -> None:
    path = kept(tmp_path / "run", OPEN, replace(PLAN, dtype="float32"))
    training.require_same(asked(model={"dtype": "float32"}), path)
    with pytest.raises(FolderError, match=r"model\.dtype"):
        training.require_same(asked(model={"dtype": "bfloat16"}), path)
