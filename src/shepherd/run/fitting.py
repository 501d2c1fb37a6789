"""Choose settings that fit some data and a base, each with the reason, for `shepherd new`.

Nothing is trained and no weights are read: the base's configuration and tokenizer tell what it can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from shepherd.consent import NOTHING, Consent
from shepherd.core import seed_for
from shepherd.data import columns, files, pipeline, sniff
from shepherd.data.chat_template import chat_template
from shepherd.data.columns import PARTS, Columns
from shepherd.data.examples import Example
from shepherd.data.split import rule
from shepherd.data.splits import iid
from shepherd.data.template import Rendered, Template, TemplateName, render_all
from shepherd.errors import BadRow, DataError, TemplateError
from shepherd.io import paths
from shepherd.io.progress import many
from shepherd.model import base as bases
from shepherd.model import meta_shapes
from shepherd.overrides import parse
from shepherd.run.loading import placed
from shepherd.settings import TINY, WORLD, DataTable, FieldsTable, ModelTable, RunSettings
from shepherd.world import CATEGORIES

MAX_ROWS = 20_000  # read to recognise columns
MEASURED_EXAMPLES = 500  # whose tokens are counted
MAX_COHORT = 10  # clients of a round
MAX_STEPS = 10  # of a visit
MIN_ROUNDS, MAX_ROUNDS = 3, 20
# Parameters times tokens that a round may cost without a GPU: about five minutes on two cores, which tuned
# 135 million parameters at about 200 tokens per second.
MAX_ROUND_WORK = 300 * 200 * 135e6
SMALL_BASE = 1e9  # parameters below which the measured learning rate is used
SMALL_BASE_RATE = 1e-3  # of 1e-4 to 1e-2 on 135 million parameters: as good as 3e-3, and further from 1e-2
PREFERENCE_RATE = 0.1  # of the rate of supervised tuning

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A value other than the default, and the reason."""

    value: Any
    why: str


Choices = dict[Key, Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Findings in sentences, and the choices for the run file that follow from them."""

    found: tuple[str, ...]
    choices: Choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A base without its weights; `max_length` is in tokens, or None if it has no limit."""

    name: str
    tokenizer: Any
    parameters: int
    max_length: int | None


def fit(
    data: str = WORLD,
    base: str = TINY,
    given: Mapping[str, str] | None = None,
    consent: Consent = NOTHING,
) -> Fit:
    """Choose settings for some data and a base.

    Args:
        data: the value of `data.source`.
        base: the value of `model.base`.
        given: columns by their role: instruction, context, response, messages, client, category.
        consent: whether code that comes with the base may run; the run file then asks for it too.

    Raises:
        DataError: the data cannot be read, or the role of a column is unclear; the message names the option
            that decides it.
        BaseError: the base has no usable configuration or tokenizer.
    """
    known = _read_outline(base, consent)
    choices: Choices = {
        ("model", "base"): Choice(value=base, why=f"{short(known.parameters)} parameters"),
        ("data", "source"): Choice(value=data, why="the embedded world" if data == WORLD else ""),
    }
    if consent.remote_code:
        choices["model", "trust_remote_code"] = Choice(value=True, why="--trust-remote-code was given")
    found, examples, tuned = (
        _world_data(choices) if data == WORLD else _own_data(choices, data, dict(given or {}))
    )
    template, lengths = _template(known, examples)
    choices["data", "template"] = template
    choices |= _length_limits(known, lengths) | _adapter(known) | _amounts(known, tuned, lengths)
    if ("tuning", "objective", "name") in choices:
        rate = choices["tuning", "learning_rate"].value * PREFERENCE_RATE
        choices["tuning", "learning_rate"] = Choice(
            value=rate, why="a tenth of what supervised tuning takes, since the model is to stay near itself"
        )
    return Fit(found=found, choices=choices)


def _world_data(choices: Choices) -> tuple[tuple[str, ...], Sequence[Example], list[int]]:
    """Findings (none), some examples, and the number of examples of each client."""
    few = {("data", "limit"): Choice(value=MEASURED_EXAMPLES // len(CATEGORIES), why="")}
    settings = _settings(choices | few)
    clients = iid.Config().clients
    choices["split", "clients"] = Choice(value=clients, why="the examples are divided evenly")
    each = round(len(CATEGORIES) * pipeline.WORLD_EXAMPLES * (1 - settings.data.holdout) / clients)
    return (), pipeline.examples(settings, rule(settings.split)).examples, [each] * clients


def _own_data(
    choices: Choices, data: str, given: dict[str, str]
) -> tuple[tuple[str, ...], Sequence[Example], list[int]]:
    """Findings, the examples, and the number of examples of each client; adds choices for the columns."""
    found = _add_columns(choices, data, given)
    settings = _settings(choices)
    reading = pipeline.examples(settings, rule(settings.split))
    if reading.skipped:
        skipped = many(len(reading.skipped), "row")
        found += (f"{skipped} skipped as unreadable; see data.on_bad_row",)
        choices["data", "on_bad_row"] = Choice(value="skip", why=f"the first: {reading.skipped[0]}")
    found += tuple(replace(reading.notes, unread={}, refused={}).sentences())
    if ("split", "by") not in choices:
        # ten, or fewer if each would have less than twenty examples
        count = max(1, min(10, len(reading.examples) // 20))
        why = "no column names the client, so the examples are divided evenly"
        choices["split", "clients"] = Choice(value=count, why=why)
    tuned = [len(part) for part in pipeline.divide(_settings(choices)).clients.values()]
    return (
        (f"{many(len(reading.examples), 'example')}, {many(len(tuned), 'client')}", *found),
        reading.examples,
        tuned,
    )


def short(number: float) -> str:
    """Write a count in words.

    >>> short(134_515_008), short(2_400_000), short(8.03e9), short(812)
    ('135 million', '2.4 million', '8 billion', '812')
    """
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.{1 if number < 10 * size else 0}f}".removesuffix(".0") + word
    return f"{number:,.0f}"


def _read_outline(name: str, consent: Consent) -> Outline:
    folder = name if name == TINY else paths.placed(name, Path.cwd())
    model = placed(ModelTable(base=folder, trust_remote_code=consent.remote_code))
    tokenizer = bases.load_tokenizer(model, consent)  # its message is best if there is no base at all
    parameters, max_length = meta_shapes.size(model, consent)
    return Outline(name=name, tokenizer=tokenizer, parameters=parameters, max_length=max_length)


def _settings(choices: Choices) -> RunSettings:
    """The settings that the choices make, with bad rows skipped."""
    table: dict[str, Any] = {"data": {"on_bad_row": "skip"}}
    for key, choice in choices.items():
        inner = table
        for part in key[:-1]:
            inner = inner.setdefault(part, {})
        inner[key[-1]] = choice.value
    return parse(table)


def _add_columns(choices: Choices, data: str, given: dict[str, str]) -> tuple[str, ...]:
    """Add the choices for the data's format and columns; returns the findings in sentences."""
    default = DataTable(source=paths.placed(data, Path.cwd()))
    parts = files.parts(default.source, default.config, default.part)
    for file in files.data_files(default.source):
        sniff.require_plain(file)  # JSONL too, whose reader takes bad lines one by one
    each = max(1, MAX_ROWS // len(parts))
    of_parts = {part.client: list(islice(_named_rows(part), each)) for part in parts}
    rows = list(chain.from_iterable(of_parts.values()))
    if not rows:
        raise DataError(f"{data} has no row with named columns; give JSON objects, CSV or Parquet")
    folder = len(parts) > 1 and "client" not in given
    if folder:
        given["client"] = ""  # each file is one
    found = _recognise(of_parts, rows, given)
    choices |= {("data", "fields", part): _column(found, part, rows) for part in PARTS[:4]}
    choices["data", "category"] = _category(found)
    if found.pair:
        why = f"columns {' and '.join(found.pair)} hold two answers"
        choices["tuning", "objective", "name"] = Choice(value="dpo", why=why)
    if folder:
        choices["split", "by"] = Choice(value="ready_made", why=f"{len(parts)} files, each a client")
    elif found.client:
        choices["split", "by"] = Choice(value="natural", why=f"column {found.client} names the client")
        choices["split", "field"] = Choice(value=found.client, why=f"found {found.why['client']}")
    used = [f"{part}: {name} ({found.why[part]})" for part in PARTS if (name := getattr(found, part))]
    return (
        *used,
        *([f"each of the {len(parts)} files is a client"] if folder else []),
        f"columns not used: {', '.join(found.unused) or 'none'}",
        *(
            f"{name} has few values: give --client {name} or --category {name} if it is one of these"
            for name in found.labels
        ),
        *files.left_out(default.source),
    )


def _recognise(
    of_parts: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Sequence[Mapping[str, Any]],
    given: dict[str, str],
) -> Columns:
    """Recognise the columns of all files together.

    Raises:
        DataError: the role of a column is unclear, or a file lacks a column; names two files that differ.
    """
    names = {client: {str(name) for row in some for name in row} for client, some in of_parts.items()}
    try:
        found = columns.recognise(rows, given)
    except DataError as error:
        unlike = [client for client in names if names[client] != next(iter(names.values()))]
        if not unlike:
            raise
        raise DataError(f"{error} (the files differ: {_columns_of_two(names, unlike[0])})") from error
    for used in (found.instruction, found.response, found.messages):
        if lacking := [client for client in names if used not in ("", columns.AUTO, *names[client])]:
            raise DataError(
                f"not every file has the column {used}: {_columns_of_two(names, lacking[0])}; give all files"
                " the same columns"
            )
    return found


def _columns_of_two(names: Mapping[str, set[str]], unlike: str) -> str:
    """The columns of a file that differs, and those of one from which it differs."""
    other = next(client for client in names if names[client] != names[unlike])
    return "; ".join(f"in {client}, {columns.listed(sorted(names[client]))}" for client in (unlike, other))


def _named_rows(part: files.Part) -> Iterator[Mapping[str, Any]]:
    """Rows of a file that are objects; the reader reports the others."""
    return (row for _, row in part.rows if isinstance(row, Mapping) and not isinstance(row, BadRow))


def _column(found: Columns, part: str, rows: Sequence[Mapping[str, Any]]) -> Choice:
    name = getattr(found, part)
    if part in ("instruction", "response") and not name:  # a chat's, or that of a pair of answers
        default = FieldsTable()
        others = f"columns {' and '.join(found.pair)}" if found.pair else "a column of messages"
        return Choice(value=getattr(default, part), why=f"not read, since there is {others}")
    if name in columns.KNOWN.get(part, ()) and any(name not in row for row in rows):
        return Choice(value="auto", why=f"column {name}, which some rows lack")
    none = "no column holds chats" if part == "messages" else f"no column is the {part}"
    return Choice(value=name, why=f"found {found.why[part]}" if name else none)


def _category(found: Columns) -> Choice:
    name = found.category
    return Choice(value=name, why=f"found {found.why['category']}" if name else "no column is the category")


def _template(known: Outline, examples: Sequence[Example]) -> tuple[Choice, list[Rendered]]:
    """The template, and some examples rendered by it, uncut."""
    draws = np.random.default_rng(seed_for(0, "fitting")).permutation(len(examples))[:MEASURED_EXAMPLES]
    drawn = [examples[i] for i in draws]
    if known.name == TINY:
        short_ = Choice(value="alpaca-short", why="the demo's; the longer one is hard for such a small base")
        return short_, _rendered(drawn, "alpaca-short", known)
    if not getattr(known.tokenizer, "chat_template", None):
        plain = Choice(value="alpaca", why="the tokenizer has no chat template")
        return plain, _rendered(drawn, "alpaca", known)
    try:
        rendered = _rendered(drawn, "chat", known)
    except TemplateError as error:
        plain = Choice(value="alpaca", why=f"the tokenizer's chat template cannot be used: {error}")
        return plain, _rendered(drawn, "alpaca", known)
    added = chat_template(Template("chat"), known.tokenizer).preface()
    also = (
        f"; without a system turn in the data it writes before the first instruction: {added!r}"
        if added
        else ""
    )
    return Choice(value="chat", why=f"the tokenizer has a chat template{also}"), rendered


def _rendered(examples: Sequence[Example], template: TemplateName, known: Outline) -> list[Rendered]:
    outcomes = render_all(examples, Template(template), known.tokenizer, max_tokens=2**30)
    kept = [outcome for outcome in outcomes if isinstance(outcome, Rendered)]
    if not kept:
        raise DataError(f"none of the examples can be rendered by template {template}; check the data")
    return kept


def _length_limits(known: Outline, rendered: Sequence[Rendered]) -> Choices:
    """Length limits of examples and answers, by what 95% of the examples need."""
    tokens = np.array([len(each.ids) for each in rendered])
    answers = np.array([int(each.loss_mask.sum()) for each in rendered])
    longest, most = int(tokens.max()), int(np.quantile(tokens, 0.95, method="higher"))
    needed = longest if longest <= 1.3 * most else most
    value = max(8, min(_rounded(needed), known.max_length or _rounded(needed)))
    share = float((tokens <= value).mean())
    why = (
        f"{share:.0%} of the examples have at most {value} tokens; the longest of {len(tokens)} has {longest}"
    )
    if value == known.max_length:
        why = f"the longest input of the base; {why}"
    answer = int(np.quantile(answers, 0.95, method="higher"))
    new = max(16, min(_rounded(answer), 512, value // 2))
    return {
        ("data", "max_tokens"): Choice(value=value, why=why),
        ("evaluation", "max_new_tokens"): Choice(
            value=new, why=f"95% of the responses have at most {answer} tokens"
        ),
    }


def _rounded(tokens: int) -> int:
    """Round up to a multiple of 16."""
    return -(-tokens // 16) * 16


def _adapter(known: Outline) -> Choices:
    """Rank, alpha, and the learning rate measured with them."""
    if known.name == TINY:
        return {
            ("adapter", "rank"): Choice(value=16, why="the demo's"),
            ("adapter", "alpha"): Choice(value=32.0, why="the demo's"),
            ("tuning", "learning_rate"): Choice(value=4e-3, why="the demo's: a small base needs large steps"),
        }
    if known.parameters >= SMALL_BASE:
        why = "FedIT's, for 7 billion parameters; for a base of about one billion, try twice this as well"
        return {("tuning", "learning_rate"): Choice(value=1.5e-4, why=why)}
    why = (
        "measured on 135 million parameters, rank 8, alpha 16, batches of 8, 16 steps: 1e-3 and 3e-3 were"
        " equally good, 1e-4 and 3e-4 slower, and 1e-2 did harm; halve it if the held-out loss rises"
    )
    return {("tuning", "learning_rate"): Choice(value=SMALL_BASE_RATE, why=why)}


def _amounts(known: Outline, tuned: Sequence[int], rendered: Sequence[Rendered]) -> Choices:
    """Batch, steps, share and rounds, by the amount of data and by what a CPU computes in minutes."""
    tiny, gpu = known.name == TINY, bases.pick_device("auto").type != "cpu"
    own = int(median(tuned))
    batch = min(16 if tiny else 8, own)
    cohort = min(len(tuned), MAX_COHORT // 2 if tiny else MAX_COHORT)
    length = float(np.mean([len(each.ids) for each in rendered]))
    affordable = MAX_STEPS if gpu else int(MAX_ROUND_WORK / (known.parameters * length * batch * cohort))
    whole = math.ceil(own / batch)
    steps = max(1, min(MAX_STEPS, whole, affordable))
    visits = math.ceil(
        whole / steps * len(tuned) / cohort
    )  # rounds in which every client's data is seen once
    rounds = min(max(MIN_ROUNDS, visits), MAX_ROUNDS)
    seen = rounds * steps * batch * cohort / len(tuned) / own
    tokens = rounds * steps * batch * cohort * length
    spared = "" if steps == min(MAX_STEPS, whole) else ", and this base is slow on a CPU"
    scored = 200 if gpu or tiny else 64
    return {
        ("selection", "share"): Choice(
            value=round(cohort / len(tuned), 4), why=f"{cohort} of {many(len(tuned), 'client')} a round"
        ),
        ("federation", "rounds"): Choice(
            value=rounds,
            why=f"a client trains on its data {seen:.1f} times on average, {short(tokens)} tokens in all",
        ),
        ("tuning", "batch_size"): Choice(value=batch, why=f"half of the clients have {own} examples or less"),
        ("tuning", "max_steps"): Choice(
            value=steps, why=f"a pass over a client's examples takes {many(whole, 'step')}{spared}"
        ),
        ("evaluation", "examples"): Choice(value=scored, why="scored after every round"),
    }
