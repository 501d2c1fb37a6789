import pytest

from shepherd import plugins
from shepherd.aggregations import mean
from shepherd.config import validated
from shepherd.core import Aggregation
from shepherd.errors import SettingsError
from shepherd.rounds.ranks import ranks_of, require_for_sites
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


def test_unequal_ranks_are_refused_before_the_run_where_factors_of_one_rank_are_averaged():
    settings = RunSettings.model_validate(
        {"model": {"base": "tiny"}, "data": {"source": "world"}, "adapter": {"ranks": [4, 8]}}
    )
    with pytest.raises(
        SettingsError, match=r'adapter.ranks .* "mean" .* set \[aggregation\] name = "product"'
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
