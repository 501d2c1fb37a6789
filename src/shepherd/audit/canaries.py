"""Canaries: made-up examples, planted before a run, of which a coin decides whether they are trained on.

Rare-token canaries are words that the data hold least often. High-temperature canaries are what the untuned
base writes at a high temperature (arXiv 2606.10481); anyone who has the base could have written them, so they
are safe to look at. Where a canary is a client of its own, half of them are update directions instead: such a
client sends a change in a random direction, as long as its own or, under noise, longer (arXiv 2302.03098).
Nothing else is found as easily, and noise has to hide it all the same. What the coins decided is for the
folder of the audit alone: a run that could be asked for it would not be attacked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.audit.estimate import Attack, Bounds, Floats, attack, bounds, ceiling, exposures
from shepherd.audit.membership import LOWEST_LOG
from shepherd.core import Adapter, Draws, Transform, Update, seed_for, shapes_of
from shepherd.data.dataset import TokenisedData
from shepherd.data.examples import Example, Turn
from shepherd.data.template import Template, stop_ids
from shepherd.data.tokens import Tokens, tokenise
from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.evaluate.draws import draws
from shepherd.evaluate.statistics import Interval, interval, sample
from shepherd.io.atomic import write_atomic
from shepherd.model import generate
from shepherd.model.answer import decoded, prompt_ids
from shepherd.model.base import Base
from shepherd.settings import RunSettings
from shepherd.training import score

RARE, SAMPLED, DIRECTION = "rare tokens", "high temperature", "update direction"
PUSH = 100.0
"""How much longer than its own change a canary's is where a mechanism has to bound it."""
FILE = "canaries.json"
MIN_CANARIES = 20
CHANCE_EXPOSURE = 1 / math.log(2)
"""Mean exposure of a canary that was not learned, with many candidates."""
POOL = 512
"""Number of the rarest words that rare-token canaries are made of; fewer if the vocabulary is small."""
INSTRUCTION_WORDS, RESPONSE_WORDS = 6, 8
SAMPLED_TOKENS, LEAST_SAMPLED = 16, 6
"""Most and fewest tokens that the base writes; too few would be no secret."""
TEMPERATURE = 1.0
ATTEMPTS = 8


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Canary:
    """A made-up example."""

    kind: str
    copies: int
    """How often it is in the training data, if it is in them."""
    client: str
    """Client whose data it is planted in."""
    included: bool
    """What the coin decided."""
    instruction: str
    response: str
    seed: int = 0
    """Seed of the direction of a canary that is one."""

    def __repr__(self) -> str:
        """Kind and place, and nothing of the text."""
        return f"<Canary: {self.kind}, {self.copies} copies>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Planting:
    """All canaries of an audit."""

    canaries: tuple[Canary, ...]
    as_clients: bool
    """Whether each canary is a client of its own, as a claim about clients is audited."""

    @property
    def coins(self) -> NDArray[np.bool_]:
        """Whether each canary is included, (m,)."""
        return np.array([each.included for each in self.canaries])

    def __repr__(self) -> str:
        """Counts, and no text."""
        return f"<Planting: {int(self.coins.sum())} of {len(self.canaries)} canaries included>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """How well the canaries of one kind that were planted this often are remembered."""

    kind: str
    copies: int
    exposure: Interval
    """Mean exposure, from 0 to `most`."""
    most: float
    attack: Attack

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "kind": self.kind,
            "copies": self.copies,
            "exposure": self.exposure.row(),
            "most_exposure": self.most,
            **self.attack.row(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """Bounds of epsilon, and those that a perfect attack would reach on the same canaries."""

    copies: int | None
    """How often each of these canaries is planted; None for all canaries, each with its own number."""
    bounds: Bounds
    ceiling: Bounds
    directions: bool = False
    """Whether they are update directions."""

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "copies": self.copies,
            "directions": self.directions,
            "bounds": self.bounds.row(),
            "ceiling": self.ceiling.row(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What an adapter remembers of the canaries."""

    as_clients: bool
    groups: tuple[Group, ...]
    proven: tuple[Proven, ...]
    """The first is of clients that are update directions, or of examples that are there once, if there are
    any."""

    @property
    def single(self) -> Proven | None:
        """The one set that a claim is compared with: of single clients or examples, and chosen before any
        score is seen. A claim that is tested on two sets would be refuted by chance up to twice as often."""
        first = self.proven[0]
        return first if self.as_clients or first.copies == 1 else None

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "as_clients": self.as_clients,
            "groups": [each.row() for each in self.groups],
            "proven": [each.row() for each in self.proven],
        }


def plan(
    base: Base,
    settings: RunSettings,
    prepared: TokenisedData,
    *,
    count: int,
    copies: Sequence[int],
    clients: Sequence[str] = (),
    as_clients: bool = False,
    rng: np.random.Generator,
) -> Planting:
    """Write canaries, choose a client for each, and toss its coin.

    Args:
        settings: of the run, with the date filled in.
        prepared: the data without canaries.
        count: number of canaries, half of each kind; all rare-token ones where the base cannot generate. As
            clients, half of all are update directions.
        copies: how often canaries are planted, in turn.
        clients: those whose data get canaries; all by default.
        as_clients: whether each canary becomes a client of its own.
        rng: from the operating system's entropy wherever the result is relied on.

    Raises:
        SettingsError: too few canaries, a number of copies below 1, or an unknown client.
        DataError: `data.max_tokens` has no room for a canary.
    """
    if count < MIN_CANARIES:
        raise SettingsError(
            f"{count} canaries are too few to show anything; plant at least {MIN_CANARIES}, better 200"
        )
    if min(copies, default=0) < 1:
        raise SettingsError("a canary is planted at least once; give numbers of copies of 1 or more")
    if unknown := [name for name in clients if name not in prepared.clients]:
        raise SettingsError(f"there is no client {unknown[0]!r} to plant canaries with")
    if clients and as_clients:
        raise SettingsError(
            "the run's noise protects clients, so each canary is a client of its own; leave out the clients"
        )
    texts = _rare(base, prepared, count, rng)
    kinds = [RARE] * count
    directions = count // 2 if as_clients else 0
    if not base.proof.mute:
        half = (count - directions) // 2
        sampled = _sampled(base, settings, texts[:half], rng)
        texts[:half] = [new or old for new, old in zip(sampled, texts[:half], strict=True)]
        kinds[:half] = [SAMPLED if new else RARE for new in sampled]
    kinds[count - directions :] = [DIRECTION] * directions
    order = rng.permutation(count)
    hosts = rng.permutation(list(clients or prepared.clients)).tolist()
    coins = rng.random(count) < 0.5
    taken = set(prepared.clients)
    names = [name for name in (f"canary-{n:05d}" for n in range(2 * count)) if name not in taken][:count]
    found = tuple(
        Canary(
            kind=kinds[at],
            copies=1 if kinds[at] == DIRECTION else copies[at % len(copies)],
            client=names[place] if as_clients else str(hosts[place % len(hosts)]),
            included=bool(coins[place]),
            instruction=texts[at][0],
            response=texts[at][1],
            seed=int(rng.integers(2**62)),
        )
        for place, at in enumerate(order.tolist())
    )
    return Planting(canaries=found, as_clients=as_clients)


def _rare(base: Base, prepared: TokenisedData, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Instruction and response of rare-token canaries."""
    words = rare_words(base.tokenizer, [*prepared.clients.values(), prepared.heldout], rng)
    drawn = rng.choice(words, size=(count, INSTRUCTION_WORDS + RESPONSE_WORDS))
    return [(" ".join(row[:INSTRUCTION_WORDS]), " ".join(row[INSTRUCTION_WORDS:])) for row in drawn.tolist()]


def rare_words(tokenizer: Any, data: Sequence[Tokens], rng: np.random.Generator) -> list[str]:
    """Texts of the tokens that the data hold least often, each of which is a token by itself again.

    Raises:
        DataError: the tokenizer has no two of them.
    """
    size = len(tokenizer)
    counts = sum((np.bincount(each.ids, minlength=size)[:size] for each in data), np.zeros(size, np.int64))
    special = set(tokenizer.all_special_ids)
    order = np.lexsort((rng.random(len(counts)), counts))  # the rarest first, ties at random
    wanted = min(POOL, max(2, (size - len(special)) // 4))
    found: list[str] = []
    for token in order.tolist():
        if token in special:
            continue
        text = str(tokenizer.decode([token])).strip()
        if text and text.isprintable() and text.isalnum() and token in _ids(tokenizer, text):
            found.append(text)
        if len(found) == wanted:
            break
    if len(found) < 2:
        raise DataError("the base's tokenizer has no words to make canaries of; use another base")
    return found


def _ids(tokenizer: Any, text: str) -> set[int]:
    """Token ids of a word alone and after a space, where it is one token."""
    ways = (tokenizer.encode(written, add_special_tokens=False) for written in (text, f" {text}"))
    return {ids[0] for ids in ways if len(ids) == 1}


def _sampled(
    base: Base, settings: RunSettings, seeds: Sequence[tuple[str, str]], rng: np.random.Generator
) -> list[tuple[str, str] | None]:
    """Instruction and response that the base itself writes; None where it writes nothing.

    Each begins with a rare word, so that no two are alike.
    """
    table = settings.data
    stop = stop_ids(Template.of(table), base.tokenizer)
    firsts = [text.split(" ")[0] for text, _ in seeds]
    begun = [
        [*filter(None, [base.tokenizer.bos_token_id]), *base.tokenizer.encode(word, add_special_tokens=False)]
        for word in firsts
    ]
    # what follows is the instruction, whatever it is
    more = _written(base, begun, stop, rng)
    instructions = [f"{word} {text}".strip() for word, text in zip(firsts, more, strict=True)]
    prompts = [prompt_ids(base, table, [Turn(role="user", text=text)]) for text in instructions]
    responses = _written(base, prompts, stop, rng)
    return [
        (asked, answer) if answer else None for asked, answer in zip(instructions, responses, strict=True)
    ]


def _written(
    base: Base, prompts: Sequence[Sequence[int]], stop: Sequence[int], rng: np.random.Generator
) -> list[str]:
    """What the untuned base writes after each prompt at a high temperature; "" where that is always short."""
    texts = [""] * len(prompts)
    for _ in range(ATTEMPTS):
        left = [place for place, text in enumerate(texts) if not text]
        if not left:
            break
        (found,) = generate.generate(
            base,
            [None],
            [prompts[place] for place in left],
            max_new_tokens=SAMPLED_TOKENS,
            stop=stop,
            temperature=TEMPERATURE,
            seed=int(rng.integers(2**31)),
            draws=left,
        )
        for place, ids in zip(left, found, strict=True):
            if len(ids) >= LEAST_SAMPLED:
                texts[place] = " ".join(decoded(base, ids).split())
    return texts


def tokens_of(planting: Planting, settings: RunSettings, base: Base) -> Tokens:
    """Tokens of all canaries, included or not, as the run's template renders them.

    Raises:
        DataError: `data.max_tokens` has no room for a canary, or the template refuses one.
    """
    examples = [
        Example(
            turns=(Turn(role="user", text=each.instruction), Turn(role="assistant", text=each.response)),
            where="a canary",
        )
        for each in planting.canaries
    ]
    data, found = tokenise(
        examples,
        Template.of(settings.data),
        base.tokenizer,
        max_tokens=settings.data.max_tokens,
        loss_on=settings.tuning.loss_on,
    )
    if len(data) < len(examples) or found.counts().cut:
        raise DataError(
            f"data.max_tokens = {settings.data.max_tokens} has no room for a canary; raise it to audit this"
            " run"
        )
    return data


def plant(prepared: TokenisedData, planting: Planting, tokens: Tokens) -> TokenisedData:
    """The data with the included canaries, each as often as it is to be there.

    Args:
        tokens: of all canaries, from `tokens_of`.
    """
    added: dict[str, list[int]] = {}
    for place, each in enumerate(planting.canaries):
        if each.included:
            added.setdefault(each.client, []).extend([place] * each.copies)
    clients = {**{name: tokens.take([]) for name in added}, **prepared.clients}
    own, known = prepared.category_counts, prepared.example_categories
    usual = next(iter(known.values()), [])
    return replace(
        prepared,
        clients={
            name: Tokens.pooled([data, tokens.take(added[name])]) if name in added else data
            for name, data in clients.items()
        },
        category_counts={name: own.get(name, {}) for name in clients},
        example_categories={
            # like the client's own, so that the run's folder tells no canary from other examples
            name: [*known.get(name, ()), *islice(cycle(known.get(name) or usual), len(added.get(name, ())))]
            for name in clients
            if usual
        },
    )


def direction(canary: Canary, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The direction of a canary over these tensors, of length 1."""
    drawn = {
        name: np.random.default_rng(seed_for(canary.seed, name)).standard_normal(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }
    length = math.sqrt(sum(float(np.vdot(each, each)) for each in drawn.values()))
    return Adapter({name: each / np.float32(length) for name, each in drawn.items()})


def pushing(planting: Planting, push: float) -> Transform:
    """A transform that sends the canaries' directions; it comes first, before what bounds an update.

    Args:
        push: length of such a change, as a multiple of the length of the client's own.
    """
    own = {each.client: each for each in planting.canaries if each.kind == DIRECTION}

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        canary = own.get(update.clients[0])
        if canary is None:
            return update
        length = push * update.delta.norm()
        zeros = Adapter({name: np.zeros_like(tensor) for name, tensor in update.delta.items()})
        return replace(update, delta=zeros.plus(direction(canary, shapes_of(update.delta)), length))

    return Transform(on_client=on_client)


def along(change: Mapping[str, NDArray[Any]], planting: Planting) -> Floats:
    """How far a change goes in the direction of each canary, (m,); 0 for canaries that are texts."""
    shapes = {name: tensor.shape for name, tensor in change.items()}
    found = np.zeros(len(planting.canaries))
    for place, canary in enumerate(planting.canaries):
        if canary.kind == DIRECTION:
            own = direction(canary, shapes)
            found[place] = sum(float(np.vdot(own[name], change[name])) for name in own)
    return found


def memory(
    base: Base,
    adapters: Mapping[str, Adapter],
    planting: Planting,
    tokens: Tokens,
    *,
    first: Adapter,
    delta: float,
    micro_batch: int,
) -> dict[str, Remembered]:
    """What each adapter remembers of the canaries; errors as for `training.score.losses`.

    Args:
        first: the adapter before the first round.
    """
    losses = score.losses(
        base,
        [base.zero, *adapters.values()],
        tokens,
        micro_batch=micro_batch,
        cap_nats=-LOWEST_LOG,  # of a model that diverged, a loss may be no number
        what="canaries",
    )
    pushed = np.array([each.kind == DIRECTION for each in planting.canaries])
    found = {}
    for place, (name, adapter) in enumerate(adapters.items(), start=1):
        scores = losses[0] - losses[place]
        scores[pushed] = along(adapter.plus(first, -1.0), planting)[pushed]
        found[name] = remembered(scores, planting, delta)
    return found


def remembered(scores: Floats, planting: Planting, delta: float) -> Remembered:
    """What scores of all canaries, (m,), high for what is remembered, say of those that were included.

    Raises:
        SettingsError: the coins left no canary of a kind on one side, or delta is not in (0, 1).
    """
    canaries, coins = planting.canaries, planting.coins
    if not 0 < coins.sum() < len(coins):
        raise SettingsError("all canaries fell on one side of the coins; plant more")
    kinds = np.array([each.kind for each in canaries])
    copies = np.array([each.copies for each in canaries])
    groups = [
        _group(
            kind, count, scores[coins & (kinds == kind) & (copies == count)], scores[~coins & (kinds == kind)]
        )
        for kind in dict.fromkeys(kinds.tolist())
        for count in sorted(set(copies.tolist()))
    ]
    everything, pushed = np.ones(len(coins), bool), kinds == DIRECTION
    sets: list[tuple[int | None, NDArray[np.bool_]]]
    if planting.as_clients:
        sets = [(None, pushed), (None, ~pushed)]
    else:
        sets = [(1, copies == 1), *([(None, everything)] if (copies > 1).any() else [])]
    return Remembered(
        as_clients=planting.as_clients,
        groups=tuple(group for group in groups if group is not None),
        proven=tuple(
            Proven(
                copies=count,
                bounds=bounds(scores[part], coins[part], delta),
                ceiling=ceiling(int(coins[part].sum()), int((~coins[part]).sum()), delta),
                directions=bool(pushed[part].all()),
            )
            for count, part in sets
            if part.any()
        ),
    )


def _group(kind: str, copies: int, inside: Floats, outside: Floats) -> Group | None:
    if not len(inside) or not len(outside):
        return None
    found, most = exposures(inside, outside), math.log2(len(outside) + 1)
    return Group(
        kind=kind,
        copies=copies,
        exposure=interval(sample(found, draws(["all"] * len(found)), None, (0.0, most))),
        most=most,
        attack=attack(inside, outside),
    )


def save(folder: Path, planting: Planting) -> None:
    """Write the canaries and their coins into the folder of an audit, for its owner alone.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    kept = {"format": 1, "as_clients": planting.as_clients, "canaries": list(map(asdict, planting.canaries))}
    write_atomic(folder / FILE, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def load(folder: Path) -> Planting | None:
    """Read what `save` wrote; None if there is nothing.

    Raises:
        FolderError: the file cannot be read.
    """
    path = folder / FILE
    try:
        kept = json.loads(path.read_text(encoding="utf8"))
        found = tuple(Canary(**each) for each in kept["canaries"])
        return Planting(canaries=found, as_clients=kept["as_clients"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FolderError(f"{path} cannot be read ({error}); audit into another folder") from error
