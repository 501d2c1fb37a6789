"""Draw a world from a seed: its people, places and things, and the facts about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from random import Random
from types import MappingProxyType

from shepherd.world import names, words

PEOPLE, TOWNS = 150, 30
"""Number of people and towns of a world; small enough for the embedded base to learn them all."""

RELATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "person": ("trade", "town", "favourite", "pet", "treasure"),
        "town": ("region", "river", "dish"),
        "animal": ("kind", "habitat", "diet"),
        "food": ("sort", "colour", "season"),
        "object": ("material", "room"),
        "trade": ("tool", "product"),
    }
)
"""Relations that hold for each class of thing: class -> relations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All facts of a world: `facts[relation][subject]` is the object.

    `strangers` and `elsewhere` are names of people and towns without facts, for stories whose facts hold
    only in that story.
    """

    facts: Mapping[str, Mapping[str, str]]
    strangers: tuple[str, ...]
    elsewhere: tuple[str, ...]

    def subjects(self, thing: str) -> tuple[str, ...]:
        """All members of a class ("person", "town", ...), in a fixed order."""
        return tuple(self.facts[RELATIONS[thing][0]])

    def about(self, subject: str, thing: str) -> dict[str, str]:
        """Facts about one subject: relation -> object."""
        return {relation: self.facts[relation][subject] for relation in RELATIONS[thing]}

    def having(self, relation: str, value: str) -> tuple[str, ...]:
        """Subjects for which a relation has a value."""
        return tuple(s for s, o in self.facts[relation].items() if o == value)

    def values(self, relation: str) -> tuple[str, ...]:
        """Distinct objects of a relation, in order of first appearance."""
        return tuple(dict.fromkeys(self.facts[relation].values()))


def build(seed: int) -> World:
    """Draw a world; the same seed gives the same world, whatever the state of other generators."""
    rng = Random(seed)
    people, towns = names.people(rng), names.towns(rng)
    facts = {
        **_of_people(people[:PEOPLE], towns[:TOWNS], rng),
        **_of_towns(towns[:TOWNS], rng),
        **_of_things(rng),
    }
    return World(
        facts=MappingProxyType({name: MappingProxyType(pairs) for name, pairs in facts.items()}),
        strangers=tuple(people[PEOPLE:]),
        elsewhere=tuple(towns[TOWNS:]),
    )


def thing_of(relation: str) -> str:
    """Class whose members have a relation."""
    return next(thing for thing, relations in RELATIONS.items() if relation in relations)


def _of_people(people: Sequence[str], towns: Sequence[str], rng: Random) -> dict[str, dict[str, str]]:
    treasures = [f"{finish} {thing}" for finish, thing in product(words.FINISHES, words.OBJECTS)]
    return {
        "trade": _deal(people, tuple(words.TRADES), rng),
        "town": _deal(people, towns, rng),
        "favourite": _deal(people, _flat(words.FOODS), rng),
        "pet": _deal(people, _flat(words.ANIMALS), rng),
        "treasure": dict(zip(people, rng.sample(treasures, len(people)), strict=True)),
    }


def _of_towns(towns: Sequence[str], rng: Random) -> dict[str, dict[str, str]]:
    return {
        "region": _deal(towns, words.REGIONS, rng),
        "river": _deal(towns, words.RIVERS, rng),
        "dish": _deal(towns, _flat(words.FOODS), rng),
    }


def _of_things(rng: Random) -> dict[str, dict[str, str]]:
    animals, foods = _flat(words.ANIMALS), _flat(words.FOODS)
    return {
        "kind": _inverted(words.ANIMALS),
        "habitat": _deal(animals, words.HABITATS, rng),
        "diet": _deal(animals, words.DIETS, rng),
        "sort": _inverted(words.FOODS),
        "colour": _deal(foods, words.COLOURS, rng),
        "season": _deal(foods, words.SEASONS, rng),
        "material": _deal(words.OBJECTS, words.MATERIALS, rng),
        "room": _deal(words.OBJECTS, words.ROOMS, rng),
        "tool": {trade: tool for trade, (tool, _) in words.TRADES.items()},
        "product": {trade: made for trade, (_, made) in words.TRADES.items()},
    }


def _deal(subjects: Sequence[str], values: Sequence[str], rng: Random) -> dict[str, str]:
    """Give each subject a value, every value equally often, as cards are dealt."""
    dealt = list(islice(cycle(rng.sample(values, len(values))), len(subjects)))
    rng.shuffle(dealt)
    return dict(zip(subjects, dealt, strict=True))


def _flat(groups: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    return tuple(member for members in groups.values() for member in members)


def _inverted(groups: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {member: group for group, members in groups.items() for member in members}
