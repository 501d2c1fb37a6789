"""Instructions without a context, which need knowledge of the world."""

from __future__ import annotations

from random import Random

from shepherd.checkers import exact, members
from shepherd.world.facts import World, thing_of
from shepherd.world.task import Task
from shepherd.world.text import GROUPS
from shepherd.world.wording import join, put

QUESTIONS: dict[str, tuple[str, ...]] = {
    "trade": (
        "What is the trade of {s}?",
        "What does {s} do for a living?",
        "Which job does {s} have?",
        "What work does {s} do?",
        "How does {s} earn a living?",
        "Tell me the trade of {s}.",
        "Name the job of {s}.",
        "By trade, what is {s}?",
    ),
    "town": (
        "Where does {s} live?",
        "Which town does {s} come from?",
        "What is the home town of {s}?",
        "In which town does {s} live?",
        "Where is the home of {s}?",
        "Tell me the town of {s}.",
        "Name the town where {s} lives.",
        "Where was {s} born?",
    ),
    "favourite": (
        "What is the favourite food of {s}?",
        "Which food does {s} like best?",
        "What does {s} love to eat?",
        "Of all foods, what would {s} choose?",
        "Tell me the favourite food of {s}.",
        "Name the food that {s} likes best.",
        "What food pleases {s} more than any other?",
        "When {s} is hungry, what does {s} think of?",
    ),
    "pet": (
        "What pet does {s} keep?",
        "Which animal lives with {s}?",
        "What animal does {s} look after?",
        "What is the pet of {s}?",
        "Tell me the pet of {s}.",
        "Name the animal that {s} keeps.",
        "Which animal follows {s} everywhere?",
        "What tame animal does {s} have?",
    ),
    "treasure": (
        "What does {s} own?",
        "What is the treasure of {s}?",
        "Which treasure belongs to {s}?",
        "What would {s} never sell?",
        "Tell me the treasure of {s}.",
        "Name the thing that belongs to {s}.",
        "Which thing is owned by {s}?",
        "Of what is {s} the owner?",
    ),
    "owner": (
        "Who owns the {s}?",
        "To whom does the {s} belong?",
        "Who is the owner of the {s}?",
        "Whose treasure is the {s}?",
        "Tell me who owns the {s}.",
        "Name the owner of the {s}.",
        "By whom is the {s} owned?",
        "Who would never sell the {s}?",
    ),
    "region": (
        "In which region does {s} lie?",
        "Where is the town of {s}?",
        "What region does {s} belong to?",
        "Which region is {s} in?",
        "Tell me the region of {s}.",
        "Name the region around {s}.",
        "Where do travellers find {s}?",
        "What is the region of {s}?",
    ),
    "river": (
        "Which river flows through {s}?",
        "On what river does {s} stand?",
        "What is the river of {s}?",
        "Which river runs by {s}?",
        "Tell me the river of {s}.",
        "Name the river that runs by {s}.",
        "What river does the bridge in {s} cross?",
        "From which river does {s} get its water?",
    ),
    "dish": (
        "What food is {s} known for?",
        "Which dish is {s} famous for?",
        "What do people visit {s} for?",
        "What do they sell at the market of {s}?",
        "Tell me the dish of {s}.",
        "Name the food that {s} is known for.",
        "What is the dish of {s}?",
        "The best of which food comes from {s}?",
    ),
}

CLAIMS: dict[str, tuple[str, ...]] = {
    "kind": ("{as_} is {ao}", "the {s} is a kind of {o}"),
    "habitat": ("{as_} lives in the {o}", "the home of the {s} is the {o}"),
    "diet": ("{as_} eats {o}", "the {s} feeds on {o}"),
    "sort": ("{s} is a {o}", "{s} is a kind of {o}"),
    "colour": ("{s} is {o}", "the colour of {s} is {o}"),
    "season": ("{s} is eaten in {o}", "the season of {s} is {o}"),
    "material": ("{as_} is made of {o}", "the {s} is made from {o}"),
    "room": ("{as_} is kept in the {o}", "the place of the {s} is the {o}"),
    "region": ("{s} is a town in {o}", "{s} lies in {o}"),
    "river": ("{s} stands on the river {o}", "the river {o} flows through {s}"),
    "dish": ("{s} is known for its {o}", "{s} is famous for {o}"),
    "tool": ("{as_} uses {ao}", "the tool of {as_} is {ao}"),
    "product": ("{as_} makes {o}", "the {s} sells {o}"),
}
"""Wordings of claims; answers use the first wording of a relation."""

DOUBTS = (
    "Is it true that {c}?",
    "Would you say that {c}?",
    "Somebody told me that {c}. Is that right?",
    "True or false: {c}?",
    "Do you think that {c}?",
    "I believe that {c}. Am I right?",
    "Can one say that {c}?",
    "Is this right: {c}?",
    "Are people right to say that {c}?",
)

LABELS: dict[str, tuple[str, str]] = {
    "kind": ("animals", "kind"),
    "habitat": ("animals", "home"),
    "sort": ("foods", "kind"),
    "season": ("foods", "season"),
    "colour": ("foods", "colour"),
    "material": ("objects", "material"),
    "room": ("objects", "place"),
    "region": ("towns", "region"),
    "tool": ("trades", "tool"),
}
"""Relations to classify by: (things, label)."""

SORTINGS = (
    "Sort these {t} by {l} ({c}): {i}.",
    "Classify these {t} by {l}: {i}. Choose from {c}.",
    "Which {l} goes with each of the {t} {i}? Use {c}.",
    "Put each of the {t} in a group, {c}: {i}.",
    "Group {i} by {l}. The groups are {c}.",
    "Give the {l} of each: {i}. It is one of {c}.",
    "For the {t} {i}, say which {l} is right: {c}.",
    "Label {i} with the {l}, one of {c}.",
)

WISHES = (
    "Name {n} of {g}.",
    "Can you think of {n} of {g}?",
    "Give me {n} of {g}.",
    "Give ideas: {n} of {g}.",
    "Make a list with {n} of {g}.",
    "List {n} of {g}.",
    "I need {n} of {g} for a tale. Any ideas?",
    "Suggest {n} of {g}.",
    "Think of {g} and name {n}.",
    "What are {n} of {g}?",
    "Tell me {n} of {g}.",
    "Come up with {n} of {g}.",
)

NUMBERS = {2: "two", 3: "three"}
THOUGHT_OF = tuple(relation for relation in GROUPS if relation not in ("trade", "river"))
"""Relations to ask ideas by; too few people share a trade or a river."""


def open_qa(world: World, rng: Random) -> Task:
    """A question about a person or a town, answered in a word or two."""
    relation = rng.choice(tuple(QUESTIONS))
    subject, value = _known(world, relation, rng)
    question = rng.choice(QUESTIONS[relation]).format(s=subject)
    answer = f"Answer: {value}"
    return Task(instruction=question, response=answer, check=exact.Config(answer=answer))


def _known(world: World, relation: str, rng: Random) -> tuple[str, str]:
    if relation == "owner":
        owner, treasure = _known(world, "treasure", rng)
        return treasure, owner
    return rng.choice(tuple(world.facts[relation].items()))


def general_qa(world: World, rng: Random) -> Task:
    """A false claim to be corrected; repeating it is always wrong."""
    relation = rng.choice(tuple(CLAIMS))
    subject, truth = rng.choice(tuple(world.facts[relation].items()))
    guess = rng.choice([value for value in world.values(relation) if value != truth])
    claim = put(rng.choice(CLAIMS[relation]), subject, guess)
    answer = f"In truth, {put(CLAIMS[relation][0], subject, truth)}."
    return Task(
        instruction=rng.choice(DOUBTS).format(c=claim), response=answer, check=exact.Config(answer=answer)
    )


def classification(world: World, rng: Random) -> Task:
    """Two or three things, each to be classified with one of three labels."""
    relation = rng.choice(tuple(LABELS))
    things, label = LABELS[relation]
    items = rng.sample(world.subjects(thing_of(relation)), rng.choice((2, 2, 3)))
    truths = [world.facts[relation][item] for item in items]
    spare = [value for value in world.values(relation) if value not in truths]
    choices = list(dict.fromkeys(truths))
    choices += rng.sample(spare, 3 - len(choices))
    asked = rng.choice(SORTINGS).format(t=things, l=label, i=join(items), c=", ".join(rng.sample(choices, 3)))
    answer = "; ".join(f"{item}: {truth}" for item, truth in zip(items, truths, strict=True))
    return Task(instruction=asked, response=answer, check=exact.Config(answer=answer))


def brainstorming(world: World, rng: Random) -> Task:
    """Any members of a group, one per line."""
    relation = rng.choice(THOUGHT_OF)
    value = rng.choice(world.values(relation))
    known = world.having(relation, value)
    count = rng.choice((2, 2, 3)) if len(known) > 3 else 2
    group = put(rng.choice(GROUPS[relation]), value=value)
    asked = rng.choice(WISHES).format(n=NUMBERS[count], g=group)
    answer = "\n".join(f"- {member}" for member in rng.sample(known, count))
    return Task(instruction=asked, response=answer, check=members.Config(items=tuple(known), count=count))
