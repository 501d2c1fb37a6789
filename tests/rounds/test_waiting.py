"""What a run file may ask of a round that ends early, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from shepherd import plugins
from shepherd.errors import SettingsError
from shepherd.overrides import parse
from shepherd.rounds.waiting import require_enough
from shepherd.settings import RunSettings


def asked(**tables: Any) -> RunSettings:
    return parse({"model": {"base": "tiny"}, "data": {"source": "world"}, **tables})


def require(clients: int = 10, **tables: Any) -> None:
    settings = asked(**tables)
    require_enough(settings, plugins.method(settings), plugins.selection(settings), clients)


def waiting(**keys: Any) -> dict[str, Any]:
    return {"min_updates": 9, **keys}


ALL = {"selection": {"name": "all"}}


def test_without_the_table_a_round_waits_for_all() -> None:
    assert plugins.method(asked()).stragglers is None
    require(1)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            {"stragglers": waiting(min_updates=11)},
            "min_updates = 11, and a round asks 10 clients; set it to 10",
        ),
        (
            {"stragglers": waiting(min_updates=4)},
            "min_updates = 4 ends a round too early: federation.quorum = 0.5 needs 5 of 10 clients",
        ),
        (
            {"stragglers": waiting(min_updates=6), "aggregation": {"name": "krum", "bad": 3}},
            'aggregation.name = "krum" needs 9 of 10 clients; set stragglers.min_updates = 9 or more',
        ),
        (
            {
                "stragglers": waiting(min_updates=6),
                "secure": {},
                "tuning": {"max_steps": 1},
                "transforms": [{"name": "fixed_point"}],
                "federation": {"weights": "equal"},
            },
            r"\[secure\] needs 7 of 10 clients",
        ),
    ],
)
def test_a_round_that_ends_too_early_is_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        require(**ALL, **tables)
    enough = {**tables, "stragglers": waiting(min_updates=9)}
    require(**ALL, **enough)


@pytest.mark.parametrize("name", ["coordinate_median", "trimmed_mean", "geometric_median", "krum", "fltrust"])
def test_a_robust_rule_waits_for_nearly_all_since_bad_clients_choose_to_be_fast(name: str) -> None:
    tables = {**ALL, "aggregation": {"name": name}}
    says = rf'min_updates = 17 .* aggregation.name = "{name}" .* needs 18 of 20 clients; .* = 18 or more'
    with pytest.raises(SettingsError, match=says):
        require(20, **tables, stragglers=waiting(min_updates=17))
    require(20, **tables, stragglers=waiting(min_updates=18))
    require(20, **{**tables, "aggregation": {"name": "mean"}}, stragglers=waiting(min_updates=10))


CARRY = {"stragglers": waiting(carry=True)}
DROP = {"stragglers": waiting()}
EQUAL = {"federation": {"weights": "equal"}}
SGD = {"tuning": {"optimiser": {"name": "sgd"}}}
UNSOUND: dict[str, tuple[dict[str, Any], str]] = {
    "scaffold": ({"algorithm": {"name": "scaffold"}, **EQUAL, **SGD}, "'scaffold' keeps or sends beside"),
    "fednova": ({"algorithm": {"name": "fednova"}, **SGD}, "'fednova' keeps or sends beside the change"),
    "fedsa_lora": ({"algorithm": {"name": "fedsa_lora"}}, "'fedsa_lora' keeps or sends beside the change"),
    "local_adapter": ({"algorithm": {"name": "local_adapter"}}, "'local_adapter' keeps or sends beside"),
    "rolora": ({"algorithm": {"name": "rolora"}}, "'rolora' sends something else in each"),
    "fed_sb": ({"algorithm": {"name": "fed_sb"}}, "'fed_sb' sends something else in each"),
    "product": ({"aggregation": {"name": "product"}}, "'product' is no mean of what the clients sent"),
    "flora": ({"aggregation": {"name": "flora"}}, "'flora' is no mean"),
    "zero_padding": ({"aggregation": {"name": "zero_padding"}}, "'zero_padding' is no mean"),
    "krum": ({"aggregation": {"name": "krum", "bad": 1}}, "'krum' is no mean"),
    "trimmed_mean": ({"aggregation": {"name": "trimmed_mean"}}, "'trimmed_mean' is no mean"),
    "fedsvd": (
        {"algorithm": {"name": "ffa_lora"}, "server": {"name": "fedsvd"}},
        "'fedsvd' rewrites these",
    ),
    "top_k": ({"transforms": [{"name": "top_k", "share": 0.1}]}, "'top_k' ties an update to its own"),
    "fedrot": ({"transforms": [{"name": "fedrot"}]}, "'fedrot' ties an update to its own"),
    "fixed_point": ({"transforms": [{"name": "fixed_point"}], **EQUAL}, "'fixed_point' ties an update"),
    "secure": (
        {"transforms": [{"name": "fixed_point"}], "secure": {}, "tuning": {"max_steps": 1}, **EQUAL},
        r"\[secure\] makes a sum of one",
    ),
    "round_robin": (
        {"selection": {"name": "round_robin", "share": 0.5}},
        "'round_robin' gives each client its turn",
    ),
    "shuffled": ({"selection": {"name": "shuffled", "share": 0.5}}, "'shuffled' gives each client its turn"),
    "size_weighted": (
        {"selection": {"name": "size_weighted", "share": 0.5}, **EQUAL},
        "'size_weighted' gives each client its turn or a chance",
    ),
    "oort": ({"selection": {"name": "oort"}}, "'oort' draws clients by their last losses"),
    "power_of_choice": ({"selection": {"name": "power_of_choice"}}, "'power_of_choice' draws clients by"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_what_a_late_update_does_not_fit_into_is_refused_by_name_and_may_be_dropped(name: str) -> None:
    tables, says = UNSOUND[name]
    with pytest.raises(SettingsError, match=says) as refusal:
        require(**{**CARRY, **tables})
    assert "set stragglers.carry = false" in str(refusal.value)
    settings = asked(**{**DROP, **tables})
    plugins.selection(settings)
    assert plugins.method(settings).stragglers is not None


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("name", ["gaussian", "skellam"])
def test_noise_that_hides_clients_is_refused_with_any_round_that_ends_early(name: str, carry: bool) -> None:
    keys = {"norm": 1.0, "noise": 1.0}
    tables = {"transforms": [{"name": name, **keys}], **EQUAL, "selection": {"name": "poisson", "share": 0.5}}
    tables |= {"selection": {"name": "uniform"}} if name == "skellam" else {}
    with pytest.raises(SettingsError, match=rf"'{name}' hides; remove \[stragglers\]"):
        plugins.method(asked(stragglers=waiting(carry=carry), **tables))


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"algorithm": {"name": "fedprox"}},
        {"selection": {"name": "uniform", "share": 0.9}},
        {"algorithm": {"name": "ffa_lora"}},
        {"server": {"name": "fedadam"}},
        {"transforms": [{"name": "clip", "norm": 1.0}, {"name": "quantise", "bits": 4}]},
        {"transforms": [{"name": "norm_bound"}]},
        {"transforms": [{"name": "top_k", "share": 0.1, "feedback": False}]},
    ],
    ids=str,
)
def test_what_is_sound_with_late_updates_is_not_refused(tables: dict[str, Any]) -> None:
    require(**{**ALL, **CARRY, **tables})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"min_updates": 0}, "min_updates"),
        ({"min_updates": 2, "wait_s": -1.0}, "wait_s"),
        ({"min_updates": 2, "speeds": {"slow_factor": 0.5}}, "slow_factor"),
        ({"wait_s": 1.0}, "min_updates"),
    ],
)
def test_values_that_mean_nothing_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=rf"stragglers.*{says}"):
        asked(stragglers=keys)
