"""The schema of site.toml, in which a site's owner says what the site allows.

Every key but `data.source` has a safe default. The docstring under a key is its comment in a new site.toml.
Paths are relative to the folder of the file.
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
Delta = Annotated[float, Strict(), Field(gt=0.0, lt=1.0)]
MINUTES_PER_DAY = 24 * 60  # of a day


def minutes(hours: str) -> tuple[int, int]:
    """Parse a time window of the day into minutes since midnight: start, and end (excluded).

    >>> minutes("22:00-06:30")
    (1320, 390)

    Raises:
        ValueError: the text is not a time window.
    """
    found = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", hours, re.ASCII)
    if found is None:
        raise ValueError("write it as 08:00-18:00")
    first, first_minute, last, last_minute = map(int, found.groups())
    start, end = first * 60 + first_minute, last * 60 + last_minute
    if max(first_minute, last_minute) > 59 or start >= MINUTES_PER_DAY or end > MINUTES_PER_DAY:
        raise ValueError("a day has the hours 00:00 to 24:00")
    if start == end:
        raise ValueError("the window is empty; leave the key out to allow every hour")
    return start, end


def _check_window(hours: str) -> str:
    minutes(hours)
    return hours


def _check_digest(text: str) -> str:
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("a digest has 64 hex digits, as `shepherd silos check` prints them")
    return text


class SiteDataTable(Table):
    source: str
    """A file, a folder of files, a saved dataset or a Hugging Face id; all its rows belong to this site."""
    config: str | None = Field(default=None, examples=["default"])
    """Configuration of a Hugging Face dataset."""
    part: str = "train"
    """Split of a Hugging Face dataset, or the key of one of several tables in one JSON file."""
    delimiter: Delimiter = "auto"
    """Separator of the cells in a CSV or TSV file, such as ";" or "tab"; "auto" detects it."""
    encoding: Encoding = "auto"
    """Encoding of the data's text files, such as "cp1252"; "auto" is UTF-8 or UTF-16."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a CSV, TSV or Excel file without a header."""
    sheet: str = "auto"
    """Sheet of an Excel file; "auto" is the only one that is not empty."""
    fields: FieldsTable = FieldsTable()
    category: str = "category"
    """Field with the kind of instruction; "" if there is none. The names of the categories are released with
    held-out scores, if policy.metrics lists "heldout"."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Leave out an example whose question and answer are there already, or train on every copy.
    Kept copies count as examples of their own, under policy.min_examples too."""
    group: str = ""
    """The field that names what an example belongs to, such as a patient or a thread; examples of one group
    are held out or trained on together. "#row" is the row's number in its file, "" no group."""
    on_bad_row: Literal["error", "skip"] = "error"
    """At an unreadable row: stop with an error, or skip and count it."""


class BaseTable(Table):
    """A base that may be loaded. A run asks for a base by its digest, never by a path."""

    name: str
    """Name of the base in messages."""
    folder: str
    """Folder of the base; "tiny" is the embedded one, and a Hugging Face id is searched on this disk only."""
    sha256: Annotated[str, AfterValidator(_check_digest)] = ""
    """Digest of its files, as `shepherd silos check` prints it; a base without a digest is never loaded."""


class ScoringTable(Table):
    """What is held out and scored, the same for all runs. Every released number about this site's examples,
    including the loss of a visit, is about examples rendered by these keys: a run with another template or
    length trains, but gets no loss. Agree on both with the coordinator."""

    share: ShareBelowOne = 0.1
    """Share of each category that is held out of training, to be scored; 0 holds nothing out."""
    seed: NonNegativeInt = 0
    """Seed of the draw of held-out examples."""
    template: TemplateName = "alpaca"
    """Prompt template: "alpaca", "alpaca-short", "vicuna", "plain", or "chat" for the base's own."""
    date: Day = Field(default="", examples=["2026-11-28"])
    """Date that the chat template prints as today's; needed only if it prints one."""
    max_tokens: Tokens = 512
    """Longer examples are cut to this many tokens."""
    examples: PositiveInt = 200
    """Most held-out examples that are scored, spread evenly over the categories."""


class TrainerTable(Table):
    """How runs use this machine; no run can change these keys."""

    device: str = "auto"
    """Device to train on: "auto", "cpu", "cuda", "cuda:1" or "mps"."""
    threads: PositiveInt | None = Field(default=None, examples=[2])
    """CPU threads; the default is one for each core."""
    micro_batch_tokens: PositiveInt = 16384
    """Most tokens in one forward pass; lower it if memory runs out."""
    joins_per_hour: PositiveInt = 60
    """Most requests to join in an hour; each may load a base and read the data."""
    order_seed: NonNegativeInt | None = Field(default=None, examples=[0])
    """Seed of the order of examples. Leave it out: the order then comes from a secret of this site, so that
    the coordinator cannot know which examples a visit uses. Tests set it to the run's seed, to compare a site
    with the same run in one process."""


class PolicyTable(Table):
    """What may be asked of this site. A request that breaks a rule is refused by the name of the key."""

    max_rank: PositiveInt = 16
    """Most ranks that are trained: more can memorise more of the examples. A run that sets adapter.min_rank
    may send an adapter of up to four times as many, of which the others stay as they were sent."""
    max_dropout: ShareBelowOne = 0.5
    """Largest dropout of an adapter: close to 1, an update depends on single tokens."""
    max_learning_rate: PositiveFloat = 0.1
    """Largest learning rate. Fixed rules without a key of their own also refuse a tuning.clip_norm below
    0.001 (0, no clipping, is allowed), optimiser betas below 0.5, momentum above 0.95, and learning_rate
    times weight_decay, or times the algorithm's mu, above 0.01: each can make the update of a long visit
    depend on a few examples."""
    max_steps: PositiveInt = 1000
    """Most optimiser steps in one visit (one or two more if it crosses the end of an epoch)."""
    max_epochs: PositiveFloat = 3.0
    """Most passes over the site's examples in one visit."""
    max_rounds: PositiveInt = 100
    """Most rounds of one run."""
    rounds_per_month: PositiveInt = 300
    """Most rounds trained in a calendar month, over all runs, by the audit log. A failed visit counts, and so
    does each new attempt; a kept answer that is sent again does not. As many rounds may be scored, plus one
    for each run."""
    runs_per_month: PositiveInt = 30
    """Most runs in a calendar month: each new run takes the examples in another order."""
    failures_per_run: PositiveInt = 20
    """Failed visits and scores of a run in a calendar month after which the run is refused, whatever the
    cause: a failure may reveal something about the examples of the visit. A fixed rule without a key of its
    own allows five attempts at one request."""
    algorithms: tuple[str, ...] = ("fedavg", "fedprox", "ffa_lora")
    """Algorithms that may run, by exact module name. A module outside this package runs its own code here:
    list it only if you have read it."""
    transforms: tuple[str, ...] = ("clip",)
    """Transforms that may run, by exact module name, as above."""
    optimisers: tuple[str, ...] = ("adamw",)
    """Local optimisers that may run, by exact module name, as above. Under "sgd" an update is the sum of the
    gradients, from which examples can be recovered more easily than from AdamW's steps."""
    objectives: tuple[str, ...] = ("sft",)
    """Local objectives that may run, by exact module name, as above."""
    min_cohort: PositiveInt = 2
    """Fewest sites in a round: in a round of one, the mean is this site's own update."""
    min_examples: PositiveInt = 16
    """Fewest distinct examples in a visit, and fewest behind any released number: a result of a few examples
    reveals much about each. A visit that would have fewer at the end of an epoch begins with the next one.
    Smaller categories are scored together, as "other"."""
    min_batch: PositiveInt = 8
    """Fewest examples in one optimiser step. A shorter last batch of an epoch is merged with the batch
    before it."""
    templates: tuple[TemplateName, ...] = get_args(TemplateName)
    """Prompt templates that a run may use."""
    system_prompts: tuple[str, ...] = ()
    """System prompts that a run may put before the examples, by exact text."""
    max_tokens: tuple[Tokens, ...] = (128, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
    """Lengths in tokens that a run may cut examples to. They are far apart, so that no two updates can be
    requested that differ by one token of an example."""
    dates: tuple[Day, ...] = ()
    """Dates, besides scoring.date, that a run may have a chat template print as today's."""
    loss_on: tuple[Literal["responses", "all"], ...] = ("responses",)
    """What may be trained on: "responses", or "all" for the instructions and contexts too."""
    require_noise: Switch = False
    """Refuse a run that adds no noise, at this site or at the server, however little it is."""
    require_privacy: tuple[Literal["example", "client"], ...] = ()
    """Whose privacy must be protected by noise: "example", each example of this site, by noise that this site
    adds to every step ([privacy.examples] in a run); "client", the site as a whole, by noise that the server
    adds to the sum of all sites, which this site has to trust it with. Nothing else runs then: no other run,
    no score, and no metric is released. It needs max_epsilon, and the extra shepherd-fit[privacy]."""
    max_epsilon: PositiveFloat | None = Field(default=None, examples=[8.0])
    """Most epsilon that all runs together may spend, by the ledger that this site keeps of each data source.
    A visit that would spend more is refused."""
    delta: Delta | None = Field(default=None, examples=[1e-5])
    """Delta at which epsilon is counted, below 1 over the site's examples; the default is 1e-5, or for
    each example their number to the power of -1.1 where that is less."""
    min_noise: PositiveFloat = 0.3
    """Smallest noise multiplier of a run that is to protect somebody."""
    require_secure_aggregation: Switch = False
    """Refuse a run without [secure]: without it the server sees each update of this site, and with it only
    sums over sites."""
    weighted_sums: Switch = False
    """Whether require_secure_aggregation allows sums in which sites have weights: a sum of one site of large
    weight and others of small ones is nearly that site's update, and a site knows no weight but its own."""
    secure_with: tuple[str, ...] = ()
    """The only sites that may be in a secure sum with this one, by name, and this one; empty for every site
    of the federation. Whoever controls the server and a third of the sites of a sum may learn the others."""
    colluding: NonNegativeInt = 0
    """Most sites of a secure sum that may collude with the server: where sites share the noise, so many
    shares hide nothing of this site, so a run whose `honest` counts on them is refused."""
    hours: Annotated[str, AfterValidator(_check_window)] | None = Field(
        default=None, examples=["18:00-06:00"]
    )
    """When a visit may start, by this machine's clock, such as "18:00-06:00"; the default is at any time."""
    metrics: tuple[Metric, ...] = ("loss", "examples", "tokens", "trained_tokens", "steps")
    """Numbers that may be released with an update. "heldout" adds, after each round, the mean loss on the
    held-out examples of each category, its name and number of tokens; without it no score is released."""

    @model_validator(mode="after")
    def _privacy_has_a_budget(self) -> Self:
        if self.require_privacy and self.max_epsilon is None:
            raise ValueError("require_privacy protects nobody without a budget; set max_epsilon, such as 8.0")
        if self.max_epsilon is not None and not self.require_privacy:
            raise ValueError(
                'max_epsilon limits nothing while other runs may go on; set require_privacy = ["example"]'
            )
        return self


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
            raise ValueError(f"two bases have the name {min(twice)}; give each its own name")
        return self


def read(path: str | Path) -> SiteSettings:
    """Read a site.toml, and make its paths absolute.

    Raises:
        SettingsError: the file is missing or not TOML, a key is unknown, or a value is invalid.
    """
    path = Path(path)
    table = toml.read(path, "site file")
    return _with_absolute_paths(validated(SiteSettings, table, str(path)), path.absolute().parent)


def _with_absolute_paths(site: SiteSettings, home: Path) -> SiteSettings:
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


def parse_request(tables: Mapping[str, Any]) -> RunSettings:
    """Validate the tables of a request as settings; keys that the site decides may be missing.

    Raises:
        SettingsError: a key is unknown, or a value is invalid.
    """
    model = {"base": "", **_table(tables, "model")}
    data = {"source": "", **_table(tables, "data")}
    return validated(RunSettings, {**tables, "model": model, "data": data}, "the request")


def settings_at_site(site: SiteSettings, tables: Mapping[str, Any], folder: str) -> RunSettings:
    """Settings of a request at this site, with the data, hold-out, machine and base of the site.

    Args:
        tables: tables of the run file in the request.
        folder: folder of the base.

    Raises:
        SettingsError: a key is unknown, or a value is invalid.
    """
    return with_site_settings(site, parse_request(tables), folder)


def with_site_settings(site: SiteSettings, run: RunSettings, folder: str) -> RunSettings:
    """Override the settings of a run by the site's data, hold-out and machine, and the base in `folder`."""
    model = {"base": folder, "revision": None, "trust_remote_code": False}
    data = {name: getattr(site.data, name) for name in SiteDataTable.model_fields}
    held = {"holdout": site.scoring.share, "seed": site.scoring.seed, "limit": None}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update=model),
            "data": run.data.model_copy(update={**data, **held}),
            "machine": _machine_table(site.trainer),
        }
    )


def _machine_table(trainer: TrainerTable) -> MachineTable:
    """The [machine] table of a run at this site, from the owner's [trainer] table."""
    cores = os.cpu_count() or 1
    threads: int | Literal["auto"] = min(trainer.threads, cores) if trainer.threads else "auto"
    return MachineTable(device=trainer.device, threads=threads)


def scoring_settings(site: SiteSettings, run: RunSettings) -> RunSettings:
    """Settings of a run at this site with the examples rendered as [scoring] says."""
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
        raise SettingsError(f"the request: key {name} is not a table; send the tables of a run file")
    return table


EXAMPLE_HEADER = """\
# site.toml: what this site's owner allows. The server cannot read or change this file.
#
#   shepherd silos check {name}    shows what would be trained on, and what would be released
#
# Only data.source is required. Every other key has the default that is shown here; without [[bases]] nothing
# is trained. A key after a # is not set. Paths are relative to the folder of this file.
"""
COMMENT_WIDTH = 100


def example(source: str = "data.jsonl", name: str = "site.toml") -> str:
    """Text of a commented site.toml with every key, for data in `source`, that allows the embedded base."""
    tiny = BaseTable(name=TINY, folder=TINY, sha256=digest(world.base_path()))
    lines = [
        *_table_without_comment("[data]", SiteDataTable(source=source)),
        *_table_without_comment("[data.fields]", FieldsTable()),
        *_table_with_comment("[[bases]]", tiny),
        *_table_with_comment("[scoring]", ScoringTable()),
        *_table_with_comment("[trainer]", TrainerTable()),
        *_table_with_comment("[policy]", PolicyTable()),
    ]
    return EXAMPLE_HEADER.format(name=name) + "".join(f"{line}\n" for line in lines)


def write_example(path: Path, source: str = "data.jsonl") -> None:
    """Write a new site.toml that only its owner may read and write.

    Raises:
        FolderError: the file exists already, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf8") as file:
            file.write(example(source, path.name))
    except FileExistsError:
        raise FolderError(f"{path} exists already; name another file, or move it away first") from None
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror}); check the path") from error


def _table_with_comment(title: str, table: BaseModel) -> Iterator[str]:
    yield ""
    yield from textwrap.wrap(
        _comment(type(table)), COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# "
    )
    yield from _key_lines(title, table)


def _table_without_comment(title: str, table: BaseModel) -> Iterator[str]:
    yield ""
    yield from _key_lines(title, table)


def _key_lines(title: str, table: BaseModel) -> Iterator[str]:
    yield title
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if not isinstance(value, BaseModel):
            yield from _one_key(key, field, value)


def _one_key(key: str, field: FieldInfo, value: Any) -> Iterator[str]:
    meaning = " ".join((field.description or "").split())
    yield from textwrap.wrap(
        meaning, COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
    if value is None and field.examples:
        yield f"# {key} = {_toml(field.examples[0])}"
    else:
        yield f"{key} = {_toml(value)}"


def _comment(table: type[BaseModel]) -> str:
    return " ".join((table.__doc__ or "").split())


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
