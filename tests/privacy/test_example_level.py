"""What DP-SGD at a client spends: against dp-accounting itself and the values of privacy.md 3.3."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quadratic import update_of
from tests.rounds.test_loop import Scripted
from tests.rounds.test_loop import run as loop

from shepherd import plugins
from shepherd.core import ClientInfo, Context
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


def bent(examples: int, steps: int) -> float:
    """Grows with steps and falls with examples, by other powers than epsilon does."""
    return float(steps**0.9 / examples**0.7 if steps else 0.0)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(2, 60), st.integers(0, 60)), max_size=60))
def test_the_largest_is_that_of_the_client_that_spends_most_whatever_epsilon_is(made) -> None:
    found = [bent(*one) for one in example_level.most_exposed(made, bent)]
    assert max(found, default=0.0) == max((bent(*one) for one in made), default=0.0)
    assert all(one in made for one in example_level.most_exposed(made, bent))


@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(st.integers(20, 400), st.integers(0, 60)), max_size=12))
def test_the_largest_epsilon_is_the_true_maximum(made) -> None:
    ours = account(4.0)
    true = max((ours.epsilon(*one) for one in made), default=0.0)
    assert true - 1e-6 <= ours.largest(made) <= true * 1.001


@pytest.mark.parametrize("unequal", [False, True])
def test_of_many_sizes_of_client_a_few_are_counted_and_the_largest_is_exact(unequal) -> None:
    """In groups of equal length, with the fewest examples and most steps of each, it was a third too high."""
    ours, counted = account(0.8, 8, delta=1e-5), set()

    def epsilon(*one: int) -> float:
        counted.add(one)
        return ours.epsilon(*one)

    sizes = [round(49 * (2999 / 49) ** (k / 59)) for k in range(60)]
    visits = [1 + k * 7 % 5 if unequal else 6 for k in range(60)]
    made = [(n, each * max(1, n // 8)) for n, each in zip(sizes, visits, strict=True)]
    found = max(epsilon(*one) for one in example_level.most_exposed(made, epsilon))
    assert len(counted) < 16
    near = sorted(made, key=lambda one: -one[1] / one[0] ** 2)[:12]  # the others are far below
    assert found == max(ours.epsilon(*one) for one in near) == ours.largest(made)
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


def test_each_client_counts_with_its_own_visits_and_its_own_size() -> None:
    found = example_level.of_run(run({"epsilon": 8.0}), {"a": 200, "b": 400}, {"a": 1, "b": 3})
    assert found.planned_epsilon == max(found.epsilon(200, 5), found.epsilon(400, 15))
    assert "1 to 3 visits of a client would spend" in found.sentence
    assert found.sentence.endswith(", and privacy.epsilon allows 8")


def test_a_visit_that_was_not_planned_is_refused_if_it_is_above_the_budget() -> None:
    loose = example_level.of_run(run({"epsilon": 8.0}), {"a": 200}, {"a": 2})
    assert loose.refusal("a", 200, 10, 5) is None
    tight = example_level.of_run(run({"epsilon": loose.planned_epsilon + 0.01}), {"a": 200}, {"a": 2})
    assert tight.refusal("a", 200, 5, 5) is None
    refused = tight.refusal("a", 200, 10, 5)
    assert refused is not None
    assert "another visit of client a would spend epsilon" in refused
    assert "its budget is spent" in refused
    assert "another visit of client b" in str(tight.refusal("b", 20, 0, 5))
    assert example_level.of_run(run(), {"a": 200}).refusal("a", 200, 10_000, 5) is None


SIZES = {"cay": 90, "ann": 50, "bob": 70, "dan": 20}


def asked(**tables: dict[str, object]) -> dict[str, int] | None:
    settings = run(**tables)
    return example_level.asked(settings, plugins.method(settings), plugins.selection(settings), SIZES)


DRAWS = [
    {"name": "uniform", "share": 0.5},
    {"name": "poisson", "share": 0.5},
    {"name": "shuffled", "share": 0.5},
    {"name": "round_robin", "share": 0.3},
    {"name": "size_weighted", "share": 0.5},
]


@pytest.mark.parametrize("selection", DRAWS, ids=lambda table: table["name"])
def test_the_visits_of_a_run_are_those_of_the_cohorts_that_its_rounds_ask(selection) -> None:
    tables = {"selection": selection, "federation": {"rounds": 9}}
    settings = run(**tables)
    chosen = plugins.selection(settings)
    federation = Scripted(lambda given, cohort: (update_of(name, 0, round=given.round) for name in cohort))
    federation.infos = [ClientInfo(name=name, examples=SIZES[name]) for name in sorted(SIZES)]
    known = Context(together=chosen.together)
    done = loop(federation, until=9, select=chosen.cohort, context=known, seed=settings.seed)
    drawn = Counter(name for _, report in done for name in report.cohort)
    assert asked(**tables) == {name: drawn[name] for name in SIZES}
    assert len(set(drawn.values())) > 1 or selection["name"] == "round_robin"


@pytest.mark.parametrize(
    "tables",
    [
        {"stragglers": {"min_updates": 2, "carry": True}},
        {"selection": {"name": "poisson", "share": 0.5}, "transforms": [{"name": "gaussian"}]},
    ],
    ids=["late", "hidden"],
)
def test_where_nobody_knows_whom_a_round_asks_each_client_counts_in_all(tables) -> None:
    assert asked(**tables) is None
    found = example_level.of_run(run(), {"a": 200}, None)
    assert found.planned == {"a": 4}
    assert "4 visits of a client would spend" in found.sentence


def test_draws_that_go_by_losses_are_not_known_before_the_run() -> None:
    settings = run(selection={"name": "uniform", "share": 0.5})
    method, chosen = plugins.method(settings), plugins.selection(settings)
    assert example_level.asked(settings, method, replace(chosen, by_loss=True), SIZES) is None


def test_delta_is_below_one_over_the_examples_of_each_client() -> None:
    assert example_level.of_run(run(), {"a": 200, "b": 300}).delta == 1e-5
    assert example_level.of_run(run(), {"a": 2, "b": 3}).delta == 1e-5
    assert example_level.of_run(run(), {"a": 50_000}).delta == pytest.approx(50_000**-1.1)
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


@pytest.mark.parametrize(
    ("delta", "sizes", "said"),
    [
        (2e-3, [300, 250], "Delta 0.002 is large, and above 1 / 550, over all examples of all clients: it"),
        (2e-3, [50], "Delta 0.002 is large: it is about the chance that epsilon does not hold; set"),
        (1e-4, [9000, 8000], "large, and above 1 / 17,000, over all examples"),
        (1e-4, [9000], ""),
        (None, [5, 5], ""),
        (None, [2000] * 100, "Delta 1e-05 is large, and above 1 / 200,000, .* set privacy.delta = 1e-06"),
    ],
)
def test_a_large_delta_is_said_to_be_large_and_of_how_many(delta, sizes, said) -> None:
    made = run({} if delta is None else {"delta": delta})
    found = example_level.planned(made, {f"c{k}": n for k, n in enumerate(sizes)})
    sentences = " ".join(found.sentences())
    assert re.search(said, sentences)
    assert ("large" in sentences) == bool(said)
    assert f"below 1 / {max(sizes):,}, of the client that has most" in sentences


# --- what the run file may say


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, 0, "1", 1e300])
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
