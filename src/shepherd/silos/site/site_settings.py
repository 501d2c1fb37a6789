"""site.toml: what a site's owner allows, in a file that nobody else can write.

Every key has a safe default but `data.source`. A docstring under a key says what it means. Paths are
relative to the folder that the file lies in.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, Field, Strict, model_validator
from pydantic.fields import FieldInfo

from shepherd import world
from shepherd.config import (
    Day,
    Delimiter,
    Encoding,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ShareBelowOne,
    Table,
    validated,
)
from shepherd.errors import FolderError, SettingsError
from shepherd.io import paths, toml
from shepherd.model.digest import digest
from shepherd.settings import TINY, WORLD, FieldsTable, MachineTable, RunSettings

Switch = Annotated[bool, Strict()]
Metric = Literal["loss", "examples", "tokens", "trained_tokens", "steps", "heldout"]
TemplateName = Literal["alpaca", "alpaca-short", "vicuna", "plain", "chat"]
Tokens = Annotated[int, Strict(), Field(ge=8)]
MINUTES = 24 * 60  # of a day


def minutes(hours: str) -> tuple[int, int]:
    """A window of the day as minutes since midnight: its start, and its end, which is not in it.

    >>> minutes("22:00-06:30")
    (1320, 390)

    Raises:
        ValueError: it is no window.
    """
    found = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", hours, re.ASCII)
    if found is None:
        raise ValueError("write it as 08:00-18:00")
    first, first_minute, last, last_minute = map(int, found.groups())
    start, end = first * 60 + first_minute, last * 60 + last_minute
    if max(first_minute, last_minute) > 59 or start >= MINUTES or end > MINUTES:
        raise ValueError("a day has the hours 00:00 to 24:00")
    if start == end:
        raise ValueError("the window is empty; leave the key out to allow every hour")
    return start, end


def _window(hours: str) -> str:
    minutes(hours)
    return hours


def _digest(text: str) -> str:
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("64 hex digits are wanted, as `shepherd silos check` prints them")
    return text


class SiteDataTable(Table):
    source: str
    """A file, a folder of files, a saved data set, or a Hugging Face id; all its rows are this site's."""
    config: str | None = Field(default=None, examples=["default"])
    """The configuration of a Hugging Face dataset."""
    part: str = "train"
    """The split of a Hugging Face dataset, or of several tables in one JSON file the key of one."""
    delimiter: Delimiter = "auto"
    """What is between two cells of a CSV or TSV file, such as ";" or "tab"; "auto" finds it."""
    encoding: Encoding = "auto"
    """Of the data's text files, such as "cp1252"; "auto" is UTF-8, or UTF-16."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a CSV, TSV or Excel file that has no header."""
    sheet: str = "auto"
    """The sheet of an Excel file; "auto" is the only one that holds anything."""
    fields: FieldsTable = FieldsTable()
    category: str = "category"
    """The field that says what kind of instruction it is; "" where there is none. The names of the
    categories leave the site with held-out scores, where the policy lets "heldout" leave."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Leave out an example that is here already, question and answer, or train on it as often as it is here.
    Kept copies count as examples of their own, under policy.min_examples too."""
    group: str = ""
    """The field that names what an example belongs to, such as a patient or a thread; examples of one group
    are held out or trained on together. "#row" is the row's number in its file, "" no group."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be read, or leave it out and count it."""


class BaseTable(Table):
    """A base that may be loaded. A run asks for a base by its digest and never by a path."""

    name: str
    """What messages call it."""
    folder: str
    """Where it lies; "tiny" is the embedded one, and a Hugging Face id is looked for on this disk only."""
    sha256: Annotated[str, AfterValidator(_digest)] = ""
    """The digest of its files, as `shepherd silos check` prints it; a base without one is never loaded."""


class ScoringTable(Table):
    """What is held out and scored, one choice for all runs. Every number about this site's examples, a
    visit's loss too, is of examples as these keys render them: a run with another template or length
    trains, and gets no loss. Agree on both with the coordinator."""

    share: ShareBelowOne = 0.1
    """The share of each category that is held out of training, to be scored; 0 holds nothing out."""
    seed: NonNegativeInt = 0
    """Of the draw of what is held out."""
    template: TemplateName = "alpaca"
    """How examples are written: "alpaca", "alpaca-short", "vicuna", "plain" or "chat", the base's own."""
    date: Day = Field(default="", examples=["2026-11-28"])
    """Day that a chat template prints as today's; only a template that prints one needs it."""
    max_tokens: Tokens = 512
    """Longer examples are cut to this many tokens."""
    examples: PositiveInt = 200
    """At most this many held-out examples are scored, spread evenly over the categories."""


class TrainerTable(Table):
    """What a run may use of this machine."""

    device: str = "auto"
    """Where to train: "auto", "cpu", "cuda", "cuda:1", "mps"; a run cannot choose it."""
    threads: PositiveInt | None = Field(default=None, examples=[2])
    """Processor threads; the default is one for each core."""
    micro_batch_tokens: PositiveInt = 16384
    """Most tokens in one forward pass: lower it where memory is short."""
    joins_per_hour: PositiveInt = 60
    """Most requests to join in an hour: each may load a base and read the data."""
    order_seed: NonNegativeInt | None = Field(default=None, examples=[0])
    """Seed of the order in which visits take examples. Leave it out: the order then comes from a secret
    that this site draws for itself, and nobody who asks can tell which examples a visit takes. Tests set it
    to the run's seed, to compare a site with the same run in one process."""


class PolicyTable(Table):
    """What may be asked of this site. A request outside it is refused by the name of the key."""

    max_rank: PositiveInt = 16
    """Largest rank of an adapter: a larger one carries more out, and can learn more by heart."""
    max_dropout: ShareBelowOne = 0.5
    """Largest dropout of an adapter: where nearly all is dropped, an update is of single tokens."""
    max_learning_rate: PositiveFloat = 0.1
    """Largest learning rate. By no key of its own, a request is also refused whose tuning.clip_norm is below
    0.001 (0 clips nothing), whose optimiser's betas are below 0.5, momentum above 0.95, or learning_rate
    times weight_decay, or times the algorithm's mu, above 0.01: each can make an update of a few examples out
    of a visit of many."""
    max_steps: PositiveInt = 1000
    """Most optimiser steps in one visit, however the run file says its length (over the end of an epoch there
    may be one or two more)."""
    max_epochs: PositiveFloat = 3.0
    """Most passes over the site's examples in one visit, however the run file says its length."""
    max_rounds: PositiveInt = 100
    """Most rounds of one run."""
    rounds_per_month: PositiveInt = 300
    """Most rounds trained in a month of the calendar, over all runs, as the audit log has them. A visit
    that came to nothing counts, and so does each new try of it; an answer that is kept and given again does
    not. As many may be scored, and one more a run."""
    runs_per_month: PositiveInt = 30
    """Most runs that train or are scored in a month: each new run takes the examples in another order."""
    failures_per_run: PositiveInt = 20
    """Most visits and scores of a run that may come to nothing in a month, out of time or of memory or
    whatever it was, until the run is refused: that a visit fails may tell of the examples in it. By no key of
    its own, one question is tried five times at most."""
    algorithms: tuple[str, ...] = ("fedavg", "fedprox", "ffa_lora")
    """The algorithms that may run, by the exact name of the module. A module outside this package runs
    code of its own here: list it only if you have read it."""
    transforms: tuple[str, ...] = ("clip",)
    """The transforms that may run, by the exact name of the module, as above."""
    optimisers: tuple[str, ...] = ("adamw",)
    """The local optimisers that may run, by the exact name of the module, as above. Under "sgd" an update is
    the sum of the gradients, from which examples can be read more easily than from AdamW's steps."""
    objectives: tuple[str, ...] = ("sft",)
    """The local objectives that may run, by the exact name of the module, as above."""
    min_cohort: PositiveInt = 2
    """Fewest sites in a round: in a round of one, the mean is this site's own update."""
    min_examples: PositiveInt = 16
    """Fewest different examples that a visit takes, and fewest behind any number that leaves: what comes from
    a handful says much about each of them. A visit that would take fewer at the end of an epoch begins with
    the next one. Smaller categories are scored together, as "other"."""
    min_batch: PositiveInt = 8
    """Fewest examples in one optimiser step. A last batch of an epoch that would be shorter is taken with
    the one before it."""
    templates: tuple[TemplateName, ...] = get_args(TemplateName)
    """How a run may write the examples."""
    system_prompts: tuple[str, ...] = ()
    """System prompts that a run may put before the examples, word by word; none is needed for a run that
    sets none."""
    max_tokens: tuple[Tokens, ...] = (128, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
    """Lengths that a run may cut examples to. They lie far apart, so that two updates which differ by one
    token of an example cannot both be asked for."""
    dates: tuple[Day, ...] = ()
    """Days that a run may have a chat template print as today's, beside scoring.date; only a template that
    prints one needs it."""
    loss_on: tuple[Literal["responses", "all"], ...] = ("responses",)
    """What may be trained on: the responses, or ("all") the instructions and contexts too."""
    require_noise: Switch = False
    """Refuse a run that has no transform called "noise"."""
    require_secure_aggregation: Switch = False
    """Refuse a run that has no transform called "secure": without it the server sees each update."""
    hours: Annotated[str, AfterValidator(_window)] | None = Field(default=None, examples=["18:00-06:00"])
    """When a visit may begin, by this machine's clock, such as "18:00-06:00"; the default is any time."""
    metrics: tuple[Metric, ...] = ("loss", "examples", "tokens", "trained_tokens", "steps")
    """The numbers that may leave beside an update. "heldout" adds the mean loss on the held-out examples of
    each category, after each round, with the category's name and tokens; without it no score is given."""


class SiteSettings(Table):
    """A whole site.toml."""

    data: SiteDataTable
    bases: tuple[BaseTable, ...] = ()
    scoring: ScoringTable = ScoringTable()
    trainer: TrainerTable = TrainerTable()
    policy: PolicyTable = PolicyTable()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [base.name for base in self.bases]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two bases are called {min(twice)}; give each a name of its own")
        return self


def read(path: str | Path) -> SiteSettings:
    """Read a site.toml; its paths come back absolute.

    Raises:
        SettingsError: the file is missing or not TOML, a key is unknown, or a value is impossible.
    """
    path = Path(path)
    table = toml.read(path, "site file")
    return _placed(validated(SiteSettings, table, str(path)), path.absolute().parent)


def _placed(site: SiteSettings, home: Path) -> SiteSettings:
    source, folders = site.data.source, [base.folder for base in site.bases]
    data = source if source == WORLD else _path(source, home, "data.source")
    bases = [folder if folder == TINY else _path(folder, home, "bases.folder") for folder in folders]
    return site.model_copy(
        update={
            "data": site.data.model_copy(update={"source": data}),
            "bases": tuple(
                base.model_copy(update={"folder": folder})
                for base, folder in zip(site.bases, bases, strict=True)
            ),
        }
    )


def _path(text: str, home: Path, key: str) -> str:
    if not os.path.exists(home / os.path.expanduser(text)):
        toml.require_no_escape(text, key)
    return paths.placed(text, home)


def asked(tables: Mapping[str, Any]) -> RunSettings:
    """The tables of a request as settings. What is the site's own, they need not say.

    Raises:
        SettingsError: a key is unknown, or a value is impossible.
    """
    model = {"base": "", **_table(tables, "model")}
    data = {"source": "", **_table(tables, "data")}
    return validated(RunSettings, {**tables, "model": model, "data": data}, "the request")


def own(site: SiteSettings, tables: Mapping[str, Any], folder: str) -> RunSettings:
    """The tables of a request, with the site's data, hold-out, machine and the base in `folder` over them.

    Raises:
        SettingsError: a key is unknown, or a value is impossible.
    """
    return laid_over(site, asked(tables), folder)


def laid_over(site: SiteSettings, run: RunSettings, folder: str) -> RunSettings:
    """As `own`, for tables that are read already."""
    model = {"base": folder, "revision": None, "trust_remote_code": False}
    data = {name: getattr(site.data, name) for name in SiteDataTable.model_fields}
    held = {"holdout": site.scoring.share, "seed": site.scoring.seed, "limit": None}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update=model),
            "data": run.data.model_copy(update={**data, **held}),
            "machine": _used(site.trainer),
        }
    )


def _used(trainer: TrainerTable) -> MachineTable:
    """What a run uses of the machine is its owner's to say."""
    cores = os.cpu_count() or 1
    threads: int | Literal["auto"] = min(trainer.threads, cores) if trainer.threads else "auto"
    return MachineTable(device=trainer.device, threads=threads)


def scored(site: SiteSettings, run: RunSettings) -> RunSettings:
    """The settings of a run that are laid over already, with the examples rendered as they are scored."""
    scoring = site.scoring
    data: dict[str, Any] = {
        "template": scoring.template,
        "template_options": {},
        "system": None,
        "date": scoring.date,
        "max_tokens": scoring.max_tokens,
    }
    return run.model_copy(
        update={
            "data": run.data.model_copy(update=data),
            "tuning": run.tuning.model_copy(update={"loss_on": "responses"}),
        }
    )


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, Mapping):
        raise SettingsError(f"the request: key {name} is no table; ask with a run file's tables")
    return table


EXAMPLE = """\
# site.toml: what this site's owner allows. The server cannot read or change this file.
#
#   shepherd silos check {name}    what would be trained on, and what would leave
#
# Only data.source has to be there. Any other key can go, and then has the value that it has here; without
# [[bases]] nothing is trained. A key behind a # is not set. Paths are relative to this file's folder.
"""
WIDTH = 100


def example(source: str = "data.jsonl", name: str = "site.toml") -> str:
    """A commented site.toml with every key, for data in `source` and with the embedded base allowed."""
    tiny = BaseTable(name=TINY, folder=TINY, sha256=digest(world.base_path()))
    lines = [
        *_described("[data]", SiteDataTable(source=source)),
        *_described("[data.fields]", FieldsTable()),
        *_introduced("[[bases]]", tiny),
        *_introduced("[scoring]", ScoringTable()),
        *_introduced("[trainer]", TrainerTable()),
        *_introduced("[policy]", PolicyTable()),
    ]
    return EXAMPLE.format(name=name) + "".join(f"{line}\n" for line in lines)


def write_example(path: Path, source: str = "data.jsonl") -> None:
    """Write a new site.toml that its owner alone may read and write.

    Raises:
        FolderError: something is there already, or the file cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf8") as file:
            file.write(example(source, path.name))
    except FileExistsError:
        raise FolderError(f"{path} exists; name another file, or move it away first") from None
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror}); check the path") from error


def _introduced(title: str, table: BaseModel) -> Iterator[str]:
    yield ""
    yield from textwrap.wrap(_meaning(type(table)), WIDTH, initial_indent="# ", subsequent_indent="# ")
    yield from _keys(title, table)


def _described(title: str, table: BaseModel) -> Iterator[str]:
    yield ""
    yield from _keys(title, table)


def _keys(title: str, table: BaseModel) -> Iterator[str]:
    yield title
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if not isinstance(value, BaseModel):
            yield from _key(key, field, value)


def _key(key: str, field: FieldInfo, value: Any) -> Iterator[str]:
    meaning = " ".join((field.description or "").split())
    yield from textwrap.wrap(
        meaning, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
    if value is None and field.examples:
        yield f"# {key} = {_toml(field.examples[0])}"
    else:
        yield f"{key} = {_toml(value)}"


def _meaning(table: type[BaseModel]) -> str:
    return " ".join((table.__doc__ or "").split())


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
