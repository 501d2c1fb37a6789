"""The tables of a plan and of what came of it."""

from __future__ import annotations

from io import StringIO

from shepherd.machine.estimate import Memory
from shepherd.machine.plan import Plan
from shepherd.run.disk import Disk
from shepherd.run.forecast import Forecast
from shepherd.run.measured import Figure
from shepherd.ui.terminal.forecast_table import print_forecast, print_measured

FOUND = Forecast(
    plan=Plan(
        dtype="bfloat16", device="cpu", threads=2, workers=2, stack_size=3, micro_batch_tokens=1024,
        commit=None, date="",
    ),
    parameters=8_000_000, trained=200_000, examples=900, tokens=90_000, clients=12, cohort=3.0, rounds=20,
    memory=Memory(
        process=10**9, base=16 * 10**6, adapters=10**6, optimiser=2 * 10**6, activations=10**8, server=10**6
    ),
    available_bytes=10**9, tuning_seconds=30.0, scoring_seconds=6.0, scored_rounds=5,
    bytes_down=2.4e6, bytes_up=6e5,
    disk=Disk(data=450_000, checkpoints=3_200_000, memories=0, adapter=800_000, log=28_000),
    free_disk_bytes=10**10, probe="2 and 4 of 8 layers", advice=("set machine.workers = 1",),
)  # fmt: skip


def test_the_plan_has_its_sums_and_what_to_change() -> None:
    stream = StringIO()
    print_forecast(FOUND, stream)
    said = " ".join(stream.getvalue().split())
    for words in (
        "together 1.12 GB available 1 GB",
        "together 4.48 MB available 10 GB",
        "about 32 s (tuning 30 s, scoring 6 s where it is scored), 2.4 MB down and 600 kB up",
        "20 rounds: about 10 min",  # 20 * 30 s + 5 * 6 s
        "2 processes, 3 clients in a pass",
        "It does not fit. set machine.workers = 1",
    ):
        assert words in said
    assert FOUND.seconds_a_round == 31.5


def test_only_what_is_planned_and_measured_is_compared() -> None:
    stream = StringIO()
    print_measured([Figure(name="peak memory", unit="bytes", planned=None, measured=1.0)], stream)
    assert stream.getvalue() == ""
    half = Figure(name="tuning, a round", unit="seconds", planned=15.0, measured=30.0)
    print_measured([half], stream)
    assert "15 s 30 s -50%" in " ".join(stream.getvalue().split())
