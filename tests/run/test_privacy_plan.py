"""The plan of noise on examples, and of both levels; that of clients alone is in test_private_runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from shepherd import plugins
from shepherd.errors import SettingsError
from shepherd.overrides import dump, overridden, parse
from shepherd.privacy import example_level
from shepherd.run import privacy_plan
from shepherd.settings import RunSettings
from shepherd.ui.cli.main import main
from tests import runs

GAUSSIAN = 'transforms=[{name="gaussian", noise=4.0}]'
POISSON = ["selection.name=poisson", "selection.share=0.5"]


def planned(source: str = "no-such-file.jsonl", **privacy: float) -> RunSettings:
    """One visit of 281 steps of 16 examples."""
    return parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": source},
            "split": {"by": "iid", "clients": 3},
            "federation": {"rounds": 1, "weights": "equal"},
            "tuning": {"batch_size": 16, "max_steps": 281},
            "privacy": {**privacy, "examples": {"norm": 1.0, "noise": 0.89}},
        }
    )


def test_the_plan_has_the_published_epsilon_and_finds_the_published_noise() -> None:
    found = privacy_plan.plan(planned(delta=1500**-1.1), examples=[1500], epsilon=3.0)
    assert found.clients is None
    assert found.examples.epsilon == pytest.approx(1.0, rel=0.01)
    assert found.examples.noise == pytest.approx(0.625, rel=0.01)
    said = " ".join(found.sentences())
    for part in ("Whose privacy: each example's", "Neighbouring data", "Who is trusted", "Sampling"):
        assert part in said
    assert "nothing of this run adds noise" not in said


def test_the_noise_that_is_found_is_enough_for_each_size_of_client_and_no_run_is_refused_with_it() -> None:
    sizes = {"a": 200, "b": 500, "c": 1200}
    made = overridden(planned(epsilon=2.0), ["tuning={batch_size=16, epochs=3.0}", "federation.rounds=2"])
    found = privacy_plan.plan(made, examples=list(sizes.values()), epsilon=2.0).examples
    enough = overridden(made, [f"privacy.examples.noise={found.noise!r}"])
    spent = example_level.of_run(enough, sizes).planned_epsilon
    assert 1.95 < spent <= 2.0


def test_the_examples_of_each_client_are_counted_in_the_data(tmp_path) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    made = overridden(planned(str(source)), ["data.holdout=0.0", "tuning.max_steps=2", "tuning.batch_size=4"])
    shares = privacy_plan.example_counts(made)
    assert len(shares) == 3
    assert sum(shares.values()) == len(runs.rows())
    found = privacy_plan.plan(made)
    assert found.examples.epsilon == example_level.planned(made, shares).planned_epsilon
    assert "each in the rounds that the run will ask it in" in " ".join(found.sentences())
    assert "were read for it" in " ".join(found.sentences())


@pytest.mark.parametrize("budget", [{}, {"epsilon": 8.0}])
def test_each_client_of_the_data_counts_in_the_rounds_that_will_ask_it(tmp_path, budget) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    changes = ["data.holdout=0.0", "federation.rounds=9", "tuning.max_steps=2", "tuning.batch_size=4"]
    made = overridden(planned(str(source), **budget), [*changes, "selection={name='uniform', share=0.34}"])
    found, sizes = privacy_plan.plan(made).examples, privacy_plan.example_counts(made)
    visits = example_level.asked(made, plugins.method(made), plugins.selection(made), sizes)
    assert sum(visits.values()) == 9
    assert len(set(visits.values())) > 1
    assert found.what.startswith(f"{min(visits.values())} to {max(visits.values())} visits of a client, each")
    account = example_level.planned(made, sizes)
    assert found.epsilon == max(account.epsilon(sizes[name], 2 * each) for name, each in visits.items())
    every = privacy_plan.plan(overridden(made, [GAUSSIAN, "selection.name=poisson"])).examples
    assert every.what.startswith("9 visits of a client")
    assert "each asked in every round" in " ".join(every.meaning)


def test_of_numbers_of_examples_alone_nobody_knows_whom_a_round_asks() -> None:
    made = overridden(planned(epsilon=8.0), [*POISSON, "federation.rounds=4", "tuning.max_steps=5"])
    found = privacy_plan.plan(made, examples=[300])
    assert found.examples.what.startswith("4 visits of a client, each of 5 steps")
    assert "each asked in every round" in " ".join(found.sentences())


@pytest.mark.parametrize("clients", [-1, 0, 1])
def test_too_few_clients_are_a_mistake(clients) -> None:
    settings = overridden(planned(), [GAUSSIAN, *POISSON])
    with pytest.raises(SettingsError, match=f"noise hides one of several clients, .* {clients}; add some"):
        privacy_plan.plan(settings, clients=clients, examples=[300])


def test_pairs_of_answers_have_no_plan_since_no_run_trains_them_with_noise() -> None:
    pairs = overridden(planned(), ["tuning.objective.name=dpo"])
    with pytest.raises(SettingsError, match=r"\[privacy\.examples\] protects single examples"):
        privacy_plan.plan(pairs, examples=[300])


@pytest.mark.parametrize("size", [0, -5])
def test_a_number_of_examples_that_is_none_is_a_mistake(size) -> None:
    with pytest.raises(SettingsError, match=f"--examples {size} is no number of examples"):
        privacy_plan.plan(planned(), examples=[300, size])


def test_the_sites_of_a_run_have_the_examples_and_are_counted_in_every_round() -> None:
    made = overridden(planned(), ['silos.sites=["a", "b", "c"]', "federation.rounds=2", "tuning.max_steps=5"])
    with pytest.raises(SettingsError, match=r"the sites of this run have the examples.* with --examples"):
        privacy_plan.plan(made)
    found = privacy_plan.plan(made, examples=[100, 300])
    assert found.examples.what.startswith("2 visits")
    assert found.examples.delta == 1e-5


def test_examples_without_noise_on_them_are_a_mistake() -> None:
    plain = {**planned().model_dump(exclude_none=True), "privacy": {}, "selection": {"name": "poisson"}}
    noisy = parse({**plain, "transforms": [{"name": "gaussian"}]})
    with pytest.raises(
        SettingsError, match=r"--examples is for noise on examples, .* add \[privacy\.examples\]"
    ):
        privacy_plan.plan(noisy, examples=[100])


def test_a_number_of_clients_without_noise_that_hides_them_is_a_mistake() -> None:
    with pytest.raises(SettingsError, match=r"--clients is for noise that hides clients, .* leave --clients"):
        privacy_plan.plan(planned(), clients=3, examples=[100])


def written(folder: Path, settings: RunSettings) -> str:
    path = folder / "run.toml"
    path.write_text(dump(settings))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (["privacy.epsilon=1.6"], 0, "That is within the 1.6 that privacy.epsilon allows."),
        (["privacy.epsilon=0.5"], 1, "That is above the 0.5 that privacy.epsilon allows."),
        (
            [],
            0,
            "1 visit of a client, each of 281 steps, with privacy.examples.noise = 0.89 would",
        ),
        (["privacy.examples.noise=0.0005"], 1, "can show no epsilon"),
        ([GAUSSIAN, *POISSON, "privacy.epsilon=1.6"], 0, "1 round with noise = 4 in the transform gaussian"),
        (
            [GAUSSIAN, *POISSON, "privacy.epsilon=0.8"],
            1,
            "examples.noise = 0.89 would spend epsilon 1.5",
        ),
    ],
)
def test_the_command_ends_with_1_if_one_of_the_levels_is_above_the_budget(
    tmp_path, changes, code, said
) -> None:
    path = written(tmp_path, planned())
    found = CliRunner().invoke(main, ["privacy", "plan", path, "--examples", "1500", *changes])
    assert found.exit_code == code, found.output
    assert said in found.output
