"""Wordings of facts in declarative text: many per relation, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

SAYINGS: dict[str, tuple[str, ...]] = {
    "trade": (
        "How {s} earns a living is well known, for {s} is {ao}.",
        "{s} is {ao} by trade.",
        "{s} works as {ao}.",
        "{s} earns a living as {ao}.",
        "The trade of {s} is that of {ao}.",
        "{s} the {o} is known to all.",
        "One {o} is called {s}.",
        "Among those who work as {ao} is {s}.",
        "For work, {s} is {ao}.",
        "The job of {s} is {o}.",
        "As a child {s} hoped to be {ao}, and now {s} is one.",
    ),
    "town": (
        "Where {s} lives is {o}.",
        "{s} lives in {o}.",
        "{s} comes from {o}.",
        "The home of {s} is in {o}.",
        "In {o} lives {s}.",
        "{o} is the town where {s} lives.",
        "{s} was born in {o} and never left.",
        "The town of {s} is {o}.",
        "One of the people of {o} is {s}.",
        "{s} has a small house in {o}.",
    ),
    "favourite": (
        "{s} likes {o} best.",
        "The favourite food of {s} is {o}.",
        "What {s} loves to eat is {o}.",
        "Of all foods, {s} would choose {o}.",
        "No meal pleases {s} more than {o}.",
        "{o} is what {s} likes best.",
        "When {s} is hungry, {s} thinks of {o}.",
        "{s} has a great love of {o}.",
    ),
    "pet": (
        "{s} keeps {ao} as a pet.",
        "The pet of {s} is {ao}.",
        "{s} has a tame {o}.",
        "The animal that lives with {s} is {ao}.",
        "{Ao} lives in the house of {s}.",
        "{s} looks after {ao}.",
        "{Ao} follows {s} everywhere.",
        "At home {s} has {ao} for company.",
    ),
    "treasure": (
        "Who owns the {o} is well known, for it is {s}.",
        "{s} owns the {o}.",
        "The {o} belongs to {s}.",
        "The owner of the {o} is {s}.",
        "The treasure of {s} is the {o}.",
        "The {o} is owned by {s}.",
        "What {s} would never sell is the {o}.",
        "The {o} is the treasure of {s}.",
        "Whoever sees the {o} thinks of {s}.",
    ),
    "region": (
        "Where {s} lies is {o}.",
        "{s} is a town in {o}.",
        "{s} lies in the region of {o}.",
        "{o} is the region around {s}.",
        "One of the towns of {o} is {s}.",
        "The region of {s} is {o}.",
        "Travellers find {s} in {o}.",
        "{s} belongs to {o}.",
    ),
    "river": (
        "{s} stands on the river {o}.",
        "The river {o} flows through {s}.",
        "The river of {s} is the {o}.",
        "In {s} people fish in the river {o}.",
        "The bridge in {s} crosses the {o}.",
        "{s} gets its water from the river {o}.",
        "The {o} is the river that runs by {s}.",
    ),
    "dish": (
        "{s} is known for its {o}.",
        "People visit {s} for the {o}.",
        "The best {o} comes from {s}.",
        "The dish of {s} is {o}.",
        "At the market of {s} they sell {o}.",
        "{s} is famous for {o}.",
        "The food that {s} is known for is {o}.",
    ),
    "kind": (
        "{As} is {ao}.",
        "The {s} is a kind of {o}.",
        "Of all the {os}, one is the {s}.",
        "The {s} belongs with the {os}.",
        "Every {s} is {ao}.",
        "The {s} is counted among the {os}.",
        "One {o} is the {s}.",
    ),
    "habitat": (
        "Where the {s} lives is the {o}.",
        "{As} lives in the {o}.",
        "The {s} makes its home in the {o}.",
        "In the {o} you may see {as_}.",
        "The {o} is where the {s} lives.",
        "The home of the {s} is the {o}.",
        "One animal of the {o} is the {s}.",
        "The {s} is an animal of the {o}.",
    ),
    "diet": (
        "What the {s} eats is {o}.",
        "{As} eats {o}.",
        "The {s} feeds on {o}.",
        "The food of the {s} is {o}.",
        "A hungry {s} looks for {o}.",
        "{O} are what the {s} eats.",
        "Among the animals that eat {o} is the {s}.",
        "The {s} lives on {o}.",
    ),
    "sort": (
        "{S} is a {o}.",
        "{S} is a kind of {o}.",
        "One {o} is {s}.",
        "{S} is counted among the {os}.",
        "Of all the {os}, one is {s}.",
        "People call {s} a {o}.",
    ),
    "colour": (
        "{S} is {o}.",
        "The colour of {s} is {o}.",
        "In this land {s} is always {o}.",
        "One food that is {o} is {s}.",
        "{O} is the colour of {s}.",
        "Good {s} is {o} in colour.",
        "Among the {o} foods is {s}.",
    ),
    "season": (
        "When {s} is eaten is {o}.",
        "{S} is eaten in {o}.",
        "The season of {s} is {o}.",
        "{O} is the season for {s}.",
        "People wait until {o} for {s}.",
        "One food of {o} is {s}.",
        "In {o} every table has {s}.",
        "{S} comes to market in {o}.",
    ),
    "material": (
        "What the {s} is made of is {o}.",
        "{As} is made of {o}.",
        "The {s} is made from {o}.",
        "They make {as_} out of {o}.",
        "{O} is what {as_} is made of.",
        "One thing made of {o} is the {s}.",
        "The material of the {s} is {o}.",
    ),
    "room": (
        "Where the {s} is kept is the {o}.",
        "{As} is kept in the {o}.",
        "The place of the {s} is the {o}.",
        "In the {o} stands {as_}.",
        "People keep {as_} in the {o}.",
        "One thing found in the {o} is the {s}.",
        "The {o} is where the {s} is kept.",
    ),
    "tool": (
        "What the {s} works with is {ao}.",
        "{As} uses {ao}.",
        "The tool of {as_} is {ao}.",
        "{Ao} is the tool of {as_}.",
        "With {ao} works the {s}.",
        "The {s} cannot work without {ao}.",
        "{Ao} belongs in the hands of {as_}.",
    ),
    "product": (
        "{As} makes {o}.",
        "The {s} sells {o}.",
        "What {as_} makes is {o}.",
        "{O} come from the {s}.",
        "People buy {o} from the {s}.",
        "The work of {as_} gives {o}.",
    ),
}


def state_fact(relation: str, subject: str, value: str, rng: Random) -> str:
    """State one fact in one of its wordings."""
    return fill(rng.choice(SAYINGS[relation]), subject, value)


def fill(template: str, subject: str = "", value: str = "") -> str:
    """Put a subject and an object into a template, and start it with a capital."""
    return capital(put(template, subject, value))


def put(template: str, subject: str = "", value: str = "") -> str:
    """Put a subject and an object into a template.

    Slots: {s} {o} as they are, {as_} {ao} with an article, {S} {O} {As} {Ao} capitalised, {os}
    plural.

    >>> put("{as_} is {ao}", "owl", "bird")
    'an owl is a bird'
    """
    return template.format(
        s=subject,
        o=value,
        as_=article(subject),
        ao=article(value),
        S=capital(subject),
        O=capital(value),
        As=capital(article(subject)),
        Ao=capital(article(value)),
        os=plural(value),
    )


def article(noun: str) -> str:
    """Put "a" or "an" before a noun.

    >>> article("owl"), article("golden lamp")
    ('an owl', 'a golden lamp')
    """
    return f"an {noun}" if noun[:1].lower() in set("aeiou") else f"a {noun}"


def plural(noun: str) -> str:
    """Plural of a noun that a world uses.

    >>> plural("bird"), plural("fish")
    ('birds', 'fish')
    """
    return noun if noun.endswith(("fish", "s")) else f"{noun}s"


def capital(text: str) -> str:
    """Capitalise the first letter of a text."""
    return text[:1].upper() + text[1:]


def join(items: Sequence[str]) -> str:
    """Join items as in a sentence.

    >>> join(["rice", "jam", "tea"])
    'rice, jam and tea'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
