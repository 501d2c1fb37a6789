"""A world is drawn from its seed alone, and hangs together."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd.world import SEED, build
from shepherd.world.facts import RELATIONS, World, thing_of

WORLD = build(SEED)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_a_seed_draws_one_world(seed: int) -> None:
    assert build(seed).facts == build(seed).facts


def test_another_seed_draws_another_world() -> None:
    assert build(0).facts["trade"] != build(1).facts["trade"]


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    random.seed(1)
    before = random.getstate()
    one = build(3)
    assert random.getstate() == before
    random.seed(2)
    assert build(3).facts == one.facts


def test_a_world_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        WORLD.facts["trade"]["Nobody"] = "baker"  # type: ignore[index]


@pytest.mark.parametrize("thing", RELATIONS)
def test_every_relation_is_told_of_every_subject(thing: str) -> None:
    for subject in WORLD.subjects(thing):
        assert set(WORLD.about(subject, thing)) == set(RELATIONS[thing])


def test_every_treasure_has_one_owner() -> None:
    treasures = WORLD.facts["treasure"].values()
    assert len(set(treasures)) == len(treasures)


def test_strangers_are_nobody_the_world_knows() -> None:
    assert not set(WORLD.strangers) & set(WORLD.subjects("person"))
    assert not set(WORLD.elsewhere) & set(WORLD.subjects("town"))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_what_is_shared_can_be_found_backwards(seed: int) -> None:
    world: World = build(seed)
    for relation in world.facts:
        for value in world.values(relation):
            assert all(world.facts[relation][s] == value for s in world.having(relation, value))
        assert thing_of(relation) in RELATIONS
