import pytest

from shepherd import plugins
from shepherd.aggregations import mean
from shepherd.config import validated
from shepherd.core import Adapter, Aggregation
from shepherd.errors import SettingsError
from shepherd.rounds import context_of
from shepherd.rounds.ranks import SiteRanks, rank_at_site, ranks_of, require_for_sites, site_ranks
from shepherd.settings import AdapterTable, RunSettings

UNEQUAL = Aggregation(combine=mean.mean, takes_ranks=True)
SIDE = Aggregation(combine=mean.mean, side_rank=3)


def of(ranks, rank=8, **keys):
    return validated(AdapterTable, {"rank": rank, "ranks": ranks, **keys}, "adapter")


@pytest.mark.parametrize(
    ("ranks", "aggregation", "found"),
    [
        ((), mean.AGGREGATION, {}),
        ((), SIDE, {"a": 8, "b": 8, "c": 8}),
        ([2, 8], UNEQUAL, {"a": 2, "b": 8, "c": 2}),
        ([1, 2, 3, 4, 5], UNEQUAL, {"a": 1, "b": 2, "c": 3}),
        ({"b": 4}, UNEQUAL, {"b": 4}),
        ({"b": 4}, SIDE, {"a": 8, "b": 4, "c": 8}),
    ],
)
def test_each_client_has_the_rank_that_the_run_file_gives_it(ranks, aggregation, found):
    assert ranks_of(of(ranks), aggregation, ["c", "a", "b"]) == found


def test_a_client_that_does_not_exist_is_named_with_the_nearest_one():
    with pytest.raises(SettingsError, match=r"names 'clinic_b', and .*did you mean 'clinic_a'"):
        ranks_of(of({"clinic_b": 4}), UNEQUAL, ["clinic_a", "ward"])


@pytest.mark.parametrize(
    ("ranks", "keys", "said"),
    [
        ([16], {}, "ranks has 16, above rank = 8"),
        ({"a": 9}, {}, "ranks has 9, above rank = 8"),
        ([0], {}, "ranks"),
        ({"a": 2.5}, {}, "ranks"),
        ([2], {"target_parameters": ["mlp.experts.down_proj"]}, "cannot be used with target_parameters"),
    ],
)
def test_an_impossible_rank_is_refused(ranks, keys, said):
    with pytest.raises(SettingsError, match=said):
        of(ranks, **keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"min_rank": 9}, "min_rank = 9 is above rank = 8"),
        ({"min_rank": 0}, "min_rank"),
        ({"min_rank": 4, "ranks": [4, 8]}, "ranks and min_rank are both set"),
        ({"min_rank": 4, "target_parameters": ["mlp.experts.down_proj"]}, "min_rank cannot be used with"),
    ],
)
def test_an_impossible_lowest_rank_is_refused(keys, said):
    with pytest.raises(SettingsError, match=said):
        validated(AdapterTable, {"rank": 8, **keys}, "adapter")


@pytest.mark.parametrize("least", [1, 3, 8])
@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100])
def test_what_a_site_trains_is_what_the_server_lets_it_train(least, most):
    """A site and the server read the same run file, and decide apart."""
    table = validated(AdapterTable, {"rank": 8, "min_rank": least}, "adapter")
    says = rank_at_site(table, "a", most)
    asked = site_ranks(table, UNEQUAL, ["a", "b"])
    assert (asked.fault("a", says) == "") == (says >= least)
    assert asked.of("a", says) == (None if says == 8 else most)
    assert asked.of("b", None) is None


def test_without_a_lowest_rank_a_site_trains_what_is_asked():
    for table, site, due in (
        (of(()), "a", 8),
        (of({"a": 4}), "a", 4),
        (of({"a": 4}), "b", 8),
    ):
        asked = site_ranks(table, UNEQUAL, ["a", "b"])
        assert rank_at_site(table, site, 2) == due
        assert asked.fault(site, due) == ""
        assert asked.of(site, due) == asked.of(site, None) == (None if due == 8 else due)
        assert asked.fault(site, due - 1) == f"it would train rank {due - 1}, and rank {due} is asked"
        assert asked.fault(site, due + 1)
    assert SiteRanks().fault("a", 10**6) == ""


@pytest.mark.parametrize("keys", [{"ranks": [4, 8]}, {"min_rank": 4}])
def test_unequal_ranks_are_refused_where_a_client_keeps_a_part_of_the_model(keys):
    tables = {"model": {"base": "tiny"}, "data": {"source": "world"}, "adapter": keys}
    tables |= {"algorithm": {"name": "local_adapter"}, "aggregation": {"name": "product"}}
    with pytest.raises(SettingsError, match=rf"adapter.{next(iter(keys))} .* \"local_adapter\""):
        plugins.method(RunSettings.model_validate(tables))


@pytest.mark.parametrize("keys", [{"ranks": {"a": 4}}, {"min_rank": 4}])
def test_sites_do_not_know_that_an_aggregation_truncates(keys):
    table = validated(AdapterTable, {"rank": 8, **keys}, "adapter")
    with pytest.raises(SettingsError, match="truncated = false"):
        require_for_sites(table, Aggregation(combine=mean.mean, takes_ranks=True, truncates=True), ["a"])


@pytest.mark.parametrize("keys", [{"ranks": [4, 8]}, {"min_rank": 4}])
def test_unequal_ranks_are_refused_before_the_run_where_factors_of_one_rank_are_averaged(keys):
    settings = RunSettings.model_validate(
        {"model": {"base": "tiny"}, "data": {"source": "world"}, "adapter": keys}
    )
    with pytest.raises(
        SettingsError, match=rf'adapter.{next(iter(keys))} .* "mean" .* set \[aggregation\] name = "product"'
    ):
        plugins.method(settings)


def test_sites_are_named_and_keep_no_ranks_beside_the_trained_ones():
    require_for_sites(of({"a": 4}), UNEQUAL, ["a", "b"])
    with pytest.raises(SettingsError, match="name each site"):
        require_for_sites(of([4]), UNEQUAL, ["a", "b"])
    with pytest.raises(SettingsError, match="3 ranks beside the trained ones"):
        require_for_sites(of(()), SIDE, ["a", "b"])
    with pytest.raises(SettingsError, match="names 'z'"):
        require_for_sites(of({"z": 4}), UNEQUAL, ["a", "b"])


def test_the_runs_seed_and_ranks_reach_an_aggregation():
    tables = {"model": {"base": "tiny"}, "data": {"source": "world"}, "adapter": {"ranks": {"b": 4, "a": 2}}}
    settings = RunSettings.model_validate({**tables, "seed": 7})
    context = context_of(settings, plugins.selection(settings), Adapter(), 2)
    assert (context.seed, context.rank, context.ranks) == (7, 8, (2, 4))
