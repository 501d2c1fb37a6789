"""Whole runs with whole numbers, with [secure] and with the clients' own noise: bits, rows, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.core import Spending, Turns
from shepherd.errors import SettingsError
from shepherd.io.phrases import epsilon_text
from shepherd.overrides import dump, overridden, parse
from shepherd.privacy import accountant
from shepherd.run import ledger, privacy_plan
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.settings import RunSettings
from shepherd.silos.protocol.jobspec import settings_for_site
from shepherd.transforms.fixed_point import levels
from shepherd.ui.cli.main import main
from tests import runs

FIXED = {"name": "fixed_point", "norm": 10.0}
NOISY = {"name": "skellam", "noise": 2.0, "honest": 3}
SGD = {"optimiser": {"name": "sgd"}, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


def asked(base: Path, source: Path, output: Path, *transforms: Any, **tables: Any) -> RunSettings:
    """Three rounds of all of four clients, which count the same."""
    given = {
        "federation": {"weights": "equal"},
        "tuning": {"max_steps": 2},
        "selection": {"name": "all", "share": None},
        "machine": {"workers": 1, "micro_batch_tokens": 512},
        **tables,
    }
    made = runs.settings(base, source, output, **{k: v for k, v in given.items() if k != "selection"})
    plain = {**made.model_dump(exclude_none=True), "selection": {"name": "all"}}
    return parse({**plain, "transforms": list(transforms)})


@pytest.fixture
def table(llama_folder, source, tmp_path) -> RunSettings:
    return asked(llama_folder, source, tmp_path / "run", FIXED, secure={})


def finished(settings: RunSettings) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    with open_run(settings) as run:
        for _ in run.rounds():
            pass
        adapter = dict(run.state.adapter)
    return adapter, read_rows(Path(settings.output))


def largest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(other[name] - tensor).max()) for name, tensor in one.items())


# --- bits


@pytest.mark.parametrize("weights", ["equal", "size"])
def test_a_secure_run_differs_from_a_plain_one_by_rounding_alone(
    llama_folder, source, tmp_path, weights
) -> None:
    """Four clients over two rounds, each rounding a number by less than a step; SGD does not amplify it."""
    keys: dict[str, Any] = {} if weights == "equal" else {"largest_weight": 100.0}
    part = {**FIXED, "bits": 26, **keys}
    federation = {"federation": {"weights": weights, "rounds": 2}, "tuning": {**SGD, "max_steps": 1}}
    secure = {"ring_bits": 64}
    runs_of = {
        "plain": asked(llama_folder, source, tmp_path / "plain", **federation),
        "coded": asked(llama_folder, source, tmp_path / "coded", part, **federation),
        "secure": asked(llama_folder, source, tmp_path / "secure", part, secure=secure, **federation),
    }
    done = {name: finished(settings) for name, settings in runs_of.items()}
    plain, coded, summed = (done[name][0] for name in runs_of)
    step = 10.0 / levels(26) / (1.0 if weights == "equal" else 0.05)  # clients weigh 7 or 8 of 100
    assert largest(coded, summed) < 1e-6
    assert 0 < largest(plain, summed) < 3 * step + 1e-6
    last = [done[name][1][-1]["heldout"]["loss"] for name in runs_of]
    assert last == pytest.approx([last[0]] * 3, abs=1e-4)


def test_two_runs_have_the_same_bits_and_so_has_one_that_was_stopped(table, tmp_path) -> None:
    one, rows = finished(table)
    stopped = overridden(table, [f"output={tmp_path / 'stopped'}"])
    with open_run(stopped) as run:
        next(run.rounds())
    with resume(tmp_path / "stopped") as run:
        for _ in run.rounds():
            pass
        assert largest(one, dict(run.state.adapter)) == 0.0
    again = [runs.without_times(row) for row in read_rows(tmp_path / "stopped")]
    assert again == [runs.without_times(row) for row in rows]


def test_a_row_names_who_is_in_the_sum_and_gives_no_number_of_anyone(table) -> None:
    _, rows = finished(table)
    for row in rows[1:]:
        assert row["summed"] == row["cohort"] == [f"client-{k}" for k in range(4)]
        assert (row["weights"], row["losses"], row["loss"]) == ({}, {}, None)
        assert not {"gap", "spread", "cosine", "cosines", "contribution"} & row.keys()


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["transforms=[]"], 'add [[transforms]] name = "fixed_point"'),
        (["selection.name=oort"], "under [secure] the server learns no single one"),
        (["selection.name=power_of_choice"], 'set [selection] name = "uniform"'),
        (["transforms=[{name='clip'}]"], 'add [[transforms]] name = "fixed_point"'),
        (["transforms=[{name='gaussian'}]"], 'set [[transforms]] name = "skellam"'),
        (["transforms=[{name='fixed_point'}, {name='clip'}]"], "list fixed_point last"),
        (["transforms=[{name='clip'}, {name='skellam'}]"], "remove clip"),
        (["transforms=[{name='clip', norm=1.0}, {name='fixed_point', norm=2.0}]"], "remove clip"),
        (["transforms=[{name='fixed_point'}, {name='skellam'}]"], "remove skellam"),
        (["aggregation.name=product"], 'set [aggregation] name = "mean", or remove [secure]'),
        (["aggregation.name=ridge"], 'set [aggregation] name = "mean", or remove [secure]'),
        (["algorithm.name=fednova", "tuning.optimiser.name=sgd"], 'set [algorithm] name = "fedavg"'),
        (["algorithm.name=scaffold", "tuning.optimiser.name=sgd"], "remove the transform"),
        (["adapter.ranks=[1, 2]", "aggregation.name=zero_padding"], 'set [aggregation] name = "mean"'),
        (["evaluation.contribution=true"], "set evaluation.contribution = false"),
        (["federation.weights=size"], "largest_weight"),
        (
            [
                "federation.weights=size",
                "federation.max_share=0.3",
                "transforms=[{name='fixed_point', largest_weight=9.0}]",
            ],
            "client-1 would be 36% of a sum with the lightest clients",
        ),
        (
            ["federation.weights=size", "transforms=[{name='fixed_point', largest_weight=1e6}]"],
            "largest_weight = 1e+06 of the last of [[transforms]] is far above",
        ),
        (
            ["federation.weights=tokens", "transforms=[{name='fixed_point', largest_weight=9.0}]"],
            'set federation.weights = "equal" or "size"',
        ),
        (
            ["federation.weights=examples", "transforms=[{name='fixed_point', largest_weight=9.0}]"],
            'set federation.weights = "equal" or "size"',
        ),
        (["tuning={epochs=1}"], "set tuning.max_steps in place of tuning.epochs"),
        (["tuning={batch_size=4}"], "set tuning.max_steps in place of tuning.epochs"),
        (["algorithm.name=fedsa_lora"], "the algorithm 'fedsa_lora' has clients keep something"),
        (["algorithm.name=local_adapter"], "the algorithm 'local_adapter' has clients keep something"),
        (["transforms=[{name='norm_bound'}, {name='fixed_point'}]"], "reads each update at the server"),
        (["transforms=[{name='fixed_point', bits=4}]"], "set bits = "),
        (["selection={name='size_weighted', share=0.9}"], 'set [selection] name = "uniform"'),
        (["selection={name='poisson', share=0.5}"], 'set [selection] name = "uniform"'),
        (["selection={name='uniform', share=0.5}"], "[secure] needs 3 clients in a round"),
        (["split.clients=2"], "[secure] needs 3 clients in a round"),
        (["transforms=[{name='fixed_point', bits=31}]"], "set secure.ring_bits = 64"),
        (["transforms=[{name='fixed_point', bits=40}]"], "bits"),
        (["transforms=[{name='fixed_point', norm=nan}]"], "norm"),
        (["transforms=[{name='fixed_point', norm=inf}]"], "norm"),
        (["transforms=[{name='skellam', noise=nan}]"], "noise"),
        (["transforms=[{name='skellam', honest=0}]"], "honest"),
        (["transforms=[{name='skellam', honest=4}]"], "set honest = 3 or less"),
        (["transforms=[{name='skellam', bits=4}]"], "set bits = "),
        (["secure.ring_bits=16"], "ring_bits"),
    ],
)
def test_what_cannot_be_summed_is_refused_by_name_before_anything_is_written(
    table, tmp_path, changes, says
) -> None:
    with pytest.raises(SettingsError) as found:  # a bad value is refused as it is read
        open_run(overridden(table, changes))
    assert says in str(found.value)
    assert not (tmp_path / "run").exists()


def test_a_comparison_by_counts_that_a_sum_does_not_tell_is_refused(table, tmp_path) -> None:
    with pytest.raises(SettingsError, match=r"which \[secure\] does not tell"):
        compare(table, CompareSpec())
    assert not (tmp_path / "run").exists()


def test_sites_are_told_of_it(table) -> None:
    assert settings_for_site(table)["secure"] == {"ring_bits": 32}
    without = parse({k: v for k, v in table.model_dump(exclude_none=True).items() if k != "secure"})
    assert "secure" not in settings_for_site(without)


# --- the clients' own noise


@pytest.fixture(scope="module")
def noisy(llama_folder, source, tmp_path_factory) -> RunSettings:
    output = tmp_path_factory.mktemp("noisy") / "run"
    made = asked(llama_folder, source, output, NOISY, secure={}, privacy={"delta": 1e-3})
    with open_run(made) as run:
        for _ in run.rounds():
            pass
        run.finish()
    return made


def test_epsilon_is_the_accountants_for_a_client_in_every_round(noisy) -> None:
    spent = [Spending(noise=2.0, sampling=Turns(every=1), steps=3, levels=levels(16))]
    due = accountant.epsilon(spent, 1e-3)
    *_, last = read_rows(Path(noisy.output))
    assert set(last) == {"round", "learning_rate", "privacy", "heldout"}
    assert last["privacy"] == {"epsilon": due, "delta": 1e-3}
    kept = ledger.read(Path(noisy.output))
    assert (kept["relation"], kept["noise"], kept["epsilon"]) == ("zero one", 2.0, due)
    said = " ".join(kept["says"])
    assert "one of which changes nothing" in said
    assert "of the clients in a sum, 3 that add their shares of the noise" in said
    assert "nothing is gained by the draw" in said


def test_without_secure_it_says_that_the_process_is_trusted(noisy, tmp_path) -> None:
    plain = {k: v for k, v in noisy.model_dump(exclude_none=True).items() if k != "secure"}
    said = " ".join(privacy_plan.plan(parse(plain)).sentences())
    assert "who sees each update with the noise of its client alone, which has 1 / 3 of the variance" in said
    settings = parse({**plain, "output": str(tmp_path / "run")})
    adapter, rows = finished(settings)
    assert len(rows) == 4
    assert all(np.isfinite(tensor).all() for tensor in adapter.values())


def test_two_runs_have_other_noise_and_the_adapter_is_as_noisy_as_is_said(noisy, tmp_path) -> None:
    """One round, four shares where three are enough: 4 / 3 of the variance, over four clients."""
    short = overridden(noisy, ["federation.rounds=1"])
    loud = parse(
        {**short.model_dump(exclude_none=True), "transforms": [{**NOISY, "norm": 1e-3, "noise": 500.0}]}
    )
    found = []
    for name in ("one", "two"):
        with open_run(overridden(loud, [f"output={tmp_path / name}"])) as run:
            before = run.state.adapter
            list(run.rounds())
            after = run.state.adapter
            found.append(np.concatenate([(after[n] - t).ravel() for n, t in before.items()]))
    one, two = found
    due = 500.0 * 1e-3 * np.sqrt(4 / 3) / 4
    assert one.std() == pytest.approx(due, rel=5 / np.sqrt(len(one)))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(len(one))


def test_the_plan_of_the_command_line_shows_what_is_spent_and_who_is_trusted(noisy, tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(dump(noisy))
    found = CliRunner().invoke(main, ["privacy", "plan", str(path), "--epsilon", "3"])
    assert found.exit_code == 0, found.output
    flat = " ".join(found.output.split())
    epsilon = json.loads((Path(noisy.output) / "privacy.json").read_text())["epsilon"]
    assert (
        f"3 rounds with noise = 2 in the transform skellam would spend epsilon {epsilon_text(epsilon)}"
        in flat
    )
    assert "spends at most epsilon 3 at the same delta" in flat
    assert "add their shares of the noise and tell nobody what they added" in flat


def test_a_budget_that_is_too_small_names_the_noise_that_would_do(noisy, tmp_path) -> None:
    short = overridden(noisy, ["privacy.epsilon=1.0", f"output={tmp_path / 'run'}"])
    with pytest.raises(SettingsError, match="set noise = ") as found:
        open_run(short)
    noise = float(str(found.value).partition("set noise = ")[2].split()[0])
    tables = short.model_dump(exclude_none=True)
    open_run(parse({**tables, "transforms": [{**NOISY, "noise": noise}]})).close()
