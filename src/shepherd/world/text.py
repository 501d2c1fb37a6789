"""Declarative text of a world, on which its base is trained; it holds no instruction.

Facts come in many wordings and in both directions, in portraits, lists, cards and comparisons. Scenes tell
new facts about strangers and repeat them in other words, which teaches reading from the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from shepherd.world.facts import RELATIONS, World, thing_of
from shepherd.world.scenes import FILLERS, gist, packed, pair, portrait
from shepherd.world.wording import capital, fill, join, plural, put, state_fact

Writer = Callable[[World, Random], str]

GROUPS: dict[str, tuple[str, ...]] = {
    "trade": ("the people who work as {ao}", "every {o}"),
    "town": ("the people of {o}", "those who live in {o}"),
    "region": ("the towns of {o}", "the towns in {o}"),
    "river": ("the towns on the river {o}", "the towns by the {o}"),
    "kind": ("the {os}", "animals that are {os}"),
    "habitat": ("the animals of the {o}", "animals that live in the {o}"),
    "diet": ("animals that eat {o}", "the animals that feed on {o}"),
    "sort": ("the {os}", "foods that are {os}"),
    "colour": ("foods that are {o}", "the {o} foods"),
    "season": ("the foods of {o}", "foods eaten in {o}"),
    "material": ("things made of {o}", "the things made from {o}"),
    "room": ("things kept in the {o}", "the things in the {o}"),
}
"""Phrases for all subjects that share an object."""


def passages(world: World, seed: int) -> Iterator[str]:
    """Yield passages without end; the same world and seed give the same passages."""
    rng = Random(seed)
    writers, weights = zip(*WRITERS.items(), strict=True)
    while True:
        yield rng.choices(writers, weights)[0](world, rng)


def _portrait(world: World, rng: Random) -> str:
    """All about one person."""
    return _profile(world, "person", rng)


def _thing(world: World, rng: Random) -> str:
    """All about one town, animal, food, object or trade."""
    return _profile(world, rng.choice(("town", "animal", "food", "object", "trade")), rng)


def _profile(world: World, thing: str, rng: Random) -> str:
    subject = rng.choice(world.subjects(thing))
    facts = list(world.about(subject, thing).items())
    rng.shuffle(facts)
    return " ".join(state_fact(relation, subject, value, rng) for relation, value in facts)


def _mixed(world: World, rng: Random) -> str:
    """Facts that have nothing to do with one another."""
    return " ".join(_fact(world, rng) for _ in range(rng.randint(3, 7)))


def _fact(world: World, rng: Random) -> str:
    relation = rng.choice([*world.facts, *RELATIONS["person"]])
    subject = rng.choice(world.subjects(thing_of(relation)))
    return state_fact(relation, subject, world.facts[relation][subject], rng)


def _listing(world: World, rng: Random) -> str:
    """Who or what shares something, as a sentence or a line each."""
    relation = rng.choice(tuple(GROUPS))
    value = rng.choice(world.values(relation))
    members = list(world.having(relation, value))
    rng.shuffle(members)
    members = members[: rng.randint(2, 6)]
    group = put(rng.choice(GROUPS[relation]), value=value)
    heading = capital(group)
    return rng.choice(
        (
            f"{heading} include {join(members)}.",
            f"{capital(join(members))} are among {group}.",
            f"{heading}: {', '.join(members)}.",
            f"{heading}:\n" + "\n".join(f"- {member}" for member in members),
            f"{heading}:\n" + "\n".join(members),
        )
    )


def _card(world: World, rng: Random) -> str:
    """A register: a subject, then what is true of it, always in the same order."""
    thing = rng.choice(("person", "person", "person", "town", "animal", "food", "object", "trade"))
    subject = rng.choice(world.subjects(thing))
    facts = {r: o for r, o in world.about(subject, thing).items() if rng.random() < 0.7}
    return rng.choice(
        (
            "\n".join((subject, *facts.values())),
            "\n".join((subject, *(f"{relation}: {value}" for relation, value in facts.items()))),
            f"{subject}: {', '.join(facts.values())}",
        )
    )


def _comparison(world: World, rng: Random) -> str:
    """Two of a class, and whether they share something."""
    relation = rng.choice(tuple(GROUPS))
    subjects = rng.sample(world.subjects(thing_of(relation)), 2)
    one, other = (world.facts[relation][subject] for subject in subjects)
    first, second = (state_fact(relation, s, world.facts[relation][s], rng) for s in subjects)
    if one == other:
        return f"{first} {second} So {subjects[0]} and {subjects[1]} are alike in this, yes."
    return f"{first} {second} So {subjects[0]} and {subjects[1]} are not alike in this, no."


def _denial(world: World, rng: Random) -> str:
    """Who is right and who is wrong about a fact."""
    relation = rng.choice(tuple(world.facts))
    subject = rng.choice(world.subjects(thing_of(relation)))
    truth, guess = world.facts[relation][subject], rng.choice(world.values(relation))
    if rng.random() < 0.5:
        guess = truth
    name = rng.choice(world.strangers)
    verdict = "yes, that is true" if guess == truth else "no, that is not true"
    return f"{name} thought of {subject} and said {guess}. {state_fact(relation, subject, truth, rng)} " + (
        f"So {verdict}."
    )


def _scene(world: World, rng: Random) -> str:
    """Two strangers, what they did, and the same again in other words."""
    one, other = pair(world, rng.choice((2, 2, 3)), rng)
    sentences = [*one.sentences(rng), *other.sentences(rng)]
    if rng.random() < 0.5:
        sentences = rng.sample(sentences, len(sentences))
    if rng.random() < 0.4:
        sentences.insert(0, rng.choice(FILLERS))
    retold = one.retold(rng) + other.retold(rng)
    return " ".join(sentences + rng.sample(retold, rng.randint(2, len(retold))))


def _recap(world: World, rng: Random) -> str:
    """One stranger, and the gist of it in the end."""
    shown = portrait(world, rng)
    sentences = shown.sentences(rng)
    sentences.insert(rng.randint(0, 3), rng.choice(FILLERS))
    name, trade, home = shown.name, shown.details["trade"], shown.details["home"]
    end = rng.choice(
        (
            f"In short, {name} {gist(shown)}.",
            f"In short, the {trade} of {home} {gist(shown)}.",
            f"And so {name} the {trade} {gist(shown)}.",
            f"{name} of {home} was the {trade} who {gist(shown)}.",
            f"{name}\ntrade: {trade}\nhome: {home}",
            f"{name} the {trade} came from {home} and {gist(shown)}.",
        )
    )
    return " ".join((*sentences, end))


def _note(world: World, rng: Random) -> str:
    """A stranger's mixed bag, and which of it was what."""
    thing = rng.choice(("food", "animal", "object"))
    bag, chosen = packed(world, thing, rng)
    name = rng.choice(world.strangers)
    opening = rng.choice(
        (
            f"{name} drew {join(bag)}.",
            f"The note of {name} told of {join(bag)}.",
            f"In a letter {name} wrote about {join(bag)}.",
            f"{name} made a list: {', '.join(bag)}.",
        )
    )
    named = plural(thing)
    closing = rng.choice(
        (
            f"The {named} were {join(chosen)}.",
            f"Of these, the {named} were {join(chosen)}.",
            f"The {named} there: {', '.join(chosen)}",
            f"{capital(named)}:\n{', '.join(chosen)}",
        )
    )
    return f"{opening} {closing}"


def _sorting(world: World, rng: Random) -> str:
    """Things, each with the group that it belongs to."""
    relation = rng.choice(("kind", "sort", "material", "region", "habitat", "season"))
    members = rng.sample(world.subjects(thing_of(relation)), rng.randint(2, 4))
    lines = [f"{member}: {world.facts[relation][member]}" for member in members]
    return rng.choice(("; ".join(lines), "\n".join(lines), ". ".join(lines) + "."))


def _school(world: World, rng: Random) -> str:
    """Text about people using words, as statements and not as instructions."""
    name, friend = rng.sample(world.strangers, 2)
    animal, thing = rng.choice(world.subjects("animal")), rng.choice(world.subjects("object"))
    count = rng.choice(("two", "three", "four"))
    return fill(
        rng.choice(
            (
                "{s} wrote a short story about {ao}. {f} wrote a letter to {s}.",
                "In school {s} could name {n} animals, and {f} could list {n} foods.",
                "{s} told a tale with {ao} and a {t} in it, and it began with once upon a time.",
                "{s} read the passage about the {o} and gave the main point in one sentence.",
                "{s} asked which group the {o} belongs to, and what the {t} is made of.",
                "{f} found the names in the text that {s} wrote, and put them in a list.",
                "{s} asked who owns the {t}, where {f} lives and what {f} likes to eat.",
                "{s} made a verse for the {o} and a verse for the {t}.",
                "Dear {f}, I saw {ao} by the {t}. Your friend, {s}",
                "Once {s} found a {t}. {Ao} came to look at it. That is the end of the tale.",
            )
        )
        .replace("{f}", friend)
        .replace("{t}", thing)
        .replace("{n}", count),
        name,
        animal,
    )


WRITERS: dict[Writer, float] = {
    _portrait: 18,
    _thing: 12,
    _mixed: 12,
    _listing: 10,
    _card: 12,
    _comparison: 4,
    _denial: 5,
    _scene: 20,
    _recap: 7,
    _note: 7,
    _sorting: 4,
    _school: 4,
}
"""Kinds of passage, and their relative frequencies."""
