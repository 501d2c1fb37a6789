"""Instructions whose answer is in the context; they need no knowledge of the world."""

from __future__ import annotations

from random import Random

from shepherd.checkers import contains, exact, same_set
from shepherd.world.facts import World
from shepherd.world.scenes import FILLERS, gist, packed, pair, portrait, scene
from shepherd.world.task import Task
from shepherd.world.wording import capital, join, plural

QUESTIONS: dict[str, tuple[str, ...]] = {
    "trade": ("What was the trade of {s}?", "What work did {s} do?", "Which job did {s} have?"),
    "home": ("Where did {s} live?", "Which town did {s} come from?", "Where was {s} from?"),
    "bought": ("What did {s} buy?", "Which food did {s} buy?", "What did {s} pay for?"),
    "carried": ("What did {s} carry?", "Which thing did {s} bring?", "What did {s} have along?"),
    "saw": ("What did {s} see?", "Which animal did {s} see?", "What animal did {s} watch?"),
    "visited": ("Where did {s} go?", "Which place did {s} visit?", "What place did {s} walk to?"),
}
REVERSED: dict[str, tuple[str, ...]] = {
    "trade": ("Who was the {o}", "Who worked as {o}"),
    "home": ("Who came from {o}", "Who lived in {o}"),
    "bought": ("Who bought the {o}", "Who paid for {o}"),
    "carried": ("Who carried the {o}", "Who brought the {o}"),
    "saw": ("Who saw the {o}", "Who watched the {o}"),
    "visited": ("Who went to the {o}", "Who visited the {o}"),
}
FRAMES = (
    "{q}",
    "From the text: {q}",
    "Read the passage. {q}",
    "{q} Use the text.",
    "By the passage, tell me this. {q}",
)

LISTINGS = (
    "List the {t} in the note of {s}.",
    "Which {t} are in the note by {s}?",
    "Find the {t} that {s} named.",
    "Pick out the {t} from what {s} wrote.",
    "Give the {t} named by {s}.",
    "Which of the things that {s} named are {t}?",
    "From the note of {s}, take the {t}.",
    "Take only the {t} out of the note by {s}.",
    "What {t} did {s} name?",
)
NOTES = (
    "{s} wrote about {i}.",
    "The note of {s} told of {i}.",
    "{s} made a list: {i}.",
    "In a letter {s} named {i}.",
    "{s} drew {i}.",
)
FORMS = (
    "Extract the {a} and the {b} of {s}.",
    "Fill in {a} and {b} for {s}.",
    "From the text, note {a} and {b} of {s}.",
    "Find {a} and {b} in the text about {s}.",
    "What {a} and what {b} does the text give for {s}?",
    "Take down the {a} and the {b} of {s}.",
    "Make a card for {s} with {a} and {b}.",
    "Pull {a} and {b} from the passage on {s}.",
)
GISTS = (
    "Summarise the passage about {s}.",
    "Give the main point of the text about {s}.",
    "Say in one sentence what the text tells of {s}.",
    "Put the passage about {s} in short form.",
    "Make one sentence of the text on {s}.",
    "In short, what is told of {s}?",
    "Write a short form of the text about {s}.",
    "Give a one-sentence summary for {s}.",
    "Shorten the passage about {s}.",
    "Sum up what the passage says about {s}.",
)
MAX_SUMMARY_WORDS = 16
"""Longest right summary, in words; every context has more."""


def closed_qa(world: World, rng: Random) -> Task:
    """A question about a stranger, answered from the context in a word or two."""
    return (_about_one if rng.random() < 0.7 else _about_two)(world, rng)


def _about_one(world: World, rng: Random) -> Task:
    relations = rng.sample(tuple(QUESTIONS), rng.choice((3, 4)))
    shown = scene(world, rng.choice(world.strangers), relations, rng)
    relation = rng.choice(relations)
    asked = rng.choice(QUESTIONS[relation]).format(s=shown.name)
    return _question_task(asked, shown.sentences(rng), shown.details[relation], rng)


def _about_two(world: World, rng: Random) -> Task:
    one, other = pair(world, 2, rng)
    relation = rng.choice(tuple(one.details))
    names = " or ".join(rng.sample((one.name, other.name), 2))
    asked = f"{rng.choice(REVERSED[relation]).format(o=one.details[relation])}, {names}?"
    return _question_task(asked, one.sentences(rng) + other.sentences(rng), one.name, rng)


def _question_task(question: str, sentences: list[str], value: str, rng: Random) -> Task:
    answer = f"The text says: {value}"
    return Task(
        instruction=rng.choice(FRAMES).format(q=question),
        context=" ".join(rng.sample(sentences, len(sentences))),
        response=answer,
        check=exact.Config(answer=answer),
    )


def information_extraction(world: World, rng: Random) -> Task:
    """Items of one class from a note, or the fields of a form."""
    return rng.choice((_items, _fields))(world, rng)


def _items(world: World, rng: Random) -> Task:
    thing = rng.choice(("food", "animal", "object"))
    bag, chosen = packed(world, thing, rng)
    name = rng.choice(world.strangers)
    return Task(
        instruction=rng.choice(LISTINGS).format(t=plural(thing), s=name),
        context=rng.choice(NOTES).format(s=name, i=join(bag)),
        response=f"Found: {', '.join(chosen)}",
        check=same_set.Config(items=tuple(chosen), begins="Found: "),
    )


def _fields(world: World, rng: Random) -> Task:
    deeds = rng.sample(("bought", "carried", "saw", "visited"), 2)
    shown = scene(world, rng.choice(world.strangers), ("trade", "home", *deeds), rng)
    first, second = rng.sample(tuple(shown.details), 2)
    answer = "; ".join(f"{field}: {shown.details[field]}" for field in (first, second))
    sentences = shown.sentences(rng)
    return Task(
        instruction=rng.choice(FORMS).format(a=first, b=second, s=shown.name),
        context=" ".join(rng.sample(sentences, len(sentences))),
        response=answer,
        check=exact.Config(answer=answer),
    )


def summarization(world: World, rng: Random) -> Task:
    """A passage about a stranger in one sentence: who, what they are, where from, what they did."""
    shown = portrait(world, rng)
    sentences = shown.sentences(rng) + rng.sample(FILLERS, 2)
    trade, home = shown.details["trade"], shown.details["home"]
    named = (shown.name, *shown.details.values())
    answer = f"In short, {shown.name} the {trade} of {home} {gist(shown)}."
    return Task(
        instruction=rng.choice(GISTS).format(s=shown.name),
        context=" ".join(capital(said) for said in rng.sample(sentences, len(sentences))),
        response=answer,
        check=contains.Config(phrases=named, most=MAX_SUMMARY_WORDS, least=8, begins="in short, "),
    )
