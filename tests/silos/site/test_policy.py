"""Each rule refuses by its own name; length and hours against walking through them."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core.spending import Poisson, Spending
from shepherd.data.cursor import visit
from shepherd.errors import SettingsError
from shepherd.overrides import parse
from shepherd.silos.site import policy, released
from shepherd.silos.site.policy import MAX_TRIES, Visit, visit_length, within
from shepherd.silos.site.site_settings import PolicyTable, ScoringTable, parse_request
from tests.silos.site.asking import refused, request

MECHANISM = "tests.silos.site.noisy"
PRIVATE: dict[str, Any] = {"require_privacy": ("example",), "max_epsilon": 8.0}
NOISY: dict[str, Any] = {
    "federation": {"rounds": 5, "weights": "equal"},
    "privacy": {"examples": {"norm": 1.0, "noise": 1.0}},
}
REFUSED = {
    "trust_remote_code": ({}, {"model": {"base": "b", "trust_remote_code": True}}, {}, "code that comes"),
    "bases": ({}, {"base": "cd" * 32}, {}, f"of site-1 refuses base {'cd' * 32}; "),
    "max_rank": ({"max_rank": 8}, {"adapter": {"rank": 16}}, {}, "max_rank = 8 of site-1 refuses rank 16;"),
    "max_rounds": ({"max_rounds": 4}, {}, {}, "max_rounds = 4 of site-1 refuses 5 rounds; "),
    "max_dropout": (
        {"max_dropout": 0.3},
        {"adapter": {"dropout": 0.4}},
        {},
        "max_dropout = 0.3 of site-1 refuses dropout 0.4; lower adapter.dropout",
    ),
    "max_learning_rate": (
        {},
        {"tuning": {"learning_rate": 0.2}},
        {},
        "max_learning_rate = 0.1 of site-1 refuses a learning rate of 0.2; lower",
    ),
    "max_steps": ({"max_steps": 11}, {}, {}, "max_steps = 11 of site-1 refuses 12 steps a visit; "),
    "max_epochs": (
        {"max_epochs": 0.5},
        {"tuning": {"max_steps": 8, "batch_size": 8}},
        {},
        "max_epochs = 0.5 of site-1 refuses 0.64 epochs a visit (64 examples of 100); ",
    ),
    "loss_on": (
        {},
        {"tuning": {"loss_on": "all"}},
        {},
        'loss_on = ["responses"] of site-1 refuses a loss on',
    ),
    "algorithms": (
        {"algorithms": ("fedavg",)},
        {"algorithm": {"name": "fedprox"}},
        {},
        'algorithms = ["fedavg"] of site-1 refuses algorithm "fedprox"; ',
    ),
    "transforms": (
        {"transforms": ()},
        {"transforms": [{"name": "clip"}]},
        {},
        'transforms = [] of site-1 refuses transform "clip"; ',
    ),
    "require_noise": (
        {"require_noise": True},
        {},
        {},
        "require_noise = true of site-1 refuses a run without noise; add [privacy.examples]",
    ),
    "require_privacy": (
        PRIVATE,
        {},
        {},
        'require_privacy = ["example"] of site-1 refuses a run whose steps add no noise for each',
    ),
    "min_noise": (
        {**PRIVATE, "min_noise": 0.5},
        {**NOISY, "privacy": {"examples": {"norm": 1.0, "noise": 0.4}}},
        {},
        "min_noise = 0.5 of site-1 refuses a noise multiplier of 0.4; raise privacy.examples.noise",
    ),
    "require_secure_aggregation": (
        {"require_secure_aggregation": True},
        {},
        {},
        "require_secure_aggregation = true of site-1 refuses a run without secure aggregation; ",
    ),
    "weighted_sums": (
        {"require_secure_aggregation": True},
        {"secure": {"ring_bits": 64}, "federation": {"weights": "size"}},
        {},
        "weighted_sums = false of site-1 refuses a sum weighted by size, which may show the heaviest site's",
    ),
    "min_cohort": ({"min_cohort": 4}, {}, {}, "min_cohort = 4 of site-1 refuses a cohort of 3; "),
    "min_examples": (
        {},
        {},
        {"examples": 15},
        "min_examples = 16 of site-1 refuses to train on fewer examples;",
    ),
    "min_batch": (
        {},
        {"tuning": {"batch_size": 7}},
        {},
        "min_batch = 8 of site-1 refuses steps of 7 examples; set tuning.batch_size = 8 or more",
    ),
    "templates": (
        {"templates": ("chat", "plain")},
        {"data": {"template": "vicuna"}},
        {},
        'templates = ["chat", "plain"] of site-1 refuses template "vicuna"; ',
    ),
    "system_prompts": (
        {"system_prompts": ("Be brief.",)},
        {"data": {"system": "Be nice."}},
        {},
        'system_prompts of site-1 refuses system prompt "Be nice."; ',
    ),
    "max_tokens": (
        {},
        {"data": {"max_tokens": 300}},
        {},
        "of site-1 refuses examples of 300 tokens; set data.max_tokens = 256 or 384",
    ),
    "optimisers": (
        {"optimisers": ("adamw",)},
        {"tuning": {"optimiser": {"name": "sgd"}}},
        {},
        'optimisers = ["adamw"] of site-1 refuses optimiser "sgd"; use',
    ),
    "objectives": (
        {"objectives": ("sft",)},
        {"tuning": {"objective": {"name": "else.where"}}},
        {},
        'objectives = ["sft"] of site-1 refuses objective "else.where"; use',
    ),
    "dates": (
        {"dates": ("2026-11-27", "2026-11-28")},
        {"data": {"template": "chat", "date": "2026-11-29"}},
        {},
        'dates = ["2026-11-27", "2026-11-28"] of site-1 refuses to print the date 2026-11-29; set',
    ),
    "hours": ({"hours": "18:00-06:00"}, {}, {}, 'hours = "18:00-06:00" of site-1 refuses a request at 12:00'),
    "rounds_per_month": (
        {"rounds_per_month": 7},
        {},
        {"rounds": 7},
        "rounds_per_month = 7 of site-1 refuses to train 8 rounds in 2026-11; ",
    ),
    "runs_per_month": (
        {"runs_per_month": 2},
        {},
        {"runs": 2},
        "runs_per_month = 2 of site-1 refuses 3 runs in 2026-11; ",
    ),
    "failures_per_run": (
        {"failures_per_run": 3},
        {},
        {"failures": 3},
        "failures_per_run = 3 of site-1 refuses to continue a run of which 3 visits and scores failed",
    ),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_a_rule_refuses_by_its_name_with_what_is_allowed_and_asked(rule: str) -> None:
    table, asked, about, sentence = REFUSED[rule]
    found = refused(table, request(**asked), **about)
    assert found is not None
    assert found.rule == rule
    assert sentence in str(found)
    assert str(found).startswith(f"policy {rule}")
    assert "; " in str(found)  # and the remedy


def test_secure_aggregation_is_asked_of_the_table_and_not_of_a_name() -> None:
    asks = {"require_secure_aggregation": True}
    equal = {"secure": {"ring_bits": 32}, "federation": {"weights": "equal"}}
    assert refused(asks, request(**equal)) is None
    weighted = request(secure={"ring_bits": 32})
    assert refused({**asks, "weighted_sums": True}, weighted) is None
    assert refused({"weighted_sums": False}, weighted) is None  # where plain updates may leave, too
    for kind in ("join", "train", "score"):
        found = refused({**asks, "metrics": ("heldout",)}, request(kind))
        assert found is not None
        assert found.sentence.endswith("without secure aggregation; add [secure] to the run file")


def test_every_key_of_the_policy_refuses_something() -> None:
    by_the_ledger, in_a_sum = {"max_epsilon", "delta"}, {"secure_with", "colluding"}
    keys = set(PolicyTable.model_fields) - {"metrics"} - by_the_ledger - in_a_sum
    assert keys == set(REFUSED) - {"trust_remote_code", "bases"}


@pytest.mark.parametrize(
    ("rule", "allowed", "refusing"),
    [
        ("max_dropout", {"adapter": {"dropout": 0.5}}, {"adapter": {"dropout": 0.9999}}),
        ("max_learning_rate", {"tuning": {"learning_rate": 0.1}}, {"tuning": {"learning_rate": 1e4}}),
        ("clip_norm", {"tuning": {"clip_norm": 1e-3}}, {"tuning": {"clip_norm": 1e-12}}),
        ("clip_norm", {"tuning": {"clip_norm": False}}, {"tuning": {"clip_norm": 9e-4}}),
        ("betas", {"tuning": {"betas": [0.5, 0.5]}}, {"tuning": {"betas": [0.0, 0.999]}}),
        ("betas", {}, {"tuning": {"betas": [0.9, 0.4]}}),
        ("betas", {}, {"tuning": {"optimiser": {"name": "adamw", "betas": [0, 0.999]}}}),
        ("betas", {}, {"tuning": {"optimiser": {"name": "adamw", "betas": [0.9, float("nan")]}}}),
        ("betas", {}, {"tuning": {"optimiser": {"name": "adamw", "betas": {"a": 1}}}}),
        ("betas", {}, {"tuning": {"optimiser": {"name": "adamw", "betas": [True, 0.9]}}}),
        ("betas", {}, {"tuning": {"optimiser": {"name": "adamw", "betas": [0.1, "A" * 5000]}}}),
        ("weight_decay", {}, {"tuning": {"optimiser": {"name": "adamw", "weight_decay": 10**400}}}),
        ("mu", {"algorithm": {"name": "fedprox", "mu": 1.0}}, {"algorithm": {"name": "fedprox", "mu": 1e30}}),
        ("mu", {}, {"algorithm": {"name": "fedprox", "mu": "1e30"}}),
        ("mu", {}, {"tuning": {"learning_rate": 0.1}, "algorithm": {"name": "fedprox", "mu": 10}}),
        ("penalty", {}, {"algorithm": {"name": "local_adapter", "penalty": 1e30}}),
        ("max_rank", {}, {"algorithm": {"name": "local_adapter", "rank": 10**9}}),
        ("max_rank", {}, {"algorithm": {"name": "local_adapter", "rank": "9"}}),
        ("momentum", {}, {"tuning": {"optimiser": {"name": "sgd", "momentum": 0.999}}}),
        ("momentum", {}, {"tuning": {"optimiser": {"name": "sgd", "momentum": float("nan")}}}),
        (
            "weight_decay",
            {},
            {"tuning": {"learning_rate": 0.1, "optimiser": {"name": "sgd", "weight_decay": 10}}},
        ),
        (
            "weight_decay",
            {"tuning": {"learning_rate": 0.1, "weight_decay": 0.09}},
            {"tuning": {"learning_rate": 0.1, "weight_decay": 10.0}},
        ),
    ],
)
def test_no_extreme_of_the_optimiser_makes_an_update_of_a_few_tokens_or_steps(
    rule: str, allowed: dict[str, Any], refusing: dict[str, Any]
) -> None:
    assert refused({}, request(**allowed)) is None
    for kind in ("join", "train"):
        found = refused({}, request(kind, **refusing))
        assert found is not None
        assert found.rule == rule
        assert str(found).startswith(f"policy {rule}")
        assert len(str(found)) < 500


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"rank": 8, "min_rank": 2}, ""),
        ({"rank": 16, "min_rank": 4}, ""),
        ({"rank": 8, "min_rank": 5}, "rank 5, the lowest that the run allows; lower adapter.min_rank"),
        ({"rank": 17, "min_rank": 2}, "an adapter of rank 17, more than 4 times as much; lower adapter.rank"),
        ({"rank": 8, "ranks": {"site-1": 4}}, ""),
        ({"rank": 8, "ranks": {"site-1": 5}}, "rank 5; lower adapter.ranks of site-1"),
        ({"rank": 8, "ranks": {"site-2": 4}}, "rank 8; lower adapter.rank"),
        ({"rank": 17, "ranks": {"site-1": 4}}, "rank 17, more than 4 times as much; lower adapter.rank"),
    ],
)
@pytest.mark.parametrize("kind", ["join", "train"])
def test_the_rank_that_counts_is_the_one_that_this_site_trains(kind, adapter, said) -> None:
    found = refused({"max_rank": 4}, request(kind, adapter=adapter))
    if not said:
        assert found is None
    else:
        assert str(found).startswith("policy max_rank = 4 of site-1 refuses ")
        assert str(found).endswith(said)


@given(st.integers(16, 80), st.integers(0, 200), st.integers(8, 24), st.integers(1, 4))
def test_what_is_granted_takes_as_many_different_examples_wherever_the_site_is(
    examples: int, position: int, batch: int, count: int
) -> None:
    tuning = {"max_steps": count, "batch_size": batch}
    found = refused({"max_epochs": 99.0}, request(tuning=tuning), examples=examples)
    how = {**tuning, "seed": position, "min_batch": 8, "min_examples": 16}
    steps, _ = visit(examples, position, **how)
    if found is None:
        assert len({int(each) for step in steps for each in step}) >= 16


def test_an_answer_that_was_kept_has_the_examples_that_it_took() -> None:
    assert refused({"min_examples": 90}, request(), different=90) is None
    found = refused({"min_examples": 91}, request(), different=90)
    assert "min_examples = 91 of site-1 refuses a visit of 90 examples; raise" in str(found)


def test_a_batch_that_holds_all_examples_is_one_epoch() -> None:
    asked = request(tuning={"max_steps": 2, "batch_size": 64})
    assert refused({"max_epochs": 2.0}, asked, examples=20) is None
    assert "2 epochs a visit (40 examples of 20)" in str(refused({"max_epochs": 1.9}, asked, examples=20))


@pytest.mark.parametrize("kind", ["join", "train", "score"])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"algorithm": {"name": "ffa_lora"}, "transforms": [{"name": "clip", "norm": 1.0}]},
        {"tuning": {"max_steps": 12, "batch_size": 16}},
        {"settings": {"adapter": {"rank": 16}}},  # neither base nor source travels
    ],
)
def test_the_default_policy_grants_an_ordinary_run(kind: str, tables: dict[str, Any]) -> None:
    assert refused({"metrics": ("heldout",)} if kind == "score" else {}, request(kind, **tables)) is None


@pytest.mark.parametrize(
    "table",
    [
        {"max_rank": 8},
        {"max_rounds": 5},
        {"max_steps": 12, "max_epochs": 1.0},
        {"min_cohort": 3},
        {"min_examples": 100},
        {"rounds_per_month": 7},
        {"runs_per_month": 3},
        {"min_batch": 8},
        {"max_tokens": (512,)},
        {"failures_per_run": 5},
        {"hours": "12:00-12:01"},
    ],
)
def test_what_is_just_allowed_is_granted(table: dict[str, Any]) -> None:
    assert refused(table, request(), rounds=6, runs=2, tries=MAX_TRIES - 1, failures=4) is None


def test_what_is_about_now_does_not_keep_a_site_from_joining() -> None:
    table = {"hours": "18:00-06:00", "min_cohort": 9, "rounds_per_month": 1, "metrics": ()}
    for kind, rule in (("join", None), ("train", "min_cohort"), ("score", "metrics")):
        found = refused(table, request(kind), rounds=1)
        assert (found and found.rule) == rule


def test_before_the_data_are_looked_at_their_rules_are_left_out_and_no_other() -> None:
    asked = request(tuning={"max_steps": 25, "batch_size": 8})
    found = refused({"max_steps": 24, "hours": "18:00-06:00"}, asked, examples=None)
    assert found is not None
    assert found.rule == "max_steps"
    assert refused({"min_examples": 1000, "max_epochs": 0.01}, asked, examples=None) is None


def test_a_score_needs_as_many_examples_as_a_visit() -> None:
    assert refused({"metrics": ("heldout",)}, request("score"), scored=16) is None
    found = refused({"metrics": ("heldout",)}, request("score"), scored=15)
    assert found is not None
    assert found.rule == "min_examples"
    assert "min_examples = 16 of site-1 refuses a score over fewer held-out examples; " in str(found)


def test_a_score_has_the_budget_of_rounds_and_one_more_a_run() -> None:
    asked = request("score")
    table = {"rounds_per_month": 5, "metrics": ("heldout",)}
    assert refused(table, asked, rounds=7, runs=2) is None
    assert "to score 9 rounds" in str(refused(table, asked, rounds=8, runs=2))


@pytest.mark.parametrize(
    ("tuning", "taken"),
    [
        ({"max_steps": 1, "batch_size": 8}, 8),
        ({"epochs": 0.15, "batch_size": 8}, 15),
        ({"max_steps": 1, "batch_size": 15}, 15),
    ],
)
def test_a_visit_takes_enough_different_examples(tuning: dict[str, Any], taken: int) -> None:
    assert f"a visit of {taken} examples; raise" in str(refused({}, request(tuning=tuning)))
    assert refused({"min_examples": taken}, request(tuning=tuning)) is None


def test_options_of_a_chat_template_are_switches() -> None:
    def asked(value: object) -> Any:
        return request(data={"template": "chat", "template_options": {"enable_thinking": value}})

    assert refused({}, asked(False)) is None
    for value in ("on", 1, ["x"], {"a": True}):
        assert 'refuses template option "enable_thinking"' in str(refused({}, asked(value)))


def test_the_day_of_the_scores_may_be_printed_too() -> None:
    asked = request(data={"template": "chat", "date": "2026-11-28"})
    found = refused({}, asked)
    assert str(found).startswith("policy dates = [] of site-1 refuses to print the date 2026-11-28; leave")
    assert refused({}, asked, scoring=ScoringTable(date="2026-11-28")) is None
    other = refused({}, asked, scoring=ScoringTable(date="2026-11-27"))
    assert 'dates = ["2026-11-27"] of site-1 refuses' in str(other)
    assert refused({}, request(data={"template": "chat"})) is None


def test_a_system_prompt_is_allowed_word_by_word() -> None:
    asked = request(data={"system": "Be brief."})
    assert refused({"system_prompts": ("Be brief.",)}, asked) is None
    assert refused({"system_prompts": ("Be brief. ",)}, asked) is not None


def test_a_weight_that_tells_tokens_needs_what_counts_of_tokens_need() -> None:
    as_scored = {"data": {"template": "alpaca"}, "federation": {"weights": "tokens"}}
    assert refused({}, request(**as_scored)) is None
    otherwise = request(federation={"weights": "tokens"})
    for table, asked in (({}, otherwise), ({"metrics": ("loss",)}, request(**as_scored))):
        assert "refuses a weight that reveals its trained tokens" in str(refused(table, asked))


def test_an_adapter_is_not_scaled_beyond_all_recipes() -> None:
    assert refused({}, request(adapter={"rank": 1, "alpha": 64.0})) is None
    assert "refuses an adapter scaled by 1e+12; lower adapter.alpha" in str(
        refused({}, request(adapter={"rank": 1, "alpha": 1e12}))
    )
    assert refused({}, request(adapter={"rank": 16, "alpha": 512.0, "rank_stabilised": True})) is not None


def test_transforms_are_few() -> None:
    clips = [{"name": "clip", "norm": 1.0}]
    assert refused({}, request(transforms=8 * clips)) is None
    assert "refuses 3000 transforms" in str(refused({}, request(transforms=3000 * clips)))


def test_a_round_beyond_the_limit_is_refused_whatever_the_run_file_says() -> None:
    assert refused({"max_rounds": 5}, request(round=5)) is None
    assert "6 rounds" in str(refused({"max_rounds": 5}, request(round=6)))


@pytest.mark.parametrize("name", ["shepherd.algorithms.fedavg", "FedAvg", "fedavg ", "", "os"])
def test_an_algorithm_is_known_by_its_exact_name(name: str) -> None:
    found = refused({}, request(algorithm={"name": name}))
    assert found is not None
    assert found.rule == "algorithms"


def test_a_module_outside_runs_only_where_it_is_listed() -> None:
    asked = request(transforms=[{"name": "clip"}, {"name": "their.module"}])
    assert '"their.module"' in str(refused({}, asked))
    assert refused({"transforms": ("clip", "their.module")}, asked) is None


def test_noise_is_asked_of_what_a_transform_says_of_itself_and_not_of_a_name() -> None:
    noisy = request(transforms=[{"name": MECHANISM}])
    assert refused({"require_noise": True, "transforms": (MECHANISM,)}, noisy) is None
    assert "transforms" in str(refused({"require_noise": True}, noisy))
    named = request(transforms=[{"name": "clip"}])  # whatever it is called, it adds none
    assert "refuses a run without noise" in str(refused({"require_noise": True}, named))
    assert refused({"require_noise": True}, request(**NOISY)) is None


# --- privacy


def test_a_site_that_requires_privacy_of_examples_gets_noise_of_its_own_and_nothing_else() -> None:
    assert refused(PRIVATE, request(**NOISY)) is None
    assert "to score, which no noise hides" in str(refused(PRIVATE, request("score", **NOISY)))
    listed = {**PRIVATE, "metrics": ("heldout", "loss")}
    assert "require_privacy" in str(refused(listed, request("score", **NOISY)))
    assert released.released_metrics(PolicyTable(**listed), {"loss": 1.0, "examples": 3.0}) == {}
    at_server = request(transforms=[{"name": MECHANISM}])
    assert "require_privacy" in str(refused({**PRIVATE, "transforms": (MECHANISM,)}, at_server))


def test_a_site_that_requires_privacy_as_a_client_asks_the_mechanism() -> None:
    table = {"require_privacy": ("client",), "max_epsilon": 8.0, "transforms": (MECHANISM, "clip")}
    equal = {"federation": {"rounds": 5, "weights": "equal"}}
    assert refused(table, request(transforms=[{"name": MECHANISM}], **equal)) is None
    assert "gets no noise" in str(refused(table, request(transforms=[{"name": "clip"}], **equal)))
    assert "gets no noise" in str(refused(table, request(**NOISY)))
    by_size = request(transforms=[{"name": MECHANISM}])
    assert "a weight by examples, which no noise hides" in str(refused(table, by_size))
    little = request(transforms=[{"name": MECHANISM, "noise": 0.1}], **equal)
    assert "min_noise" in str(refused(table, little))
    # one that knows of clients that take turns alone is asked for these
    in_turns = request(transforms=[{"name": MECHANISM, "in_turns": True}], **equal)
    assert refused(table, in_turns) is None


def test_noise_that_is_correlated_counts_as_that_of_single_visits() -> None:
    """Each is one of the k rounds of a client, which spend what k of independent noise do."""
    table = {"require_privacy": ("client",), "max_epsilon": 8.0, "transforms": ("gaussian_correlated",)}
    for bands in (1, 2, 4):
        part = {"name": "gaussian_correlated", "noise": 1.5, "bands": bands}
        asked = request(transforms=[part], federation={"rounds": 5, "weights": "equal"})
        assert refused(table, asked) is None
        assert refused({"require_noise": True, "transforms": ("gaussian_correlated",)}, asked) is None
        one = Spending(noise=1.5, sampling=Poisson(chance=1.0), steps=1)
        for listed in (PolicyTable(**table), PolicyTable(transforms=("gaussian_correlated",))):
            assert policy.spending(listed, parse_request(asked.settings), 100) == [("client", one)]
    little = request(transforms=[{**part, "noise": 0.1}], federation={"rounds": 5, "weights": "equal"})
    assert "min_noise = 0.3 of site-1 refuses a noise multiplier of 0.1" in str(refused(table, little))


def test_a_transform_that_cannot_be_built_is_no_run_without_noise() -> None:
    """Its own mistake is said, whether or not noise is asked for."""
    wrong = request(transforms=[{"name": "gaussian", "noise": -1.0}], federation={"weights": "equal"})
    for table in ({"require_privacy": ("client",), "max_epsilon": 8.0}, {"require_noise": True}):
        with pytest.raises(SettingsError, match="noise"):
            refused({**table, "transforms": ("gaussian",)}, wrong)
    with pytest.raises(SettingsError, match="noise"):
        policy.spending(PolicyTable(transforms=("gaussian",)), parse_request(wrong.settings), 100)


def test_the_noise_that_clients_add_counts_as_what_it_is() -> None:
    table = {"require_privacy": ("client",), "max_epsilon": 8.0, "transforms": ("skellam", "fixed_point")}
    keys = {"federation": {"rounds": 5, "weights": "equal"}, "secure": {"ring_bits": 32}}
    noisy = request(transforms=[{"name": "skellam", "noise": 1.0}], **keys)
    assert refused(table, noisy) is None
    assert refused({"require_noise": True, "transforms": ("skellam",)}, noisy) is None
    ((unit, spent),) = policy.spending(PolicyTable(**table), parse_request(noisy.settings), examples=100)
    assert (unit, spent.noise, spent.levels, spent.steps) == ("client", 1.0, 2**15 - 1, 1)
    little = request(transforms=[{"name": "skellam", "noise": 0.1}], **keys)
    assert "min_noise = 0.3 of site-1 refuses a noise multiplier of 0.1" in str(refused(table, little))
    none = request(transforms=[{"name": "fixed_point"}], **keys)
    assert "gets no noise; add" in str(refused(table, none))


def test_a_share_of_noise_on_a_single_update_protects_nobody() -> None:
    """Without [secure] the server gets each update by itself, with 1 / honest of the variance."""
    table = {"require_privacy": ("client",), "max_epsilon": 8.0, "transforms": ("skellam", "fixed_point")}
    share = {"name": "skellam", "noise": 1.0, "honest": 1_000_000}
    alone = request(transforms=[share], federation={"rounds": 5, "weights": "equal"})
    assert "gets no noise; add" in str(refused(table, alone))
    assert "without noise" in str(refused({"require_noise": True, "transforms": ("skellam",)}, alone))
    assert policy.spending(PolicyTable(**table), parse_request(alone.settings), examples=100) == []


def test_noise_on_pairs_of_answers_is_refused_as_it_joins() -> None:
    pairs = {**NOISY, "tuning": {"objective": {"name": "dpo"}}}
    said = str(refused({**PRIVATE, "objectives": ("sft", "dpo")}, request(**pairs)))
    assert "refuses [privacy.examples] with an objective that draws 2 examples together" in said
    assert "objective" in str(refused(PRIVATE, request(**pairs)))  # by its name, where it is not allowed


def test_both_may_be_required_and_then_both_are_asked_for() -> None:
    both = {**PRIVATE, "require_privacy": ("example", "client"), "transforms": (MECHANISM,)}
    assert "gets no noise" in str(refused(both, request(**NOISY)))
    assert refused(both, request(**NOISY, transforms=[{"name": MECHANISM}])) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, 1e999])
@pytest.mark.parametrize("key", ["norm", "noise"])
def test_a_request_with_a_number_that_protects_nobody_is_no_request(key, value) -> None:
    asked = request(**{**NOISY, "privacy": {"examples": {"norm": 1.0, "noise": 1.0, key: value}}})
    with pytest.raises(SettingsError, match=rf"privacy\.examples\.{key}"):
        refused({}, asked)


@pytest.mark.parametrize("key", ["max_epsilon", "delta", "min_noise"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_a_policy_with_a_number_that_limits_nothing_is_refused(key, value) -> None:
    with pytest.raises(ValueError, match=key):
        PolicyTable(**{**PRIVATE, key: value})


def test_a_requirement_needs_a_budget_and_a_budget_a_requirement() -> None:
    with pytest.raises(ValueError, match="set max_epsilon"):
        PolicyTable(require_privacy=("example",))
    with pytest.raises(ValueError, match="set require_privacy"):
        PolicyTable(max_epsilon=8.0)


def test_the_length_of_a_protected_visit_is_what_to_expect_of_it() -> None:
    run = parse_request(request(**{**NOISY, "tuning": {"epochs": 2.0, "batch_size": 8}}).settings)
    assert visit_length(run, 100) == Visit(25, 200, round(100 * (1 - 0.92**25)))
    assert policy.spending(PolicyTable(), run, 100) == [
        ("example", Spending(noise=1.0, sampling=Poisson(chance=0.08), steps=25))
    ]


def test_a_sentence_has_one_line_and_an_end_whatever_was_asked() -> None:
    found = refused({}, request(algorithm={"name": "a\n\x1b[31m\u202e'\"" + "x" * 500}))
    assert str(found).isprintable()
    assert len(str(found)) < 300


def test_settings_that_are_no_run_files_are_named() -> None:
    with pytest.raises(SettingsError, match=r"the request: key adapter\.rank"):
        refused({}, request(adapter={"rank": 0}))
    with pytest.raises(SettingsError, match="the request: key model is not a table"):
        refused({}, request(settings={"model": 3}))


# --- how long a visit is


def tuned(**tuning: Any) -> Any:
    return parse({"model": {"base": "b"}, "data": {"source": "s"}, "tuning": tuning})


SIZES = {
    "size": st.integers(1, 40),
    "batch": st.integers(1, 12),
    "position": st.integers(0, 100),
    "least": st.integers(1, 14),
}


@given(**SIZES, epochs=st.floats(0.01, 4.0))
def test_epochs_are_as_long_as_the_cursor_goes(
    size: int, batch: int, position: int, least: int, epochs: float
) -> None:
    found = visit_length(tuned(epochs=epochs, batch_size=batch), size, least)
    how = {"epochs": epochs, "batch_size": batch, "seed": 0, "min_batch": least}
    steps, _ = visit(size, 0, **how)
    assert (found.steps, found.taken) == (len(steps), sum(map(len, steps)))
    assert found.different == len({int(each) for step in steps for each in step})
    if batch >= least:
        steps, _ = visit(size, position, **how)  # over the end of an epoch
        assert len(steps) <= found.steps + 2


@given(**{name: SIZES[name] for name in ("size", "batch", "least")}, count=st.integers(1, 30))
def test_steps_are_as_long_as_the_cursor_goes(size: int, batch: int, least: int, count: int) -> None:
    found = visit_length(tuned(max_steps=count, batch_size=batch), size, least)
    steps, _ = visit(size, 0, max_steps=count, batch_size=batch, seed=0, min_batch=least)
    assert (found.steps, found.taken) == (count, sum(map(len, steps)))
    assert found.different == len({int(each) for step in steps for each in step})


def test_neither_is_one_epoch() -> None:
    assert visit_length(tuned(batch_size=4), 10) == Visit(steps=3, taken=10, different=10)


def test_both_limits_hold_for_both_forms() -> None:
    by_steps = request(tuning={"max_steps": 20, "batch_size": 10})  # two epochs of 100
    by_epochs = request(tuning={"epochs": 2.0, "batch_size": 10})  # twenty steps
    for asked in (by_steps, by_epochs):
        assert refused({"max_steps": 20, "max_epochs": 2.0}, asked) is None
        assert "19 of site-1 refuses 20 steps" in str(refused({"max_steps": 19}, asked))
        assert "refuses 2 epochs" in str(refused({"max_epochs": 1.9}, asked))


def test_a_huge_visit_is_refused_without_walking_through_it() -> None:
    assert "max_steps" in str(refused({}, request(tuning={"max_steps": 10**18})))
    assert "max_steps" in str(refused({}, request(tuning={"epochs": 1e15})))
    assert "max_steps" in str(refused({}, request(tuning={"epochs": 1.7e308})))


# --- hours


@given(st.integers(0, 1439), st.integers(0, 1440), st.integers(0, 1439))
def test_hours_are_those_that_a_clock_goes_through(start: int, end: int, now: int) -> None:
    if start == end:
        return
    minute, passed = start, set()
    while minute != end % 1440 or not passed:
        passed.add(minute)
        minute = (minute + 1) % 1440
    hours = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    at = datetime(2026, 1, 1, now // 60, now % 60, 59)
    assert within(hours, at) == (now in passed)


# --- monotone

STRICTNESS = {  # from loose to strict
    "max_rank": [64, 16, 8, 1],
    "max_dropout": [0.9, 0.5, 0.0],
    "max_learning_rate": [1.0, 0.1, 1e-5],
    "max_steps": [10**6, 100, 10, 1],
    "max_epochs": [100.0, 2.0, 0.5],
    "max_rounds": [1000, 10, 1],
    "rounds_per_month": [1000, 10, 1],
    "runs_per_month": [1000, 10, 1],
    "failures_per_run": [1000, 10, 1],
    "templates": [("alpaca", "plain"), ("alpaca",), ()],
    "system_prompts": [("w",), ()],
    "max_tokens": [(256, 512), (512,), ()],
    "min_cohort": [1, 2, 5],
    "min_examples": [1, 16, 200],
    "algorithms": [("fedavg", "fedprox"), ("fedavg",), ()],
    "transforms": [("clip", MECHANISM, "fixed_point"), ("clip", MECHANISM), ("clip",), ()],
    "dates": [("2026-11-27", "2026-11-28"), ("2026-11-28",), ()],
    "loss_on": [("responses", "all"), ("responses",), ()],
    "require_noise": [False, True],
    "require_secure_aggregation": [False, True],
    "weighted_sums": [True, False],
    "hours": [None, "06:00-20:00", "08:00-12:01", "08:00-12:00"],
    "metrics": [("heldout",), ()],
}
LEVELS = st.fixed_dictionaries({key: st.integers(0, len(steps) - 1) for key, steps in STRICTNESS.items()})
ASKED = st.builds(
    lambda kind, rank, tuning, rounds, algorithm, transforms, cohort, day, secure: request(
        kind,
        **secure,
        data={"template": "chat", "date": day},
        adapter={"rank": rank},
        tuning=tuning,
        federation={"rounds": rounds},
        algorithm={"name": algorithm},
        transforms=[{"name": name} for name in transforms],
        cohort=cohort,
    ),
    st.sampled_from(["join", "train", "score"]),
    st.integers(1, 32),
    st.one_of(
        st.fixed_dictionaries({"epochs": st.floats(0.1, 4.0), "batch_size": st.integers(1, 64)}),
        st.fixed_dictionaries(
            {"max_steps": st.integers(1, 300), "loss_on": st.sampled_from(["all", "responses"])}
        ),
    ),
    st.integers(1, 30),
    st.sampled_from(["fedavg", "fedprox"]),
    st.lists(st.sampled_from(["clip", MECHANISM, "fixed_point"]), max_size=3, unique=True),
    st.integers(1, 6),
    st.sampled_from(["", "2026-11-28", "2026-11-27"]),
    st.sampled_from([{}, {"secure": {"ring_bits": 64}}]),
)


@given(LEVELS, st.sampled_from(sorted(STRICTNESS)), ASKED, st.integers(1, 300), st.integers(0, 20))
def test_what_a_strict_policy_grants_a_looser_one_grants(
    levels: dict[str, int], key: str, asked: Any, examples: int, granted: int
) -> None:
    def answer(some: dict[str, int]) -> bool:
        table = {name: STRICTNESS[name][level] for name, level in some.items()}
        return (
            refused(table, asked, examples=examples, rounds=granted, runs=granted, failures=granted) is None
        )

    looser = {**levels, key: max(0, levels[key] - 1)}
    if answer(levels):
        assert answer(looser)
    loosest = dict.fromkeys(levels, 0)
    strict = {**loosest, key: levels[key]}
    if not answer(loosest):
        assert not answer(strict)
