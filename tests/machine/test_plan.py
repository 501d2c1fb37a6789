"""A plan: what it fills in, and how it lies in a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.errors import FolderError
from shepherd.machine import plan
from shepherd.machine.plan import PLAN, Plan
from shepherd.overrides import parse
from shepherd.run import folder
from shepherd.settings import MachineTable, RayTable, RunSettings

LEAST: dict[str, Any] = {"model": {"base": "tiny"}, "data": {"source": "world"}}
SIZES = st.integers(1, 2**40)
PLANS = st.builds(
    Plan,
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    device=st.sampled_from(["cpu", "cuda:0", "cuda:1", "mps"]),
    threads=SIZES,
    workers=SIZES,
    stack_size=SIZES,
    micro_batch_tokens=SIZES,
    commit=st.one_of(st.none(), st.text("0123456789abcdef", min_size=40, max_size=40)),
    date=st.one_of(st.just(""), st.dates().map(lambda day: day.isoformat())),
)
ONE = Plan(
    dtype="float32",
    device="cpu",
    threads=2,
    workers=1,
    stack_size=4,
    micro_batch_tokens=512,
    commit=None,
    date="",
)


@given(made=PLANS)
def test_a_plan_comes_back_from_its_folder_as_it_was(made: Plan, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("run")
    (path / PLAN).write_text(made.text())
    assert plan.read(path) == made


@given(made=PLANS, revision=st.one_of(st.none(), st.just("main")))
def test_a_plan_fills_in_what_was_left_open_and_nothing_else(made: Plan, revision: str | None) -> None:
    asked = parse({**LEAST, "model": {"base": "tiny", "revision": revision}, "tuning": {"max_steps": 3}})
    asked = asked.model_copy(update={"machine": MachineTable(ray=RayTable(actors=2))})
    filled = made.over(asked)
    chosen = MachineTable.model_fields.keys() - {"ray"}
    assert filled.machine.model_dump(include=chosen) == {name: getattr(made, name) for name in chosen}
    assert filled.machine.ray == asked.machine.ray
    assert (filled.model.dtype, filled.data.date) == (made.dtype, made.date)
    assert filled.model.revision == (made.commit or revision)
    before = {"machine": asked.machine, "model": asked.model, "data": asked.data}
    assert filled.model_copy(update=before) == asked
    assert made.over(filled) == filled


def test_a_folder_without_a_plan_has_it_in_its_run_file(tmp_path: Path) -> None:
    settings = parse({**LEAST, "machine": {"stack_size": 3, "threads": 1}})
    folder.create(tmp_path / "run", settings).close()
    assert plan.read(tmp_path / "run") is None
    assert folder.planned(tmp_path / "run") == settings


def test_a_run_folder_is_read_with_its_plan(tmp_path: Path) -> None:
    settings: RunSettings = parse(LEAST)
    folder.create(tmp_path / "run", settings, ONE.text()).close()
    assert folder.read_settings(tmp_path / "run") == settings
    assert folder.planned(tmp_path / "run") == ONE.over(settings)


@given(end=st.integers(0, len(ONE.text()) - 2))
def test_a_plan_that_was_cut_is_damaged_and_never_another(end: int, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("run")
    (path / PLAN).write_text(ONE.text()[:end])
    with pytest.raises(
        FolderError, match=r"plan\.json is damaged \(it is not JSON\); restore it from a copy"
    ):
        plan.read(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"workers": 0}, "workers"),
        ({"stack_size": "4"}, "stack_size"),
        ({"micro_batch_tokens": 1.5}, "micro_batch_tokens"),
        ({"threads": None}, "threads"),
        ({"dtype": "int8"}, "dtype"),
        ({"device": 3}, "device"),
        ({"commit": 7}, "commit"),
        ({"date": "tomorrow"}, "date"),
    ],
)
def test_a_plan_with_a_wrong_value_is_damaged_by_its_key(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    (tmp_path / PLAN).write_text(json.dumps({**json.loads(ONE.text()), **change}))
    with pytest.raises(FolderError, match=rf"plan\.json is damaged \({named}: ") as caught:
        plan.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", sorted(json.loads(ONE.text())))
def test_a_plan_without_a_key_is_damaged(tmp_path: Path, key: str) -> None:
    kept = json.loads(ONE.text())
    del kept[key]
    (tmp_path / PLAN).write_text(json.dumps(kept))
    with pytest.raises(FolderError, match=rf"plan\.json is damaged \({key}: "):
        plan.read(tmp_path)
