"""Whole runs whose examples are protected: what is reported, refused, and counted after a kill."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

import shepherd
from shepherd.errors import SettingsError
from shepherd.privacy import accountant
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings
from shepherd.ui.report.gather import collect
from shepherd.ui.report.page import html
from shepherd.ui.terminal import figures
from tests import runs

PRIVATE = {
    "privacy": {"examples": {"norm": 1.0, "noise": 2.0}},
    "federation": {"rounds": 3, "weights": "equal"},
    "selection": {"share": 1.0},
    "tuning": {"max_steps": 4, "batch_size": 4},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


def settings(llama_folder: Path, source: Path, output: Path, **tables: object) -> RunSettings:
    merged = {name: {**PRIVATE.get(name, {}), **tables.get(name, {})} for name in {*PRIVATE, *tables}}
    return runs.settings(llama_folder, source, output, **merged)


@pytest.fixture(scope="module")
def made(llama_folder, source, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "run"
    with shepherd.open_run(settings(llama_folder, source, path)) as run:
        list(run.rounds())
        sizes = {name: len(data) for name, data in run.prepared.clients.items()}
        run.finish()
    return path, sizes


def test_every_round_reports_what_the_most_exposed_client_has_spent(made) -> None:
    path, sizes = made
    rows = read_rows(path)
    for row in rows[1:]:
        steps = 4 * row["round"]
        delta = max(sizes.values()) ** -1.1
        each = [
            accountant.epsilon(
                [
                    accountant.Spending(
                        noise=2.0, sampling=accountant.Poisson(chance=min(1.0, 4 / size)), steps=steps
                    )
                ],
                delta,
            )
            for size in sizes.values()
        ]
        assert row["example_privacy"]["epsilon"] == pytest.approx(max(each), rel=1e-3)
        assert row["example_privacy"]["delta"] == pytest.approx(delta)
    assert "example_privacy" not in rows[0]


def test_nothing_of_a_visit_is_reported_that_no_noise_hides(made) -> None:
    path, _ = made
    for row in read_rows(path)[1:]:
        assert row["loss"] is None
        assert row["losses"] == {}
        assert (row["examples"], row["steps"], row["tokens"]) == (0, 0, {"seen": 0, "trained": 0})


def test_the_log_says_what_is_planned_and_no_loss(llama_folder, source, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, logger="shepherd")
    with shepherd.open_run(settings(llama_folder, source, tmp_path / "run", data={"holdout": 0.0})) as run:
        list(run.rounds())
    said = [record.getMessage() for record in caplog.records]
    assert any("3 visits of a client spend epsilon" in line for line in said)
    assert not any("loss" in line for line in said)


def test_a_run_that_plans_too_much_writes_nothing(llama_folder, source, tmp_path) -> None:
    table = settings(llama_folder, source, tmp_path / "run", privacy={"epsilon": 0.5})
    with pytest.raises(SettingsError, match=r"above privacy\.epsilon = 0\.5"):
        shepherd.open_run(table)
    assert not (tmp_path / "run").exists()


def test_what_was_saved_is_spent_and_a_resumed_run_counts_on(llama_folder, source, tmp_path, made) -> None:
    with shepherd.open_run(settings(llama_folder, source, tmp_path / "run")) as run:
        next(run.rounds())
    with shepherd.resume(tmp_path / "run") as run:
        rows = [row for _, row in run.rounds()]
    whole = [row["example_privacy"] for row in read_rows(made[0])[1:]]
    assert [row["example_privacy"] for row in rows] == whole[1:]


def test_more_rounds_are_checked_against_the_budget_again(llama_folder, source, tmp_path, made) -> None:
    spent = read_rows(made[0])[-1]["example_privacy"]["epsilon"]
    table = settings(llama_folder, source, tmp_path / "run", privacy={"epsilon": spent + 0.01})
    with shepherd.open_run(table) as run:
        list(run.rounds())
    with pytest.raises(SettingsError, match="4 visits of each client would spend"):
        shepherd.resume(tmp_path / "run", overrides=["federation.rounds=4"])


def test_the_report_page_says_what_is_spent_for_each_example(made) -> None:
    path, _ = made
    shown, last = collect(path), read_rows(path)[-1]["example_privacy"]
    assert shown["example_privacy"] == {**last, "budget": None, "norm": 1.0, "noise": 2.0}
    assert shown["rounds"][-1]["example_epsilon"] == last["epsilon"]
    page = " ".join(re.sub("<[^>]*>", "", html(shown)).split())
    assert f"Epsilon {last['epsilon']:.3g}"[:11] in page
    assert "is spent for each example, at the client that has spent most." in page
    assert "Epsilon spent by round" in html(shown)


def test_a_line_of_a_round_that_names_no_client_has_both_budgets() -> None:
    row = {
        "round": 2,
        "privacy": {"epsilon": 1.5, "delta": 1e-3},
        "example_privacy": {"epsilon": 2.5, "delta": 1e-4},
    }
    assert figures.line(row, [row], 4) == (
        "round 2/4  epsilon 2.5 at delta 0.0001 for each example  epsilon 1.5 at delta 0.001"
    )
