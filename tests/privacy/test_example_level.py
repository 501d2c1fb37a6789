"""What DP-SGD at a client spends: against dp-accounting itself and the values of privacy.md 3.3."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd.errors import SettingsError
from shepherd.overrides import parse
from shepherd.privacy import example_level
from shepherd.privacy.example_level import ExampleAccount
from shepherd.settings import RunSettings, TuningTable


def account(noise: float = 1.0, batch: int = 16, **more: object) -> ExampleAccount:
    return ExampleAccount(noise=noise, batch_size=batch, **{"delta": 1e-4, **more})


def run(privacy: dict[str, object] | None = None, **tables: dict[str, object]) -> RunSettings:
    examples = {"norm": 1.0, "noise": 1.0}
    return parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world"},
            "federation": {"rounds": 4, "weights": "equal", **tables.pop("federation", {})},
            "tuning": {"batch_size": 16, "max_steps": 5, **tables.pop("tuning", {})},
            "privacy": {"examples": examples, **(privacy or {})},
            **tables,
        }
    )


@pytest.mark.parametrize(
    ("examples", "batch", "steps", "noise", "epsilon"),
    [
        (1500, 16, 281, 0.890, 1.0),
        (1500, 16, 281, 0.625, 3.0),
        (1500, 16, 281, 0.462, 8.0),
        (1500, 32, 141, 1.077, 1.0),
        (1500, 32, 141, 0.701, 3.0),
        (1500, 32, 141, 0.502, 8.0),
        (1500, 32, 470, 1.553, 1.0),
        (1500, 32, 470, 0.859, 3.0),
        (1500, 32, 470, 0.598, 8.0),
        (15000, 64, 234, 0.747, 1.0),
        (15000, 64, 234, 0.566, 3.0),
        (15000, 64, 234, 0.417, 8.0),
    ],
)
def test_the_table_of_silos_is_reproduced(examples, batch, steps, noise, epsilon) -> None:
    spent = account(noise, batch, delta=examples**-1.1).epsilon(examples, steps)
    assert spent == pytest.approx(epsilon, rel=0.01)


def test_it_is_what_dp_accounting_says_of_poisson_steps() -> None:
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(16 / 400, dp_accounting.GaussianDpEvent(1.2)), 90
    )
    theirs = pld.PLDAccountant().compose(event).get_epsilon(1e-4)
    ours = account(1.2).epsilon(400, 90)
    assert theirs <= ours <= theirs * 1.001


def test_a_client_with_fewer_examples_than_a_batch_holds_is_in_every_step() -> None:
    assert example_level.chance(5, 16) == 1.0
    assert example_level.expected_batch(5, 16) == 5
    theirs = pld.PLDAccountant().compose(
        dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), 7)
    )
    assert account(3.0, 16).epsilon(5, 7) == pytest.approx(theirs.get_epsilon(1e-4), rel=1e-3)


def test_steps_follow_the_epochs_or_are_as_asked() -> None:
    assert example_level.steps(TuningTable(max_steps=7), 1000) == 7
    assert example_level.steps(TuningTable(epochs=2.0, batch_size=16), 100) == 12  # 12.5
    assert example_level.steps(TuningTable(batch_size=32), 10) == 1
    assert example_level.steps(TuningTable(epochs=0.5, batch_size=10), 100) == 5


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(20, 400), st.integers(0, 60)), max_size=40))
def test_the_largest_is_no_less_than_any_clients(made) -> None:
    ours = account(4.0)
    found = ours.largest(made)
    assert all(found >= ours.epsilon(*one) - 1e-9 for one in made[:4])
    if len(set(made)) == 1:
        assert found == ours.epsilon(*made[0])


def test_the_largest_of_few_clients_is_exact() -> None:
    ours, made = account(4.0), [(100, 20), (300, 60), (50, 9), (300, 2)]
    assert ours.largest(made) == max(ours.epsilon(*one) for one in made)
    assert ours.largest([]) == 0.0


# --- the plan of a run


def test_a_run_that_plans_more_than_its_budget_is_refused_before_it_starts() -> None:
    sizes = {"a": 200, "b": 100}
    planned = example_level.of_run(run(), sizes)
    assert planned.planned_epsilon == max(planned.epsilon(n, 20) for n in sizes.values())
    enough = planned.planned_epsilon + 0.01
    assert example_level.of_run(run({"epsilon": enough}), sizes).limit == enough
    with pytest.raises(SettingsError, match=r"4 visits of each client would spend epsilon .* raise privacy"):
        example_level.of_run(run({"epsilon": enough - 0.1}), sizes)


def test_a_round_that_asks_a_share_counts_that_share_and_a_client_beyond_it_sits_out() -> None:
    half = example_level.of_run(run({"epsilon": 8.0}), {"a": 200}, share=0.5)
    assert half.planned == 2
    assert half.sentence.endswith("; none makes a visit that would take it above 8")
    assert half.refusal("a", 200, 5, 5) is None
    tight = example_level.of_run(run({"epsilon": half.planned_epsilon + 0.01}), {"a": 200}, share=0.5)
    assert tight.refusal("a", 200, 5, 5) is None
    refused = tight.refusal("a", 200, 10, 5)
    assert refused is not None
    assert "another visit of client a would spend epsilon" in refused
    assert "its budget is spent" in refused


def test_without_a_limit_nobody_sits_out() -> None:
    """So chance may ask one client in every round, and the account counts all of them."""
    found = example_level.of_run(run(), {"a": 200}, share=0.25)
    assert found.refusal("a", 200, 10_000, 5) is None
    assert found.planned == 4
    assert found.planned_epsilon == found.epsilon(200, 20)
    assert "4 visits of a client would spend" in found.sentence
    assert "above" not in found.sentence


def test_delta_is_below_one_over_the_examples_of_each_client() -> None:
    assert example_level.of_run(run(), {"a": 200, "b": 300}).delta == pytest.approx(300**-1.1)
    assert example_level.of_run(run({"delta": 1e-3}), {"a": 200}).delta == 1e-3
    with pytest.raises(SettingsError, match=r"delta is 0.005, and client b has 300 examples; set it"):
        example_level.of_run(run({"delta": 0.005}), {"a": 100, "b": 300})
    with pytest.raises(SettingsError, match="client b has 1 example"):
        example_level.of_run(run(), {"a": 100, "b": 1})


def test_without_the_accountant_nothing_runs(monkeypatch) -> None:
    from shepherd.privacy import accountant

    monkeypatch.setattr(accountant, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install .*\[privacy\]"):
        example_level.of_run(run(), {"a": 100})


# --- what the run file may say


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, 0, "1"])
@pytest.mark.parametrize("key", ["norm", "noise"])
def test_a_number_that_protects_nobody_is_refused(key, value) -> None:
    with pytest.raises(SettingsError, match=rf"privacy\.examples\.{key}"):
        run({"examples": {"norm": 1.0, "noise": 1.0, key: value}})


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
@pytest.mark.parametrize("key", ["epsilon", "delta"])
def test_a_budget_that_is_none_is_refused(key, value) -> None:
    with pytest.raises(SettingsError, match=rf"privacy\.{key}"):
        run({key: value})


@pytest.mark.parametrize("weights", ["examples", "tokens"])
def test_weights_by_what_was_drawn_are_refused(weights) -> None:
    with pytest.raises(SettingsError, match=rf'federation\.weights = "{weights}" tells'):
        run(federation={"weights": weights})
    assert run(federation={"weights": "size"}).federation.weights == "size"


def test_experts_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"adapter\.target_parameters"):
        run(adapter={"target_parameters": ["mlp.experts.down_proj"]})


def test_a_key_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        SettingsError, match=r"unknown key privacy\.examples\.clip; known keys there are noise, norm"
    ):
        run({"examples": {"norm": 1.0, "noise": 1.0, "clip": 1.0}})
