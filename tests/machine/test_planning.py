"""What a plan is made of: what was fixed stays, and the rest is chosen from the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shepherd.errors import SettingsError
from shepherd.machine import memory, planning
from shepherd.machine.estimate import Amounts
from shepherd.machine.plan import Plan
from shepherd.overrides import parse
from shepherd.settings import MachineTable, RunSettings

WORK = Amounts(cohort=100, step_tokens=1024.0, round_tokens=0.1)


def asked(**machine: Any) -> RunSettings:
    return parse({"model": {"base": "tiny"}, "data": {"source": "world"}, "machine": machine})


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(1e12))
    monkeypatch.setattr(memory, "bytes_per_token", lambda base: 1000)


FIXED = st.fixed_dictionaries(
    {},
    optional={
        "stack_size": st.integers(1, 100),
        "workers": st.integers(1, 4),
        "micro_batch_tokens": st.integers(1, 10**5),
    },
)


@given(fixed=FIXED)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_person_fixed_stays_and_the_rest_is_a_number(llama, plenty, fixed: dict[str, int]) -> None:
    made = planning.choose(asked(**fixed), llama, WORK)
    stacks = -(-WORK.cohort // fixed.get("stack_size", 1))
    if "workers" in fixed:  # no more of them than there are stacks to tune
        fixed = {**fixed, "workers": min(fixed["workers"], int(stacks))}
    for key, value in fixed.items():
        assert getattr(made, key) == value
    assert min(made.stack_size, made.workers, made.micro_batch_tokens, made.threads) >= 1


def test_the_tokens_of_a_pass_go_by_base_and_device_unless_they_are_set(llama, plenty) -> None:
    sizes = {
        kind: planning.choose(asked(), replace(llama, device=torch.device(kind)), WORK).micro_batch_tokens
        for kind in ("cpu", "meta")
    }
    assert 0 < sizes["cpu"] < sizes["meta"]


def test_workers_are_for_a_processor(llama) -> None:
    elsewhere = replace(llama, device=torch.device("meta"))
    with pytest.raises(
        SettingsError, match=r"machine\.workers = 2 needs the device to be cpu; set .* on meta"
    ):
        planning.choose(asked(workers=2), elsewhere, WORK)


def test_rays_actors_take_the_place_of_workers_also_on_a_gpu(llama, plenty) -> None:
    made = planning.choose(asked(ray={"actors": 3}), llama, WORK)
    assert made.workers == 3
    elsewhere = replace(llama, device=torch.device("meta"))
    assert planning.choose(asked(ray={"actors": 3, "gpus": 1.0}), elsewhere, WORK).workers == 3
    with pytest.raises(SettingsError, match=r"machine\.workers = 2 .* remove it beside machine\.ray\.actors"):
        planning.choose(asked(ray={"actors": 3}, workers=2), llama, WORK)
    with pytest.raises(SettingsError, match=r"machine\.ray .* remove it from a run file over silos"):
        planning.for_coordinator(asked(ray={"actors": 3}), llama)


def test_actors_share_the_memory_of_the_nodes_that_they_fill(llama, monkeypatch) -> None:
    monkeypatch.setattr(memory, "threads", lambda: 4)
    monkeypatch.setattr(memory, "bytes_per_token", lambda base: 1000)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 * 2**30)

    def micro_batch(**ray: Any) -> int:
        machine = {"micro_batch_tokens": 10**9, "ray": ray}
        return planning.choose(asked(**machine), llama, WORK).micro_batch_tokens

    # 16 actors of two threads fill eight nodes of four, two on each; 16 of one thread fill four
    assert micro_batch(actors=16, cpus=2) == micro_batch(actors=2, cpus=2) > micro_batch(actors=16)
    assert micro_batch(actors=16) == micro_batch(actors=4)


def test_the_plan_of_a_run_file_that_says_everything_is_that(llama) -> None:
    plan = Plan(
        dtype="float32",
        device="cpu",
        threads=memory.threads(),
        workers=3,
        stack_size=5,
        micro_batch_tokens=77,
        commit=None,
        date="2026-11-28",
    )
    assert planning.from_run_file(plan.over(asked()), llama) == plan


def test_a_folder_from_before_there_were_workers_has_one_and_a_pass_of_the_usual_size(llama) -> None:
    made = planning.from_run_file(asked(stack_size=5), llama)
    assert (made.workers, made.micro_batch_tokens) == (1, memory.micro_batch(llama))


def test_a_commit_is_kept_of_a_base_on_the_hub_alone(llama) -> None:
    here = replace(llama, table=llama.table.model_copy(update={"revision": "main"}))
    there = replace(llama, table=llama.table.model_copy(update={"base": "owner/name", "revision": "c0ffee"}))
    assert planning.from_run_file(asked(stack_size=1), here).commit is None
    assert planning.from_run_file(asked(stack_size=1), there).commit == "c0ffee"


def test_a_coordinator_tunes_nothing(llama) -> None:
    made = planning.for_coordinator(asked(stack_size=9), llama)
    assert (made.workers, made.stack_size) == (1, 1)
    with pytest.raises(SettingsError, match=r"machine\.workers .* remove it from a run file over silos"):
        planning.for_coordinator(asked(workers=2), llama)
    assert asked().machine == MachineTable()
