"""Canaries: their coins, where they are planted, and what is said of what is remembered."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from tests import runs
from tests.model import bases
from tests.quadratic import bits, update_of

from shepherd.audit import canaries
from shepherd.audit.canaries import DIRECTION, RARE, SAMPLED, Canary, Planting
from shepherd.core import Seeded, shapes_of
from shepherd.data import pipeline
from shepherd.errors import DataError, FolderError, SettingsError


@pytest.fixture(scope="module")
def base(llama_folder):
    return bases.load(llama_folder)


@pytest.fixture(scope="module")
def settings(llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    return runs.settings(llama_folder, runs.written(folder / "rows.jsonl"), folder / "run")


@pytest.fixture(scope="module")
def prepared(base, settings):
    return pipeline.prepare(settings, base.tokenizer)


def planned(base, settings, prepared, count=40, copies=(1, 4), seed=0, **more):
    rng = np.random.default_rng(seed)
    return canaries.plan(base, settings, prepared, count=count, copies=copies, rng=rng, **more)


def test_half_are_of_each_kind_and_coins_are_fair_and_independent_of_them(base, settings, prepared):
    found = planned(base, settings, prepared, count=200)
    kinds = np.array([each.kind for each in found.canaries])
    copies = np.array([each.copies for each in found.canaries])
    assert sorted(set(kinds)) == [SAMPLED, RARE]
    assert (kinds == SAMPLED).sum() == 100
    assert (copies == 1).sum() == 100
    assert len({(each.instruction, each.response) for each in found.canaries}) == 200
    sure = 1e-6
    for part in (np.ones(200, bool), kinds == RARE, copies == 1):
        assert binom.ppf(sure, part.sum(), 0.5) <= found.coins[part].sum() <= binom.isf(sure, part.sum(), 0.5)
    other = planned(base, settings, prepared, count=200, seed=1)
    assert (other.coins != found.coins).any()
    clients = [each.client for each in found.canaries]
    assert all(clients.count(name) == 50 for name in prepared.clients)


def test_canaries_are_planted_as_often_as_they_say_and_only_where_the_coin_fell(base, settings, prepared):
    found = planned(base, settings, prepared)
    tokens = canaries.tokens_of(found, settings, base)
    planted = canaries.plant(prepared, found, tokens)
    assert len(tokens) == 40
    for name, before in prepared.clients.items():
        after = planted.clients[name]
        assert (after.ids[: len(before.ids)] == before.ids).all()
        own = [each for each in found.canaries if each.client == name and each.included]
        assert len(after) - len(before) == sum(each.copies for each in own)
    everything = [
        planted.clients[name].example(i)
        for name in planted.clients
        for i in range(len(planted.clients[name]))
    ]
    texts = [ids.tobytes() for ids, _ in everything]
    for place, each in enumerate(found.canaries):
        assert texts.count(tokens.example(place)[0].tobytes()) == each.copies * each.included
    assert planted.category_counts == prepared.category_counts
    for name, data in planted.clients.items():
        assert len(planted.example_categories[name]) == len(data)
        assert set(planted.example_categories[name]) == set(prepared.example_categories[name])


def test_chosen_clients_alone_get_canaries(base, settings, prepared):
    name = next(iter(prepared.clients))
    assert {each.client for each in planned(base, settings, prepared, clients=(name,)).canaries} == {name}


def test_where_clients_are_protected_each_canary_is_a_client(base, settings, prepared):
    found = planned(base, settings, prepared, as_clients=True)
    assert len({each.client for each in found.canaries}) == 40
    kinds = [each.kind for each in found.canaries]
    assert [kinds.count(kind) for kind in (DIRECTION, SAMPLED, RARE)] == [20, 10, 10]
    planted = canaries.plant(prepared, found, canaries.tokens_of(found, settings, base))
    assert len(planted.clients) == 4 + found.coins.sum()
    assert planted.clients.keys() == planted.category_counts.keys()
    assert all(planted.clients[name] is prepared.clients[name] for name in prepared.clients)
    assert {name: len(data) for name, data in planted.clients.items()} == {
        name: len(each) for name, each in planted.example_categories.items()
    }
    for each in found.canaries:
        assert (each.client in planted.clients) == each.included
    with pytest.raises(SettingsError, match="leave out the clients"):
        planned(base, settings, prepared, as_clients=True, clients=(next(iter(prepared.clients)),))


def test_rare_words_are_those_that_the_data_hold_least(base, prepared):
    data = [*prepared.clients.values(), prepared.heldout]
    words = canaries.rare_words(base.tokenizer, data, np.random.default_rng(0))
    counts = np.bincount(np.concatenate([each.ids for each in data]), minlength=len(base.tokenizer))
    ids = [base.tokenizer.convert_tokens_to_ids(word) for word in words]
    usual = sorted(set(range(len(base.tokenizer))) - set(base.tokenizer.all_special_ids) - set(ids))
    assert counts[ids].max() <= counts[usual].min()
    assert len(set(words)) == len(words) >= 2


def test_a_base_that_cannot_write_gets_rare_tokens_alone(base, settings, prepared):
    mute = replace(base, proof=replace(base.proof, mute="its forward pass is not causal"))
    found = planned(mute, settings, prepared)
    assert {each.kind for each in found.canaries} == {RARE}


def test_what_cannot_be_planted_is_one_sentence(base, settings, prepared):
    with pytest.raises(SettingsError, match="19 canaries are too few"):
        planned(base, settings, prepared, count=19)
    with pytest.raises(SettingsError, match="there is no client 'Ulm'"):
        planned(base, settings, prepared, clients=("Ulm",))
    for copies in ((), (0,)):
        with pytest.raises(SettingsError, match="copies"):
            planned(base, settings, prepared, copies=copies)
    small = settings.model_copy(update={"data": settings.data.model_copy(update={"max_tokens": 9})})
    with pytest.raises(DataError, match=r"data\.max_tokens = 9 has no room for a canary"):
        canaries.tokens_of(planned(base, settings, prepared), small, base)


def test_what_is_kept_is_read_back_and_nothing_of_a_text_is_shown(base, settings, prepared, tmp_path):
    assert canaries.load(tmp_path) is None
    found = planned(base, settings, prepared)
    canaries.save(tmp_path, found)
    assert canaries.load(tmp_path) == found
    assert (tmp_path / canaries.FILE).stat().st_mode & 0o077 == 0
    first = found.canaries[0]
    for shown in (repr(found), repr(first)):
        assert first.response not in shown
    (tmp_path / canaries.FILE).write_text("{")
    with pytest.raises(FolderError, match="cannot be read"):
        canaries.load(tmp_path)


def synthetic(m=120, copies=(1, 8), as_clients=False, seed=0):
    rng = np.random.default_rng(seed)
    made = tuple(
        Canary(
            kind=(RARE, SAMPLED)[i % 2],
            copies=copies[(i // 2) % len(copies)],
            client="a",
            included=bool(rng.random() < 0.5),
            instruction="",
            response="",
        )
        for i in range(m)
    )
    return Planting(canaries=made, as_clients=as_clients)


def test_what_is_planted_often_is_found_and_what_is_not_learned_is_not():
    found = synthetic()
    rng = np.random.default_rng(1)
    often = np.array([each.copies == 8 for each in found.canaries])
    scores = rng.standard_normal(120) + 6.0 * (found.coins & often)
    memory = canaries.remembered(scores, found, 1e-5)
    assert [(each.kind, each.copies) for each in memory.groups] == [
        (RARE, 1),
        (RARE, 8),
        (SAMPLED, 1),
        (SAMPLED, 8),
    ]
    for each in memory.groups:
        assert 0.0 <= each.exposure.low <= each.exposure.value <= each.exposure.high + 1e-9
        assert each.exposure.high <= each.most
        assert (each.attack.auc.low > 0.8) == (each.copies == 8)
        assert (each.exposure.low > 3.0) == (each.copies == 8)
        # the others are all of the kind that were left out, however often they would have been planted
        kind = np.array([one.kind == each.kind for one in found.canaries])
        assert each.attack.others == (kind & ~found.coins).sum()
        assert each.most == pytest.approx(math.log2(each.attack.others + 1))
    once, every = memory.proven
    assert (once.copies, every.copies) == (1, None)
    assert once.bounds.one_run < 0.5 < every.bounds.one_run
    assert once.bounds.canaries == 60


def test_canaries_that_are_clients_are_all_about_the_claim():
    memory = canaries.remembered(np.arange(120.0), synthetic(as_clients=True), 1e-5)
    (all_,) = memory.proven
    assert (all_.copies, all_.bounds.canaries) == (None, 120)


def test_a_client_that_is_a_direction_sends_it_and_the_others_what_they_learned():
    made = synthetic(m=20, as_clients=True)
    canary = replace(made.canaries[0], kind=DIRECTION, client="c0", seed=7)
    planting = Planting(canaries=(canary, *made.canaries[1:]), as_clients=True)
    transform = canaries.pushing(planting, 3.0)
    sent = [transform.on_client(update_of(name, 1), {}, Seeded(0)) for name in ("c0", "c1")]
    assert bits(sent[1].delta) == bits(update_of("c1", 1).delta)
    own = canaries.direction(canary, shapes_of(sent[0].delta))
    assert own.norm() == pytest.approx(1.0)
    assert sent[0].delta.norm() == pytest.approx(3 * update_of("c0", 1).delta.norm(), rel=1e-5)
    found = canaries.along(sent[0].delta, planting)
    assert found[0] == pytest.approx(sent[0].delta.norm(), rel=1e-5)
    assert (found[1:] == 0).all()
    other = canaries.direction(replace(canary, seed=8), shapes_of(sent[0].delta))
    assert abs(sum(float(np.vdot(own[name], other[name])) for name in own)) < 0.6


def test_coins_that_all_fell_on_one_side_are_one_sentence():
    found = synthetic(m=20)
    heads = Planting(
        canaries=tuple(replace(each, included=True) for each in found.canaries), as_clients=False
    )
    with pytest.raises(SettingsError, match="one side of the coins"):
        canaries.remembered(np.zeros(20), heads, 1e-5)
