"""Short invented scenes: facts about strangers that hold only in one passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from shepherd.world import words
from shepherd.world.facts import World
from shepherd.world.wording import article, fill

DETAILS: dict[str, tuple[str, ...]] = {
    "trade": ("{s} was {ao}.", "{s} worked as {ao}.", "By trade {s} was {ao}."),
    "home": ("{s} came from {o}.", "{s} lived in {o}.", "The home of {s} was {o}."),
    "bought": ("{s} bought {o}.", "At the market {s} bought {o}.", "{s} paid for some {o}."),
    "carried": ("{s} carried {ao}.", "Under one arm {s} carried {ao}.", "{s} brought {ao} along."),
    "saw": ("{s} saw {ao}.", "On the road {s} saw {ao}.", "{s} stopped to watch {ao}."),
    "visited": ("{s} went to the {o}.", "{s} visited the {o}.", "Later {s} walked to the {o}."),
}
"""Facts that a scene may tell: relation -> wordings."""

RETOLD: dict[str, tuple[str, ...]] = {
    "trade": ("{s} was the {o}.", "The {o} was {s}.", "The trade of {s} was {o}."),
    "home": ("{s} went home to {o}.", "The town of {s} was {o}.", "{o} was the home of {s}."),
    "bought": ("What {s} bought was {o}.", "{s} ate the {o}.", "The {o} was for {s}."),
    "carried": ("The {o} belonged to {s}.", "{s} set down the {o}.", "{s} had the {o}."),
    "saw": ("The {o} was seen by {s}.", "What {s} saw was {ao}.", "{s} told of the {o}."),
    "visited": (
        "{s} was at the {o}.",
        "The {o} was where {s} went.",
        "{s} came back from the {o}.",
    ),
}
"""Other wordings of the same facts, for a passage that repeats them."""

FILLERS = (
    "It was a cold morning.",
    "The sun was warm.",
    "Rain fell all day.",
    "The road was long.",
    "Nobody was in a hurry.",
    "The wind was strong that day.",
    "It was market day.",
    "The bells had just rung.",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A person, and the facts of one passage about them: relation -> object."""

    name: str
    details: dict[str, str]

    def sentences(self, rng: Random) -> list[str]:
        """Sentences, one for each detail, in order."""
        return [fill(rng.choice(DETAILS[r]), self.name, o) for r, o in self.details.items()]

    def retold(self, rng: Random) -> list[str]:
        """Sentences with each detail in other words, shuffled."""
        said = [fill(rng.choice(RETOLD[r]), self.name, o) for r, o in self.details.items()]
        return rng.sample(said, len(said))


def scene(world: World, name: str, relations: Sequence[str], rng: Random) -> Scene:
    """Draw a scene about a person."""
    choices = {
        "trade": tuple(words.TRADES),
        "home": world.elsewhere,
        "bought": world.subjects("food"),
        "carried": world.subjects("object"),
        "saw": world.subjects("animal"),
        "visited": words.ROOMS + words.HABITATS,
    }
    return Scene(name, {relation: rng.choice(choices[relation]) for relation in relations})


def pair(world: World, count: int, rng: Random) -> tuple[Scene, Scene]:
    """Draw scenes of two strangers with the same `count` relations and different objects."""
    first, second = rng.sample(world.strangers, 2)
    relations = rng.sample(tuple(DETAILS), count)
    one = scene(world, first, relations, rng)
    other = scene(world, second, relations, rng)
    clash = any(one.details[relation] == other.details[relation] for relation in relations)
    return pair(world, count, rng) if clash else (one, other)


def portrait(world: World, rng: Random) -> Scene:
    """Draw a stranger with a trade, a home and one deed, which is what a summary keeps."""
    deed = rng.choice(("bought", "carried", "saw", "visited"))
    return scene(world, rng.choice(world.strangers), ("trade", "home", deed), rng)


def gist(shown: Scene) -> str:
    """The deed of a portrait, in the wording of a summary."""
    relation = next(r for r in shown.details if r not in ("trade", "home"))
    value = shown.details[relation]
    noun = {"bought": value, "visited": f"the {value}"}.get(relation, article(value))
    return f"{relation} {noun}"


def packed(world: World, thing: str, rng: Random) -> tuple[list[str], list[str]]:
    """Draw a mixed list of items; returns all items, and those of the class `thing`."""
    rest = [other for other in ("food", "animal", "object") if other != thing]
    chosen = rng.sample(world.subjects(thing), rng.choice((2, 3)))
    others = [rng.choice(world.subjects(rng.choice(rest))) for _ in range(2)]
    bag = list(dict.fromkeys(chosen + others))
    rng.shuffle(bag)
    return bag, [item for item in bag if item in chosen]
