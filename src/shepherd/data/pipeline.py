"""From a run file to what the clients train on: read, hold out, split, tokenise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shepherd import plugins, world
from shepherd.core import seed_for
from shepherd.data.dataset import Partition, TokenisedData
from shepherd.data.examples import Example, Reading, from_rows, read
from shepherd.data.files import left_out
from shepherd.data.holdout import HoldOut, hold_out, set_apart
from shepherd.data.keep import chosen, keep
from shepherd.data.noted import Notes
from shepherd.data.remarks import division_counts, division_places
from shepherd.data.split import Split, rule, split
from shepherd.data.template import Template, prints_date
from shepherd.data.tokens import (
    Counts,
    Outcomes,
    Tokens,
    tokenise,
    tokenise_pairs,
)
from shepherd.errors import DataError, PluginError, SettingsError
from shepherd.io.progress import Stage, stage
from shepherd.settings import MEMORY, PREFERENCES, WORLD, DataTable, RunSettings, SplitTable

if TYPE_CHECKING:  # torch is not for `data split`
    pass

WORLD_EXAMPLES = 1000  # of each category, where data.limit does not say
EMBEDDED: Mapping[str, Callable[..., list[dict[str, Any]]]] = {
    WORLD: world.rows,
    PREFERENCES: world.preferences,
}


def divide(settings: RunSettings, allowed: Collection[str] = (), rows: Any = None) -> Partition:
    """Read the examples, hold some out, and give the rest to clients.

    Args:
        allowed: modules outside the package that may be imported for the split.
        rows: the data, where data.source is "memory".

    Raises:
        DataError: a row, a file, or the split cannot be used.
        SettingsError: there is no such split, or a key of it is wrong.
    """
    dealt = rule(settings.split, allowed)
    with stage(f"reading {settings.data.source}"):
        reading = examples(settings, dealt, rows)
    seed = seed_for(settings.data_seed, "data")
    if settings.evaluation.data:
        reading, held = _tested(reading, settings, seed)
    else:
        held = _held(reading.examples, settings, seed)
    shares = split(chosen(reading.examples, held.train), dealt, seed)
    clients = {name: held.train[places].tolist() for name, places in shares.items()}
    return Partition(reading=reading, held=held, clients=clients)


def _held(examples: Sequence[Example], settings: RunSettings, seed: int) -> HoldOut:
    repeated = settings.data.duplicates == "keep"
    return hold_out(examples, settings.data.holdout, seed, keep_duplicates=repeated)


def _tested(reading: Reading, settings: RunSettings, seed: int) -> tuple[Reading, HoldOut]:
    """The reading with the test set's examples behind it, and all of these held out."""
    path = settings.evaluation.data
    with stage(f"reading {path}"):
        test = test_set(settings.data, path, "evaluation.data")
    held = set_apart(
        reading.examples, test.examples, seed, keep_duplicates=settings.data.duplicates == "keep"
    )
    left = {reading.examples[index].client for index in held.train}
    for example in reading.examples:
        if example.client not in left:
            whose = f"client {example.client} has" if example.client else f"{settings.data.source} has"
            raise DataError(
                f"{whose} nothing to train on that is not in the test set {path}; name another file in"
                " evaluation.data, or take these examples out of it"
            )
    together = Reading(
        examples=keep(chain(reading.examples, test.examples)),
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
    own = keep(replace(example, client=name) for example in reading.examples)
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
    categories: list[str] = []
    with stage(f"tokenising the examples of {len(sizes)} clients", len(every)) as now:
        # all together: a call for each of thousands of clients costs more than their few examples
        taken = _counted(chosen(division.reading.examples, every), now, categories)
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
        name: [categories[i] or "all" for i in islice(kept, each.kept)] for name, each in of.items()
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
            **division_counts(division, settings, scored),
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
        places=division_places(division),
        by_client=client_counts(of, division.reading),
        example_categories=example_categories,
        rejected=rejected,
        heldout_rejected=heldout_rejected,
    )


def _halved(examples: Sequence[Example], paired: bool) -> dict[str, int]:
    """How many rejected answers are read and not used, if any."""
    count = 0 if paired else sum(bool(example.rejected) for example in examples)
    return {"pairs_halved": count} if count else {}


def _counted(examples: Iterable[Example], now: Stage, categories: list[str]) -> Iterator[Example]:
    """The examples, each counted as done in `now` as it is taken, and its category put into the list."""
    for example in examples:
        now.advance()
        categories.append(example.category)
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


def _dropped(counts: Sequence[Counts]) -> Iterator[str]:
    """A sentence a reason, over clients and held-out examples."""
    for reason in dict.fromkeys(reason for each in counts for reason in each.dropped):
        number = sum(each.dropped.get(reason, 0) for each in counts)
        first = next(each.first[reason] for each in counts if reason in each.first)
        yield f"{number} dropped: {reason}" + (f" (the first: {first})" if first else "")


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
