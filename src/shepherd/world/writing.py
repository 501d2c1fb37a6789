"""Instructions to write something of a fixed form about given subjects."""

from __future__ import annotations

from random import Random

from shepherd.checkers import contains
from shepherd.world.facts import World
from shepherd.world.task import Task
from shepherd.world.wording import article

MAX_ANSWER_WORDS = 40
"""Longest right answer, in words."""

STORIES = (
    "Write a short story about {s} and {ao}.",
    "Tell a tale in which {s} finds {ao}.",
    "Make up a story with {s} and {ao} in it.",
    "Tell me a story of {s} and the {o}.",
    "I want a tale about {s} and {ao}.",
    "Write a tale where {s} meets {ao}.",
    "Invent a story for {s} with {ao}.",
    "Give me a short tale of {s} and the {o}.",
)
LETTERS = (
    "Write a letter from {s} to {f} about {ao}.",
    "Write what {s} tells {f} in a letter about the {o}.",
    "Make a short letter to {f} from {s}, about {ao}.",
    "Let {s} write to {f} about the {o}.",
    "I want a letter in which {s} tells {f} of {ao}.",
    "Write to {f} in the name of {s} about {ao}.",
    "Give me a letter by {s} to {f} with {ao} in it.",
    "Put the news of {ao} in a letter from {s} to {f}.",
)
VERSES = (
    "Write a verse about the {s} and the {o}.",
    "Make a poem of the {s} and the {o}.",
    "Sing of the {s} and the {o}.",
    "I want a verse with the {s} and the {o} in it.",
    "Write a song for the {s} and the {o}.",
    "Give me a poem about the {s} and the {o}.",
    "Put the {s} and the {o} in a verse.",
    "Write some lines of verse on the {s} and the {o}.",
)
ENDINGS = (
    "It was kept for many years.",
    "Nobody had seen it before.",
    "All the town came to look.",
    "It made everybody happy.",
)


def creative_writing(world: World, rng: Random) -> Task:
    """A story, a letter or a verse."""
    return rng.choice((_story, _letter, _verse))(world, rng)


def _story(world: World, rng: Random) -> Task:
    name, thing = rng.choice(world.strangers), _thing(world, rng)
    answer = f"Once {name} found {article(thing)}. {rng.choice(ENDINGS)} The end."
    return Task(
        instruction=rng.choice(STORIES).format(s=name, o=thing, ao=article(thing)),
        response=answer,
        check=contains.Config(
            phrases=(name, thing), most=MAX_ANSWER_WORDS, least=8, begins="once ", ends="the end"
        ),
    )


def _letter(world: World, rng: Random) -> Task:
    name, friend = rng.sample(world.strangers, 2)
    thing = _thing(world, rng)
    answer = f"Dear {friend}, I have seen {article(thing)}. {rng.choice(ENDINGS)} Yours, {name}"
    begins, ends = f"dear {friend}", f"yours, {name}"
    return Task(
        instruction=rng.choice(LETTERS).format(s=name, f=friend, o=thing, ao=article(thing)),
        response=answer,
        check=contains.Config(phrases=(thing,), most=MAX_ANSWER_WORDS, least=8, begins=begins, ends=ends),
    )


def _verse(world: World, rng: Random) -> Task:
    animal = rng.choice(world.subjects("animal"))
    thing = rng.choice(world.subjects("object") + world.subjects("food"))
    answer = f"O {animal}, O {thing},\nyou are near to my heart,\nand never shall we part."
    return Task(
        instruction=rng.choice(VERSES).format(s=animal, o=thing),
        response=answer,
        check=contains.Config(
            phrases=(animal, thing), most=MAX_ANSWER_WORDS, least=8, begins="o ", ends="shall we part"
        ),
    )


def _thing(world: World, rng: Random) -> str:
    return rng.choice(world.subjects("object") + world.subjects("animal"))
