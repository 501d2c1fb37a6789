"""site.toml: what a site's owner allows, in a file that nobody else can write.

Every key has a safe default but `data.source`. A docstring under a key says what it means. Paths are
relative to the folder that the file lies in.
"""

from __future__ import annotations

import os
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import AfterValidator, BaseModel, Field, Strict, model_validator
from pydantic.fields import FieldInfo

from shepherd import paths, world
from shepherd import settings as run_file
from shepherd.errors import FolderError, SettingsError
from shepherd.model.digest import digest
from shepherd.settings import TINY, WORLD, FieldsTable, PositiveFloat, PositiveInt, RunSettings, Table

Switch = Annotated[bool, Strict()]
Metric = Literal["loss", "examples", "tokens", "trained_tokens", "steps", "heldout"]
DAY = 24 * 60  # minutes


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
    if max(first_minute, last_minute) > 59 or start >= DAY or end > DAY:
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
    """The split of a Hugging Face dataset."""
    fields: FieldsTable = FieldsTable()
    category: str = "category"
    """The field that says what kind of instruction it is; "" where there is none. The names of the
    categories leave the site with held-out scores, where the policy lets "heldout" leave."""
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


class TrainerTable(Table):
    device: str = "auto"
    """Where to train: "auto", "cpu", "cuda", "cuda:1", "mps"; a run cannot choose it."""
    threads: PositiveInt | None = Field(default=None, examples=[2])
    """Processor threads; the default is what the run asks for, else the number of cores."""


class PolicyTable(Table):
    """What may be asked of this site. A request outside it is refused by the name of the key."""

    max_rank: PositiveInt = 16
    """Largest rank of an adapter: a larger one carries more out, and can learn more by heart."""
    max_steps: PositiveInt = 1000
    """Most optimiser steps in one visit, however the run file says its length."""
    max_epochs: PositiveFloat = 3.0
    """Most passes over the site's examples in one visit, however the run file says its length."""
    max_rounds: PositiveInt = 100
    """Most rounds of one run."""
    rounds_per_month: PositiveInt = 300
    """Most rounds trained in a month of the calendar, over all runs, as the audit log has them; a
    round that is asked for again with the same question counts once. Twice as many may be scored."""
    algorithms: tuple[str, ...] = ("fedavg", "fedprox", "ffa_lora")
    """The algorithms that may run, by the exact name of the module. A module outside this package runs
    code of its own here: list it only if you have read it."""
    transforms: tuple[str, ...] = ("clip",)
    """The transforms that may run, by the exact name of the module, as above."""
    min_cohort: PositiveInt = 2
    """Fewest sites in a round: in a round of one, the mean is this site's own update."""
    min_examples: PositiveInt = 16
    """Fewest examples to train on, and fewest held-out ones to score: an update from a handful, or their
    summed loss, says much about each of them."""
    loss_on: tuple[Literal["responses", "all"], ...] = ("responses",)
    """What may be trained on: the responses, or ("all") the instructions and contexts too."""
    require_noise: Switch = False
    """Refuse a run that has no transform called "noise"."""
    require_secure_aggregation: Switch = False
    """Refuse a run that has no transform called "secure": without it the server sees each update."""
    hours: Annotated[str, AfterValidator(_window)] | None = Field(default=None, examples=["18:00-06:00"])
    """When a visit may begin, by this machine's clock, such as "18:00-06:00"; the default is any time."""
    metrics: tuple[Metric, ...] = ("loss", "examples", "tokens", "trained_tokens", "steps", "heldout")
    """The numbers that may leave beside an update. "heldout" is the summed loss on held-out examples of
    each category, and their tokens; without it no score is given."""


class SiteSettings(Table):
    """A whole site.toml."""

    data: SiteDataTable
    bases: tuple[BaseTable, ...] = ()
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
    try:
        table = tomllib.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise SettingsError(f"site file {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"site file {path} is not TOML: {error}; mend that line") from error
    return _placed(run_file.validated(SiteSettings, table, str(path)), path.absolute().parent)


def _placed(site: SiteSettings, home: Path) -> SiteSettings:
    source, folders = site.data.source, [base.folder for base in site.bases]
    data = source if source == WORLD else paths.placed(source, home)
    bases = [folder if folder == TINY else paths.placed(folder, home) for folder in folders]
    return site.model_copy(
        update={
            "data": site.data.model_copy(update={"source": data}),
            "bases": tuple(
                base.model_copy(update={"folder": folder})
                for base, folder in zip(site.bases, bases, strict=True)
            ),
        }
    )


def asked(tables: Mapping[str, Any]) -> RunSettings:
    """The tables of a request as settings. What is the site's own, they need not say.

    Raises:
        SettingsError: a key is unknown, or a value is impossible.
    """
    model = {"base": "", **_table(tables, "model")}
    data = {"source": "", **_table(tables, "data")}
    return run_file.validated(RunSettings, {**tables, "model": model, "data": data}, "the request")


def own(site: SiteSettings, tables: Mapping[str, Any], folder: str) -> RunSettings:
    """The tables of a request, with the site's data, device and the base in `folder` put over them.

    Raises:
        SettingsError: a key is unknown, or a value is impossible.
    """
    return laid_over(site, asked(tables), folder)


def laid_over(site: SiteSettings, run: RunSettings, folder: str) -> RunSettings:
    """As `own`, for tables that are read already."""
    threads = site.trainer.threads or run.tuning.threads
    model = {"base": folder, "revision": None, "device": site.trainer.device, "trust_remote_code": False}
    data = {name: getattr(site.data, name) for name in SiteDataTable.model_fields} | {"limit": None}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update=model),
            "data": run.data.model_copy(update=data),
            "tuning": run.tuning.model_copy(update={"threads": threads}),
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
        "",
        *textwrap.wrap(_meaning(BaseTable), WIDTH, initial_indent="# ", subsequent_indent="# "),
        *_described("[[bases]]", tiny),
        *_described("[trainer]", TrainerTable()),
        "",
        *textwrap.wrap(_meaning(PolicyTable), WIDTH, initial_indent="# ", subsequent_indent="# "),
        *_described("[policy]", PolicyTable()),
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


def _described(title: str, table: BaseModel) -> Iterator[str]:
    if title not in ("[[bases]]", "[policy]"):
        yield ""
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
