"""From a run file to what the clients train on: read, hold out, split, tokenise, and keep on disk.

A run folder keeps its own tokens, so that a run goes on when the source has moved or vanished:

data/
  index.json       clients, their examples' categories, and what was cut, dropped and left out
  heldout.jsonl    the held-out examples, in the order in which they are drawn to be scored
  heldout/         their tokens
  root/            tokens of the server's own examples, if there are any
  clients/         all clients' tokens, one after another in the order of index.json
  rejected/        the worse answers to these, and heldout-rejected/ to those, where an objective compares two
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shepherd import plugins, world
from shepherd.core import seed_for
from shepherd.data import tokens as stored
from shepherd.data.examples import Example, Reading, Turn, from_rows, read
from shepherd.data.files import left_out
from shepherd.data.holdout import (
    HoldOut,
    duplicate_remarks,
    duplicate_warning,
    hold_out,
    hold_out_remarks,
    set_apart,
)
from shepherd.data.noted import Notes
from shepherd.data.split import Split, rule, split
from shepherd.data.template import Template, prints_date
from shepherd.data.tokens import (
    Counts,
    Outcomes,
    Tokens,
    response_remarks,
    tokenise,
    tokenise_pairs,
)
from shepherd.errors import DataError, FolderError, PluginError, SettingsError
from shepherd.io import private
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.io.phrases import listed
from shepherd.io.progress import Stage, many, stage
from shepherd.settings import MEMORY, PREFERENCES, WORLD, DataTable, RunSettings, SplitTable
from shepherd.visible import shown_line

if TYPE_CHECKING:  # torch is not for `data split`
    from shepherd.model.base import Base

MAX_CLIENTS_NAMED = 5
WORLD_EXAMPLES = 1000  # of each category, where data.limit does not say
EMBEDDED: Mapping[str, Callable[..., list[dict[str, Any]]]] = {
    WORLD: world.rows,
    PREFERENCES: world.preferences,
}
INDEX, HELDOUT = "index.json", "heldout.jsonl"
REJECTED, HELDOUT_REJECTED = "rejected", "heldout-rejected"
HELD_OUT = "the held-out examples"
NO_CATEGORIES: Mapping[str, Any] = {"names": [], "clients": {}}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Partition:
    """Examples and who gets which: `clients` maps a name to indices, `held` is what nobody trains on."""

    reading: Reading
    held: HoldOut
    clients: Mapping[str, Sequence[int]]

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        held, clients = self.held, many(len(self.clients), "client")
        return f"<Division: {clients}, {len(held.train):,} examples, {len(held.heldout):,} held out>"

    def of(self, indices: Sequence[int]) -> list[Example]:
        return [self.reading.examples[i] for i in indices]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenisedData:
    """What a run trains and scores on."""

    clients: Mapping[str, Tokens]
    category_counts: Mapping[str, Mapping[str, int]]
    """For each client, how many examples of each category it trains on."""
    heldout: Tokens
    heldout_examples: Sequence[Example]
    summary: Mapping[str, Any]
    """Counts: examples, duplicates and the like (see `HoldOut`), skipped rows, cut, dropped, tokens."""
    dropped: Sequence[str] = ()
    """One sentence for each reason that examples were dropped for."""
    notes: Notes = field(default_factory=Notes)
    """What of the rows is not read, refused or changed."""
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Where the first are of what `summary` counts, by its key there."""
    by_client: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The counts of each client: see `client_counts`."""
    left_out: Sequence[str] = ()
    """Sentences on what is in the folder of the data and is not read."""
    root: Tokens | None = None
    """The server's own examples (`data.root`), if there are any."""
    example_categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For each client, the category of each example that it trains on; folders of earlier versions have
    none."""
    rejected: Mapping[str, Tokens] = field(default_factory=dict)
    """For each client, the worse answer to each of its examples, where the objective compares two; `clients`
    then holds the better ones."""
    heldout_rejected: Tokens | None = None
    """The worse answers to the held-out examples, where the objective compares two."""

    @property
    def trained_on(self) -> Mapping[str, Tokens]:
        """What each client trains on: its examples, or the two answers to each of them one after another."""
        if not self.rejected:
            return self.clients
        return {name: Tokens.interleaved([own, self.rejected[name]]) for name, own in self.clients.items()}

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        kept = sum(map(len, self.clients.values()))
        clients = many(len(self.clients), "client")
        return f"<Prepared: {clients}, {kept:,} examples, {len(self.heldout):,} held out>"


def divide(settings: RunSettings, allowed: Collection[str] = (), rows: Any = None) -> Partition:
    """Read the examples, hold some out, and give the rest to clients.

    Args:
        allowed: modules outside the package that may be imported for the split.
        rows: the data, where data.source is "memory".

    Raises:
        DataError: a row, a file, or the split cannot be used.
        SettingsError: there is no such split, or a key of it is wrong.
    """
    chosen = rule(settings.split, allowed)
    with stage(f"reading {settings.data.source}"):
        reading = examples(settings, chosen, rows)
    seed = seed_for(settings.data_seed, "data")
    if settings.evaluation.data:
        reading, held = _tested(reading, settings, seed)
    else:
        held = _held(reading.examples, settings, seed)
    training = [reading.examples[i] for i in held.train]
    shares = split(training, chosen, seed)
    clients = {name: held.train[places].tolist() for name, places in shares.items()}
    return Partition(reading=reading, held=held, clients=clients)


def _held(examples: Sequence[Example], settings: RunSettings, seed: int) -> HoldOut:
    keep = settings.data.duplicates == "keep"
    return hold_out(examples, settings.data.holdout, seed, keep_duplicates=keep)


def _tested(reading: Reading, settings: RunSettings, seed: int) -> tuple[Reading, HoldOut]:
    """The reading with the test set's examples behind it, and all of these held out."""
    path = settings.evaluation.data
    with stage(f"reading {path}"):
        test = test_set(settings.data, path, "evaluation.data")
    keep = settings.data.duplicates == "keep"
    held = set_apart(reading.examples, test.examples, seed, keep_duplicates=keep)
    left = {reading.examples[index].client for index in held.train}
    for example in reading.examples:
        if example.client not in left:
            whose = f"client {example.client} has" if example.client else f"{settings.data.source} has"
            raise DataError(
                f"{whose} nothing to train on that is not in the test set {path}; name another file in"
                " evaluation.data, or take these examples out of it"
            )
    together = Reading(
        examples=(*reading.examples, *test.examples),
        skipped=(*reading.skipped, *test.skipped),
        notes=Notes.together([reading.notes, test.notes]),
        skipped_by_client=reading.skipped_by_client,
    )
    return together, held


def test_set(table: DataTable, path: str, key: str) -> Reading:
    """Read a file of examples that are only scored, with the fields of the training data.

    Args:
        key: the key or option that names the file.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        fault = "is a folder and no file" if file.is_dir() else "does not exist"
        raise DataError(f"the file {path} {fault}; give a file of rows in {key}")
    own = table.model_copy(update={"source": str(file), "config": None, "limit": None})
    return read(own, rule(SplitTable()), 0)


def _require_groups(reading: Reading, table: DataTable) -> Reading:
    if table.group and not any(example.group for example in reading.examples):
        raise DataError(
            f"no row of {table.source} fills a field {table.group}, which data.group names; name another"
            ' field, or set data.group = ""'
        )
    return reading


def examples(settings: RunSettings, split_rule: Split, rows: Any = None) -> Reading:
    """The examples of `data.source`, with what the split goes by; two names are of the embedded world."""
    source = settings.data.source
    if (rows is None) == (source == MEMORY):
        raise DataError(
            f"data.source is {source!r}; give the rows to shepherd.open_run(settings, rows=...)"
            if rows is None
            else f'rows are given, and data.source is {source!r}; write "memory" there'
        )
    if source not in EMBEDDED:
        found = read(settings.data, split_rule, settings.data_seed, rows)
        return _require_groups(found, settings.data)
    count = settings.data.limit or WORLD_EXAMPLES
    try:
        rows = EMBEDDED[source](world.build(world.SEED), count, seed_for(settings.data_seed, "world"))
    except ValueError as error:
        raise DataError(f"data.limit = {count} asks too much of the embedded world: {error}") from error
    return _require_groups(from_rows(rows, settings.data, split_rule, source), settings.data)


def prepare(
    settings: RunSettings,
    tokenizer: Any,
    allowed: Collection[str] = (),
    rows: Any = None,
    *,
    paired: bool = False,
) -> TokenisedData:
    """Divide and tokenise; `allowed` and `rows` as for `divide`.

    Args:
        paired: whether both answers of each example are wanted; else only the better one is tokenised.

    Raises:
        DataError: as `divide`; or a client keeps no example after rendering; or answers are wanted and
            a held-out example's check is none.
    """
    division = divide(settings, allowed, rows)
    if settings.evaluation.answers:
        _require_checks(division.of(division.held.heldout.tolist()))
    table = settings.data
    said = left_out(table.source, table.config, table.part)
    root = root_examples(settings, tokenizer, paired=paired) if table.root else None
    return replace(tokenised(division, settings, tokenizer, paired=paired), left_out=said, root=root)


def root_examples(settings: RunSettings, tokenizer: Any, *, paired: bool = False) -> Tokens:
    """The server's own examples, from `data.root`; `paired` as for `prepare`.

    Raises:
        DataError: there is no such file, it cannot be read, or no example is left.
    """
    path = settings.data.root
    own = test_set(settings.data, path, "data.root").examples
    found, outcomes = training_tokens(own, settings, tokenizer, paired=paired)
    if not len(found):
        reason = next(iter(outcomes.counts().dropped), "it had none")
        raise DataError(f"data.root = {path!r} keeps no example ({reason}); name a file with more of them")
    return found


def training_tokens(
    examples: Iterable[Example], settings: RunSettings, tokenizer: Any, *, paired: bool
) -> tuple[Tokens, Outcomes]:
    """Examples as a client trains on them, of pairs both answers in turn; and what became of each.

    Raises:
        TemplateError: as `tokens.tokenise`.
    """
    found, worse, outcomes = _tokenised(examples, settings, tokenizer, paired)
    return found if worse is None else Tokens.interleaved([found, worse]), outcomes


def dated(settings: RunSettings, tokenizer: Any) -> RunSettings:
    """The settings with today's date, where the template prints the day and they name none.

    Raises:
        TemplateError: the template cannot render with this tokenizer.
    """
    if settings.data.date or not prints_date(Template.of(settings.data), tokenizer):
        return settings
    data = settings.data.model_copy(update={"date": date.today().isoformat()})
    return settings.model_copy(update={"data": data})


def one_client(settings: RunSettings, name: str, tokenizer: Any, *, paired: bool = False) -> TokenisedData:
    """As `prepare`, but all the examples of the source that are not held out are the client `name`'s.

    What a client of a ready-made folder trains on is the same here, given its file as the source, where
    nothing is held out and no other client holds a duplicate: holding out and dropping duplicates look
    at this client's examples alone. No answer is judged here, so checks are not asked for.

    Raises:
        DataError: a row or a file cannot be used, or no example is left to train on.
    """
    return tokenised(alone(settings, name), settings, tokenizer, paired=paired)


def held_out(settings: RunSettings, name: str, tokenizer: Any, *, paired: bool = False) -> TokenisedData:
    """Of `one_client`, only what is held out.

    Raises:
        DataError: a row or a file cannot be used.
    """
    return tokenised(replace(alone(settings, name), clients={}), settings, tokenizer, paired=paired)


def only_scored(
    test: Reading, settings: RunSettings, tokenizer: Any, *, paired: bool = False
) -> TokenisedData:
    """The examples of a test set, all held out, in the order in which they are drawn to be scored."""
    held = set_apart((), test.examples, seed_for(settings.data_seed, "data"))
    return tokenised(Partition(reading=test, held=held, clients={}), settings, tokenizer, paired=paired)


def alone(settings: RunSettings, name: str) -> Partition:
    """The examples of `data.source` as the one client `name`'s, in the order that they were read.

    Raises:
        DataError: a row or a file cannot be used.
    """
    reading = examples(settings, rule(SplitTable()))
    own = tuple(replace(example, client=name) for example in reading.examples)
    held = _held(own, settings, seed_for(settings.data_seed, "data"))
    return Partition(reading=replace(reading, examples=own), held=held, clients={name: held.train.tolist()})


def tokenised(
    division: Partition, settings: RunSettings, tokenizer: Any, *, paired: bool = False
) -> TokenisedData:
    """Tokenise a division: what clients train on, and what is held out; `paired` as for `prepare`.

    Raises:
        DataError: a client keeps no example after rendering.
    """
    sizes = [len(indices) for indices in division.clients.values()]
    every = np.fromiter(chain.from_iterable(division.clients.values()), np.int64, sum(sizes))
    with stage(f"tokenising the examples of {len(sizes)} clients", len(every)) as now:
        # all together: a call for each of thousands of clients costs more than their few examples
        taken = _counted((division.reading.examples[i] for i in every), now)
        tokens, worse, found = _tokenised(taken, settings, tokenizer, paired)
    borders = np.cumsum([0, *sizes])
    of = {
        name: found.counts(slice(*border))
        for name, border in zip(division.clients, pairwise(borders), strict=True)
    }
    for name, each in of.items():
        if not each.kept:
            reason = next(iter(each.dropped), "it had none")
            raise DataError(
                f"client {name} keeps no example ({reason}); change data.template or data.max_tokens"
            )
    own = [each.kept for each in of.values()]
    clients = dict(zip(of, tokens.split(own), strict=True))
    rejected = {} if worse is None else dict(zip(of, worse.split(own), strict=True))
    kept = iter(found.kept)
    example_categories = {
        name: [division.reading.examples[every[i]].category or "all" for i in islice(kept, each.kept)]
        for name, each in of.items()
    }
    held = division.of(division.held.heldout.tolist())
    with stage(f"tokenising {len(held):,} held-out examples"):
        heldout, heldout_rejected, of_held = _tokenised(held, settings, tokenizer, paired)
    scored = [held[i] for i in of_held.kept]
    counts = [*of.values(), of_held.counts()]
    all_clients = found.counts()
    return TokenisedData(
        clients=clients,
        category_counts={name: dict(Counter(names)) for name, names in example_categories.items()},
        heldout=heldout,
        heldout_examples=scored,
        summary={
            **_counts(division, settings, scored),
            "kept": all_clients.kept,
            "cut": all_clients.cut,
            "cut_responses": all_clients.cut_responses,
            "marked_responses": all_clients.marked,
            "dropped": all_clients.examples - all_clients.kept,
            "tokens": all_clients.tokens,
            "trained_tokens": all_clients.trained,
            **_halved(division.reading.examples, paired),
        },
        dropped=list(_dropped(counts)),
        notes=division.reading.notes,
        places=_places(division),
        by_client=client_counts(of, division.reading),
        example_categories=example_categories,
        rejected=rejected,
        heldout_rejected=heldout_rejected,
    )


def _halved(examples: Sequence[Example], paired: bool) -> dict[str, int]:
    """How many rejected answers are read and not used, if any."""
    count = 0 if paired else sum(bool(example.rejected) for example in examples)
    return {"pairs_halved": count} if count else {}


def _counted(examples: Iterable[Example], now: Stage) -> Iterator[Example]:
    """The examples, each counted as done in `now` as it is taken."""
    for example in examples:
        now.advance()
        yield example


def client_counts(counts: Mapping[str, Counts], reading: Reading) -> dict[str, dict[str, int]]:
    """For each client: its examples to train on, and how many are kept, cut, dropped, masked, or not read."""
    return {
        name: {
            "examples": count.examples,
            "kept": count.kept,
            "cut": count.cut,
            "cut_responses": count.cut_responses,
            "marked_responses": count.marked,
            "dropped": count.examples - count.kept,
            "skipped_rows": reading.skipped_by_client.get(name, 0),
        }
        for name, count in counts.items()
    }


def client_remarks(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Sentences on which clients what is cut, dropped, masked or not read belongs to; none for one client."""
    kinds = (
        ("skipped_rows", "rows skipped", ""),
        ("dropped", "examples dropped", "examples"),
        ("cut", "examples cut to fit", "kept"),
        ("cut_responses", "of these, responses cut", "kept"),
        ("marked_responses", "responses masked by marks", ""),
    )
    said = []
    for key, what, whole in kinds if len(counts) > 1 else ():
        own = sorted((-count[key], name) for name, count in counts.items() if count[key])
        named = [
            f"{shown_line(name)} {-count:,}" + (f" of {counts[name][whole]:,}" if whole else "")
            for count, name in own
        ]
        said += [f"{what}, by client: {listed(named, MAX_CLIENTS_NAMED)}"] if own else []
    return said


def _dropped(counts: Sequence[Counts]) -> Iterator[str]:
    """A sentence a reason, over clients and held-out examples."""
    for reason in dict.fromkeys(reason for each in counts for reason in each.dropped):
        number = sum(each.dropped.get(reason, 0) for each in counts)
        first = next(each.first[reason] for each in counts if reason in each.first)
        yield f"{number} dropped: {reason}" + (f" (the first: {first})" if first else "")


def require_readable(prepared: TokenisedData, base: Base) -> None:
    """Raise DataError where an example holds a token, or a place, that the base has no embedding for."""
    known = len(base.model.get_input_embeddings().weight)
    whole = [*prepared.clients.items(), *prepared.rejected.items(), (HELD_OUT, prepared.heldout)]
    whole += [] if prepared.heldout_rejected is None else [(HELD_OUT, prepared.heldout_rejected)]
    for name, data in whole:
        if len(data) and int(data.ids.max()) >= known:
            raise DataError(
                f"{name}: token {int(data.ids.max())} is not among the {known} of base {base.name}; "
                "use the tokenizer that the base was trained with"
            )
        base.require_reads(int(data.lengths.max()) if len(data) else 0, name)


def _require_checks(examples: Sequence[Example]) -> None:
    """Before any training: a check that nobody can decide by would only be found after the last round."""
    for example in examples:
        try:
            if example.check is not None:
                plugins.checker(example.check)
        except (SettingsError, PluginError) as error:
            raise DataError(
                f"{example.where}: field check: {error}; or set evaluation.answers = 0"
            ) from error


def _tokenised(
    examples: Iterable[Example], settings: RunSettings, tokenizer: Any, paired: bool
) -> tuple[Tokens, Tokens | None, Outcomes]:
    """The examples, the worse answers to them if they are wanted, and what became of each."""
    template, most = Template.of(settings.data), settings.data.max_tokens
    skip = settings.data.on_bad_row == "skip"
    if paired:
        return tokenise_pairs(examples, template, tokenizer, max_tokens=most, drop_refused=skip)
    data, found = tokenise(
        examples,
        template,
        tokenizer,
        max_tokens=most,
        loss_on=settings.tuning.loss_on,
        drop_refused=skip,
    )
    return data, None, found


def save(folder: Path, prepared: TokenisedData) -> None:
    """Write a run's data; `index.json` comes last, so that half a folder is never taken for a whole one.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    with disk_errors(folder):
        private.make(folder)
        stored.save_together(folder / "clients", list(prepared.clients.values()))
        prepared.heldout.save(folder / "heldout")
        if prepared.rejected:
            stored.save_together(folder / REJECTED, [prepared.rejected[name] for name in prepared.clients])
        if prepared.heldout_rejected is not None:
            prepared.heldout_rejected.save(folder / HELDOUT_REJECTED)
        if prepared.root is not None:
            prepared.root.save(folder / "root")
    lines = [json.dumps(_plain(example)) + "\n" for example in prepared.heldout_examples]
    write_atomic(folder / HELDOUT, "".join(lines))
    index = {
        "clients": list(prepared.clients),
        "sizes": list(map(len, prepared.clients.values())),
        "mixes": prepared.category_counts,
        "summary": prepared.summary,
        "dropped": list(prepared.dropped),
        "rows": prepared.notes.plain(),
        "places": {key: list(places) for key, places in prepared.places.items()},
        "by_client": {name: dict(counts) for name, counts in prepared.by_client.items()},
        "left_out": list(prepared.left_out),
        "example_categories": _numbered(prepared.example_categories),
    }
    write_atomic(folder / INDEX, json.dumps(index, indent=1))


def digest(prepared: TokenisedData) -> str:
    """SHA-256 of what each client trains on and of what is held out, by their tokens."""
    found = hashlib.sha256()
    worse = [] if prepared.heldout_rejected is None else [prepared.heldout_rejected]
    named = {**prepared.trained_on, **{f"\0held {n}": p for n, p in enumerate([prepared.heldout, *worse])}}
    for name, part in named.items():
        found.update(f"{name}\0{len(part)}\0".encode())
        for array in (part.ids, part.loss_mask, part.offsets):
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def load(folder: Path) -> TokenisedData:
    """Read back what `save` wrote; the tokens are memory-mapped.

    Raises:
        FolderError: something is missing or damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf8"))
        lines = (folder / HELDOUT).read_text(encoding="utf8").splitlines()
        names = index["clients"]
        if "sizes" in index:
            parts = stored.load(folder / "clients").split(index["sizes"])
        else:  # an earlier version had a folder for each client
            parts = [stored.load(folder / "clients" / f"{number:04d}") for number in range(len(names))]
        clients = dict(zip(names, parts, strict=True))
        worse = stored.load(folder / REJECTED).split(index["sizes"]) if (folder / REJECTED).is_dir() else None
        unlike = stored.load(folder / HELDOUT_REJECTED) if (folder / HELDOUT_REJECTED).is_dir() else None
        if unlike is not None and len(unlike) != len(lines):
            raise DataError(f"{HELDOUT} has {len(lines)} examples, and {len(unlike)} have a worse answer")
        heldout = stored.load(folder / "heldout")
        if len(lines) != len(heldout):
            raise DataError(f"{HELDOUT} has {len(lines)} examples and their tokens {len(heldout)}")
        return TokenisedData(
            clients=clients,
            category_counts=index["mixes"],
            heldout=heldout,
            heldout_examples=[_example(json.loads(line)) for line in lines],
            summary=index["summary"],
            dropped=index.get("dropped", []),
            notes=Notes.of(index.get("rows", {})),
            places=index.get("places", {}),
            by_client=index.get("by_client", {}),
            left_out=index.get("left_out", []),
            root=stored.load(folder / "root") if (folder / "root").is_dir() else None,
            example_categories=_named(**index.get("example_categories", NO_CATEGORIES)),
            rejected={} if worse is None else dict(zip(names, worse, strict=True)),
            heldout_rejected=unlike,
        )
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise FolderError(
            f"the data of the run in {folder.parent} cannot be read ({error}); start the run again"
            " in a new folder"
        ) from error


def _numbered(categories: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Categories as numbers, since there are few names and many examples."""
    names = sorted({name for each in categories.values() for name in each})
    numbers = {name: number for number, name in enumerate(names)}
    return {"names": names, "clients": {name: [numbers[c] for c in of] for name, of in categories.items()}}


def _named(names: Sequence[str], clients: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    return {name: [names[number] for number in of] for name, of in clients.items()}


def remarks(prepared: TokenisedData) -> list[str]:
    """What is to be said of what was held out, if anything."""
    return _remarks(prepared.summary, list(prepared.clients), prepared.heldout_examples, prepared.places)


def training_remarks(prepared: TokenisedData) -> list[str]:
    """Sentences on the rows, and on what was dropped, cut or masked; empty if there is nothing to report."""
    counts = prepared.summary
    return [
        *prepared.notes.sentences(),
        *_halved_remarks(counts.get("pairs_halved", 0)),
        *_repeat_remarks(counts, prepared.places),
        *prepared.dropped,
        *response_remarks(
            kept=counts["kept"],
            cut=counts.get("cut_responses", 0),
            marked=counts.get("marked_responses", 0),
        ),
        *client_remarks(prepared.by_client),
    ]


def division_remarks(division: Partition, settings: RunSettings) -> list[str]:
    """Sentences on the rows and on what is held out, before anything is tokenised."""
    held = division.of(division.held.heldout.tolist())
    counts, places = _counts(division, settings, held), _places(division)
    return [
        *division.reading.notes.sentences(),
        *repeat_remarks(division, settings),
        *_remarks(counts, list(division.clients), held, places),
    ]


def repeat_remarks(division: Partition, settings: RunSettings) -> list[str]:
    """Sentences on duplicates: how many, the first few, and whether they are too many."""
    counts = _counts(division, settings, ())
    said = [*_repeat_remarks(counts, _places(division)), _repeat_warning(counts)]
    return [sentence for sentence in said if sentence]


def _halved_remarks(count: int) -> list[str]:
    """What is to be said where worse answers are read and not trained on."""
    if not count:
        return []
    has = "has a rejected answer" if count == 1 else "have a rejected answer each"
    return [
        f"{many(count, 'example')} {has}, which this objective does not use: the chosen one is trained on;"
        ' [tuning.objective] name = "dpo" trains on both'
    ]


def training_warnings(prepared: TokenisedData) -> list[str]:
    """What should be looked at before the run goes on."""
    return list(filter(None, [_repeat_warning(prepared.summary)]))


def _repeat_remarks(counts: Mapping[str, int], places: Mapping[str, Sequence[str]]) -> list[str]:
    repeated = counts.get("repeated", 0)
    return duplicate_remarks(
        repeated,
        kept=counts["duplicates"] < repeated,
        size=_own_size(counts),
        places=places.get("repeated", ()),
    )


def _repeat_warning(counts: Mapping[str, int]) -> str:
    repeated = counts.get("repeated", 0)
    return duplicate_warning(repeated, kept=counts["duplicates"] < repeated, size=_own_size(counts))


def _own_size(counts: Mapping[str, int]) -> int:
    """How many examples the data have, without the test set's."""
    return counts["examples"] - counts.get("test_examples", 0)


def _places(division: Partition) -> dict[str, list[str]]:
    """Where the first are of what `_counts` counts, as far as the rows have a place."""
    held, of = division.held, division.reading.examples
    repeats = [f"{of[index].where} equals {of[first].where}" for index, first in held.repeats]
    found = {
        "repeated": repeats if all(of[index].where for index, _ in held.repeats) else [],
        "in_test_set": [] if held.first_tested is None else [of[held.first_tested].where],
        "heldout_shared_with_training": [] if held.first_shared is None else [of[held.first_shared].where],
    }
    return {key: [shown_line(place) for place in places] for key, places in found.items() if any(places)}


def _test_remarks(counts: Mapping[str, int], places: Mapping[str, Sequence[str]]) -> list[str]:
    """What is to be said of a test set of one's own, and of what it shares with training."""
    said = [
        f"the test set has {many(counts['test_examples'], 'example')}, which are scored and not trained on;"
        " data.holdout is not used"
    ]
    if gone := counts.get("in_test_set", 0):
        said.append(
            f"{many(gone, 'example')} of the data {'is' if gone == 1 else 'are'} in the test set, or of a"
            f" group that is, and {'is' if gone == 1 else 'are'} not trained on"
            + _first(places, "in_test_set")
        )
    if shared := counts.get("heldout_shared_with_training", 0):
        said.append(
            f"{many(shared, 'example')} of the test set {'shares' if shared == 1 else 'share'} a question"
            " with examples that are trained on, so scores on them may be too good"
            + _first(places, "heldout_shared_with_training")
        )
    return said


def _first(places: Mapping[str, Sequence[str]], key: str) -> str:
    return "".join(f" (the first: {place})" for place in places.get(key, ())[:1])


def _remarks(
    counts: Mapping[str, int],
    clients: Sequence[str],
    heldout: Sequence[Example],
    places: Mapping[str, Sequence[str]],
) -> list[str]:
    tested = counts.get("test_examples", 0) > 0
    said = _test_remarks(counts, places) if tested else []
    if alone := counts.get("without_group", 0):
        said.append(f"{many(alone, 'example')} name no group (data.group); each is a group of its own")
    said += hold_out_remarks(
        shared=0 if tested else counts.get("heldout_shared_with_training", 0),  # older folders lack some
        copies=counts.get("held_by_several_clients", 0),
        common=counts.get("sharing_a_common_instruction", 0),
        commonest=counts.get("sharing_the_commonest", 0),
        size=counts["examples"] - counts["duplicates"],
    )
    without = counts.get("clients_without_heldout", 0)
    if without and without == len(clients):
        said.append(
            "nothing is held out (a client's last example is always trained on), so nothing is scored"
        )
    elif without:
        own = {example.client for example in heldout}
        named = listed([client for client in clients if client not in own], 3)
        said.append(
            f"{without:,} of {many(len(clients), 'client')} have nothing held out ({named}); what is scored"
            " is the others'"
        )
    return said


def _counts(division: Partition, settings: RunSettings, heldout: Sequence[Example]) -> dict[str, int]:
    """What became of the examples before they were tokenised; of `heldout` some may be dropped by now."""
    scored = {example.client for example in heldout}
    pooled = scored == {""}
    return {
        "examples": len(division.reading.examples),
        "skipped_rows": len(division.reading.skipped),
        "duplicates": division.held.duplicates,
        "held_by_several_clients": division.held.copies,
        "heldout_shared_with_training": division.held.shared,
        "sharing_a_common_instruction": division.held.common,
        "sharing_the_commonest": division.held.commonest,
        "clients_without_heldout": (
            sum(client not in scored for client in division.clients)
            if settings.data.holdout and not pooled
            else 0
        ),
        "heldout": len(heldout),
        "repeated": division.held.repeated,
        "test_examples": len(division.held.heldout) if settings.evaluation.data else 0,
        "in_test_set": division.held.tested,
        "without_group": (
            sum(not example.group for example in division.reading.examples) if settings.data.group else 0
        ),
    }


def require_heldout(count: int, source: str) -> None:
    """Raise DataError, before anything is trained to be compared, where no example is held out to score.

    Args:
        count: of the examples that are held out.
    """
    if not count:
        raise DataError(
            f"nothing of {source} is held out to compare on, since a client's last example is trained on; use"
            " data in which a client has two examples"
        )


def whole(folder: Path) -> bool:
    """Whether `save` finished there."""
    return (folder / INDEX).is_file()


def _plain(example: Example) -> dict[str, Any]:
    return {
        "turns": [asdict(turn) for turn in example.turns],
        "category": example.category,
        "client": example.client,
        "check": example.check,
        **({"rejected": [asdict(turn) for turn in example.rejected]} if example.rejected else {}),
    }


def _example(row: Mapping[str, Any]) -> Example:
    return Example(
        turns=tuple(Turn(**turn) for turn in row["turns"]),
        rejected=tuple(Turn(**turn) for turn in row.get("rejected", ())),
        category=row["category"],
        client=row["client"],
        check=row["check"],
    )


def categories(prepared: TokenisedData) -> list[str]:
    """The category of each held-out example."""
    return [example.category or "all" for example in prepared.heldout_examples]


def mean_length(prepared: TokenisedData) -> float:
    """Tokens of an example, on average over all clients; of a pair, those of both answers."""
    tokens = sum(len(data.ids) for data in (*prepared.clients.values(), *prepared.rejected.values()))
    return tokens / sum(len(data) for data in prepared.clients.values())
