"""The run file: frozen settings read from TOML, with dotted overrides from the command line.

Every key has a default but `model.base` and `data.source`. A docstring under a key says what it means.

A path in a run file is relative to the file; one in an override, or in a table from Python, to the current
directory. They are absolute once they are read, so that a run folder holds wherever it is used from. `output`
alone is relative to the current directory, always.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shepherd import legacy, paths
from shepherd.config import (
    Day,
    NonNegativeFloat,
    NonNegativeInt,
    OpenTable,
    PartName,
    PartTable,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
    ShareBelowOne,
    Table,
)
from shepherd.errors import SettingsError
from shepherd.visible import shown_toml

log = logging.getLogger(__name__)
TINY, WORLD = "tiny", "world"
"""The embedded base and the embedded data."""
PATHS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("model", "base"): (TINY,),
    ("data", "source"): (WORLD,),
    ("judge", "questions"): ("heldout", "vicuna", "mt-bench"),
}
"""The keys that may hold a path, and the names there that are none."""


LONGEST_WAIT_S = 7 * 24 * 3600.0  # what waits for an answer overflows far beyond
Seconds = Annotated[float, Strict(), Field(gt=0.0, le=LONGEST_WAIT_S)]
T = TypeVar("T", bound=BaseModel)


class ModelTable(Table):
    base: str
    """"tiny" is the embedded base; else a folder, relative to this file, or a Hugging Face id."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen base; "auto" takes bfloat16 where the device is good at it."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Through bitsandbytes; needs CUDA and the extra [quantize]."""
    trust_remote_code: Annotated[bool, Strict()] = False
    """Run code that comes with a base; it runs only with --trust-remote-code, for bases you have read."""


class AdapterTable(Table):
    rank: PositiveInt = 8
    """Of the two factors A and B."""
    alpha: PositiveFloat = 16.0
    """The adapter counts for alpha / rank in each layer."""
    dropout: ShareBelowOne = 0.0
    """On the input of A, while tuning."""
    rank_stabilised: Annotated[bool, Strict()] = False
    """Scale by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732) instead of alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear modules, such as ["q_proj", "v_proj"]; "all-linear" is all that text passes but the
    head, and out_proj of Mamba and its kin, which PEFT refuses."""
    target_parameters: tuple[str, ...] = ()
    """Names of parameters that stack experts' matrices, such as ["mlp.experts.gate_up_proj"]; each expert
    gets factors of its own."""

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        if not self.targets and not self.target_parameters:
            raise ValueError('targets is empty; name modules or write "all-linear"')
        if self.target_parameters and self.dropout:
            raise ValueError(
                "target_parameters cannot be tuned with dropout, as in PEFT; set dropout to 0, or leave"
                " target_parameters out"
            )
        return self


class FieldsTable(Table):
    """How the data's fields are called. An empty string says that the data have no such field."""

    instruction: str = "instruction"
    """What is asked."""
    context: str = "auto"
    """"auto" takes `context` (Dolly), else `input` (Alpaca), the first that the row fills."""
    response: str = "auto"
    """"auto" takes `response` (Dolly), else `output` (Alpaca), the first that the row fills."""
    messages: str = "auto"
    """A chat's list of turns; "auto" takes `messages`, else `conversations` (ShareGPT)."""
    system: str = "auto"
    """System prompt of the row; "auto" takes `system`, else `system_prompt`, where it is text."""
    history: str = "auto"
    """Exchanges before the row's own, as pairs of a question and its answer; "auto" takes `history`
    (Alpaca's later forms), where it is that."""


NOT_OPTIONS = {
    "self", "conversation", "conversations", "messages", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now",
    "raise_exception",
}  # fmt: skip
"""Arguments of `apply_chat_template` that are not variables of a template, or are given already."""


class DataTable(Table):
    source: str
    """"world" is the embedded one; else a file or a folder with one file a client, relative to this file,
    or a Hugging Face id."""
    config: str | None = None
    """The configuration of a Hugging Face dataset."""
    part: str = "train"
    """The split of a Hugging Face dataset."""
    fields: FieldsTable = FieldsTable()
    category: str = "category"
    """The field that says what kind of instruction it is; "" where there is none."""
    template: Literal["alpaca", "alpaca-short", "vicuna", "plain", "chat"] = "alpaca"
    """"chat" is the tokenizer's own chat template."""
    template_options: dict[str, JsonValue] = {}  # noqa: RUF012 (pydantic copies it)
    """Variables that the chat template reads, such as `enable_thinking`, in a table of their own."""
    system: str | None = None
    """System prompt of every chat that has no system turn, for any template; the default is the
    template's own, and "" is an empty one."""
    date: Day = ""
    """Day that a chat template prints as today's, such as "2026-11-28"; "" is the day the run starts."""
    holdout: ShareBelowOne = 0.1
    """The share of the examples that is held out of training, before the split, each category its part;
    examples that share a question stay together."""
    max_tokens: Annotated[int, Strict(), Field(ge=8)] = 512
    """Longer examples are cut, contexts first, and counted; a response that is cut gets no end of turn
    (law 9)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be read, or leave it out and count it."""
    limit: PositiveInt | None = None
    """Use only so many examples of each category, drawn with the seed."""
    seed: NonNegativeInt | None = None
    """Of what is held out and who holds what; the default is the run's seed."""

    @model_validator(mode="after")
    def _options_of_a_chat_template(self) -> Self:
        if self.template_options and self.template != "chat":
            raise ValueError('template_options are for template = "chat" alone')
        taken = sorted(NOT_OPTIONS & self.template_options.keys())
        if taken:
            raise ValueError(f"template_options cannot set {taken[0]}, which is set for each chat")
        return self


class SplitTable(OpenTable):
    by: PartName = "iid"
    """How examples get to clients: a file of `shepherd/data/splits`, or a dotted module outside, with
    --allow-plugin NAME."""

    @property
    def name(self) -> str:
        """What finds the module."""
        return self.by


class FederationTable(Table):
    rounds: PositiveInt = 20
    """How many times a cohort trains and is averaged."""
    weights: Literal["examples", "tokens", "size", "equal"] = "examples"
    """What a client's update counts for in the mean: the examples or the tokens that it trained on in its
    visit, those that it holds ("size"), or one each. FedAvg's n_k (McMahan et al., 2017) is "size";
    "examples" is the same where a visit goes over all of a client's examples, and one each where
    `tuning.max_steps` makes all visits equally long."""
    quorum: PositiveShare = 0.5
    """The share of the cohort that must give a usable update, or the round is not finished."""
    max_share: Annotated[float, Strict(), Field(ge=0.1, le=1.0)] = 0.5
    """The most that one client may count for in a round: a heavier one counts for less. Of two clients each
    is half, of one it is all; 1 is no bound, which a server of silos refuses. The server holds
    1 / max_share updates back at most, to know how heavy the others are."""


class OptimiserTable(PartTable):
    name: str = "adamw"
    """A file of `shepherd/training/optimisers`, or a dotted module outside, with --allow-plugin NAME."""


class ObjectiveTable(PartTable):
    name: str = "sft"
    """A file of `shepherd/training/objectives`, or a dotted module outside, with --allow-plugin NAME."""


class TuningTable(Table):
    epochs: PositiveFloat | None = None
    """Passes over the client's own data in one visit; 1 if neither this nor max_steps is set."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in one visit; the cursor goes on where the last visit stopped (law 8)."""
    batch_size: PositiveInt = 32
    """Examples an optimiser step."""
    learning_rate: PositiveFloat = 1.5e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate within a visit."""
    warmup_steps: NonNegativeInt = 0
    """Linear warm-up at the start of each visit."""
    round_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate over the rounds."""
    final_share: Share = 0.0
    """Where linear and cosine schedules end, as a share of the learning rate."""
    optimiser: OptimiserTable = OptimiserTable()
    objective: ObjectiveTable = ObjectiveTable()
    clip_norm: NonNegativeFloat = 1.0
    """Clip each client's gradient to this norm; 0 is no clipping."""
    loss_on: Literal["responses", "all"] = "responses"
    """Train on what the model has to answer, or on the prompt too."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps are both set; keep one of them")
        return self


class AlgorithmTable(PartTable):
    name: PartName = "fedavg"
    """What a client does differently: a file of `shepherd/algorithms`, or a dotted module outside, with
    --allow-plugin NAME."""


class AggregationTable(PartTable):
    name: PartName = "mean"
    """How the cohort's updates become one: a file of `shepherd/aggregations`, or a dotted module outside,
    with --allow-plugin NAME."""


class ServerTable(PartTable):
    name: PartName = "sgd"
    """How the aggregate moves the server's adapter: a file of `shepherd/server_optimisers`, or a dotted
    module outside, with --allow-plugin NAME."""


class SelectionTable(PartTable):
    name: PartName = "uniform"
    """How the clients of a round are chosen: a file of `shepherd/selections`, or a dotted module outside,
    with --allow-plugin NAME."""


def _named(part: Any) -> Any:
    return {"name": part} if isinstance(part, str) else part


def _shortest(part: PartTable) -> Any:
    return {"name": part.name, **part.own} if part.own else part.name


NamedPart = Annotated[PartTable, BeforeValidator(_named), PlainSerializer(_shortest)]
"""A part by its name alone, or a table of its name and its other keys."""


class EvaluationTable(Table):
    every: PositiveInt = 1
    """Score the held-out examples every so many rounds (the last round always)."""
    examples: PositiveInt = 200
    """At most so many held-out examples for the loss, drawn evenly over the categories, and over the clients
    where the data name them."""
    answers: NonNegativeInt = 0
    """Held-out examples to answer before the first and after the last round, where a checker decides
    (the embedded world has checkers); 0 answers none."""
    max_new_tokens: PositiveInt = 64
    """Of one answer."""
    metrics: tuple[NamedPart, ...] = tuple(
        PartTable(name=name) for name in ("right", "exact", "f1", "rouge_l")
    )
    """What a comparison measures of each answer: files of `shepherd/evaluate/metrics`, or dotted modules
    outside, with --allow-plugin NAME. One that has keys is a table, such as {name = "f1", ...}."""


class JudgeTable(Table):
    """A model that compares answers, behind any OpenAI-compatible endpoint."""

    model: str = ""
    """As the endpoint calls it; "" judges nothing."""
    base_url: str = "https://api.openai.com/v1"
    """Where the endpoint is; it usually ends in /v1. Another than OpenAI's needs --base-url as well."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; "" for an endpoint that wants none. Another name
    needs --key-env as well."""
    protocol: Literal["pairwise", "fedit"] = "pairwise"
    """"pairwise" asks which answer is better, in both orders; "fedit" scores both from 1 to 10."""
    questions: str = "heldout"
    """"heldout", "vicuna", "mt-bench" (its first turns), or a file of questions, relative to this file."""
    limit: PositiveInt | None = None
    """At most so many questions, drawn evenly over their categories."""
    repeats: PositiveInt = 3
    """How often "fedit" scores each pair of answers."""
    temperature: NonNegativeFloat = 0.0
    """Of the judge's replies."""
    max_tokens: PositiveInt = 512
    """Of one reply: the reasons and the verdict after them."""
    concurrency: PositiveInt = 8
    """Requests under way at once."""
    timeout: PositiveFloat = 60.0
    """Seconds of silence after which a request is tried again."""
    retries: NonNegativeInt = 5
    """How often a request is tried again, later each time."""

    @field_validator("key_env")
    @classmethod
    def _a_name(cls, name: str) -> str:
        # no ValueError: its message would repeat the value, which may be the key itself
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SettingsError(
                "key judge.key_env is no name of an environment variable; put the key into one, "
                "such as OPENAI_API_KEY, and write that name"
            )
        return name

    @field_validator("base_url")
    @classmethod
    def _bare_address(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise SettingsError(
                "key judge.base_url is no bare http address; write it as https://host/v1, "
                "without a password or a query (the key stays in judge.key_env's variable)"
            )
        return url


class TrackingTable(Table):
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Through accelerate's trackers; each needs its own package. "wandb" and "mlflow" call a service, and
    need --allow-tracker NAME."""
    project: str = "shepherd"
    """What the trackers file the run under."""


class CheckpointTable(Table):
    keep: PositiveInt = 2
    """How many of the last rounds' checkpoints stay on disk."""


class MachineTable(Table):
    """How this machine runs what is asked: speed and memory. A run chooses what is left at "auto" once, when
    it begins, and keeps it in its folder's plan.json. Nothing of it goes to a site, whose owner decides."""

    device: str = "auto"
    """Where to compute: "auto", "cpu", "cuda", "cuda:1", "mps"."""
    threads: Literal["auto"] | PositiveInt = "auto"
    """Processor threads; "auto" is the number of cores."""
    workers: Literal["auto"] | PositiveInt = "auto"
    """Processes that tune side by side, each with its own copy of the base and its part of the threads;
    "auto" is one a core on a processor, where memory allows it and the run is long, else 1."""
    stack_size: Literal["auto"] | PositiveInt = "auto"
    """Clients tuned in one pass; "auto" chooses from the memory there is."""
    micro_batch_tokens: Literal["auto"] | PositiveInt = "auto"
    """Tokens in one forward pass, over all the clients in it; it changes speed and memory, not the step."""


class SilosTable(Table):
    """A run whose clients are sites behind a network; any other run makes no use of it."""

    sites: tuple[str, ...] = ()
    """The clients by name; the default is every site that is connected at the start."""
    deadline_s: Seconds = 3600.0
    """Seconds in which a site has to answer a round; a week at most."""
    short_deadline_s: Literal["auto"] | Seconds = "auto"
    """Seconds in which a site has to join or to score, which a round can do without; "auto" is a quarter of
    deadline_s, at least 300, and never more than deadline_s."""
    max_in_flight: PositiveInt = 4
    """Sites asked at once; the server holds at most this many updates in memory."""
    assembly_s: Seconds = 30.0
    """Seconds to wait for sites that are not connected, before the run begins without them."""
    start_s: Seconds = 90.0
    """Seconds in which the server must begin a submitted job; after that, another one is submitted."""
    silence_s: Seconds = 20.0
    """Seconds without an answer of the server's job until it is taken for dead, and another one begins."""
    grace_s: Seconds = 60.0
    """Seconds that a site may be gone until the round goes on without it; back by then, it is asked again."""
    return_s: Seconds = 20.0
    """Seconds to wait for a site that a round without quorum lacked, to ask the round again."""
    max_deaths: PositiveInt = 12
    """Jobs in a row that may die without a finished round, before the run stops."""


class RunSettings(Table):
    """A whole run file."""

    seed: NonNegativeInt = 0
    """Of everything that is drawn: the split, the cohorts, the order of the examples."""
    output: Annotated[str, AfterValidator(os.path.expanduser)] = "runs/run"
    """The run folder, relative to the current directory; it must be new or empty."""
    model: ModelTable
    adapter: AdapterTable = AdapterTable()
    data: DataTable
    split: SplitTable = SplitTable()
    federation: FederationTable = FederationTable()
    selection: SelectionTable = SelectionTable()
    tuning: TuningTable = TuningTable()
    algorithm: AlgorithmTable = AlgorithmTable()
    aggregation: AggregationTable = AggregationTable()
    server: ServerTable = ServerTable()
    transforms: tuple[PartTable, ...] = ()
    evaluation: EvaluationTable = EvaluationTable()
    judge: JudgeTable = JudgeTable()
    tracking: TrackingTable = TrackingTable()
    checkpoints: CheckpointTable = CheckpointTable()
    silos: SilosTable = SilosTable()
    machine: MachineTable = MachineTable()

    @model_validator(mode="before")
    @classmethod
    def _of_the_version_before(cls, table: Any, info: ValidationInfo) -> Any:
        where = (info.context or {}).get("where", "the run settings")
        return modern(table, where) if isinstance(table, Mapping) else table

    @property
    def data_seed(self) -> int:
        """The seed of what is held out and who holds what."""
        return self.seed if self.data.seed is None else self.data.seed


def read(path: str | Path, overrides: Iterable[str] = ()) -> RunSettings:
    """Read a run file and apply `key=value` overrides (dotted keys; values in TOML, or bare words).

    Paths in the file are relative to the file, those in overrides to the current directory.

    Raises:
        SettingsError: the file is missing or not TOML, a key is unknown, or a value is impossible.
    """
    path = Path(path)
    own = modern(_placed(_toml(path), path.absolute().parent, path), str(path))
    changed = _overridden(copy.deepcopy(own), overrides)
    return validated(RunSettings, _placed(changed, Path.cwd(), known=own), str(path))


def modern(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A run file's table with the keys of the version before under their new names, each with a warning.

    Raises:
        SettingsError: a key is there under both names.
    """
    found, sentences = legacy.renamed(table)
    for sentence in sentences:
        _warn(f"{where}: {sentence}")
    return found


@cache  # a run folder is read many times
def _warn(sentence: str) -> None:
    log.warning("%s", sentence)


def read_kept(path: Path) -> RunSettings:
    """Read the run file that a run has written, whose paths are absolute and stay as they are.

    Raises:
        SettingsError: as `read`.
    """
    return validated(RunSettings, _toml(path), str(path))


def parse(table: Mapping[str, Any], where: str = "the run settings") -> RunSettings:
    """Validate a plain table; its paths are relative to the current directory.

    Raises:
        SettingsError: one sentence a fault, each with its dotted key.
    """
    return validated(RunSettings, _placed(table, Path.cwd()), where)


def published(settings: RunSettings) -> RunSettings:
    """The same settings for readers elsewhere: each path by its last name."""
    table = settings.model_dump()
    for name, key in PATHS:
        table[name][key] = paths.short(table[name][key])
    table["output"] = paths.short(table["output"])
    return RunSettings.model_validate(table)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise SettingsError(f"run file {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"run file {path} is not TOML: {error}; fix that line") from error


def _placed(
    table: Mapping[str, Any], folder: Path, file: Path | None = None, known: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """The table with its paths made absolute from `folder`, but for those that stand in `known` as well."""
    whole = dict(table)
    for (name, key), names in PATHS.items():
        inner = whole.get(name)
        text = inner.get(key) if isinstance(inner, Mapping) else None
        if not isinstance(text, str) or text in names:
            continue
        if not text.strip():
            raise SettingsError(f"key {name}.{key}: it is empty; write a folder, a file or a Hugging Face id")
        before = known.get(name)
        if isinstance(before, Mapping) and before.get(key) == text:
            continue
        whole[name] = {**inner, key: _path(text, folder, f"{name}.{key}", file)}  # type: ignore[dict-item]
    return whole


def _path(text: str, folder: Path, key: str, file: Path | None) -> str:
    here = Path.cwd() / text
    there = folder / os.path.expanduser(text)
    if file is not None and not os.path.exists(there) and os.path.exists(here):
        log.warning(
            "run file %s: %s = %r is found from the current directory, which the next version will not do;"
            " paths are relative to the run file: write %r",
            file, key, text, os.path.relpath(here, folder),
        )  # fmt: skip
        folder = Path.cwd()
    placed = paths.placed(text, folder)
    if not paths.is_utf8(placed):
        raise SettingsError(
            f"key {key}: the path {os.fsencode(placed)!r} is not UTF-8, as a run file is; rename what is not"
        )
    return placed


def validated(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """`kind(**table)`, with pydantic's faults turned into one SettingsError."""
    try:
        return kind.model_validate(table, context={"where": where})
    except ValidationError as error:
        raise SettingsError(f"{where}: {'; '.join(_faults(kind, error))}") from error


def _faults(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence a key: what the members of a union ask for stands together."""
    groups: dict[tuple[int | str, ...], list[Any]] = {}
    for item in error.errors():
        groups.setdefault(_place(item), []).append(item)
    return [_fault(kind, place, items) for place, items in groups.items()]


def _place(item: Any) -> tuple[int | str, ...]:
    """Where in the file, without the names that pydantic gives the members of a union."""
    if item["type"] == "extra_forbidden":
        return tuple(item["loc"])
    return tuple(part for part in item["loc"] if isinstance(part, int) or part.isidentifier())


def _fault(kind: type[BaseModel], place: tuple[int | str, ...], items: list[Any]) -> str:
    key = ".".join(str(part) for part in place) or "the file"
    match items[0]["type"]:
        case "extra_forbidden":
            known = ", ".join(_keys_beside(kind, place)) or "none"
            return f"unknown key {key}; known keys there are {known}"
        case "missing":
            return f"key {key} is missing; add it"
        case _:
            wanted = " or ".join(dict.fromkeys(map(_wanted, items))).replace(" or input should", " or")
            got = _given(items[0]["input"], wanted)
            return f"key {key}: {wanted}{got and f' (got {got})'}"


def _given(value: Any, wanted: str) -> str:
    """The value at fault: of a table only the keys that `wanted` names, "" where it names none."""
    if not isinstance(value, Mapping):
        return f"{value!r:.80}"
    named = (key for key in value if re.search(rf"\b{re.escape(str(key))}\b", wanted))
    return ", ".join(f"{key} = {value[key]!r:.80}" for key in named)


def _wanted(item: Any) -> str:
    toml = {"tuple_type": "input should be a list", "model_type": "input should be a table"}
    message = item["msg"].removeprefix("Value error, ")
    return toml.get(item["type"], f"{message[:1].lower()}{message[1:]}")


def _keys_beside(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    for part in loc[:-1]:
        if part in getattr(kind, "model_fields", {}):
            kind = kind.model_fields[part].annotation
    return sorted(getattr(kind, "model_fields", {}))


def overridden(settings: RunSettings, overrides: Iterable[str]) -> RunSettings:
    """The same settings with `key=value` put over them.

    Raises:
        SettingsError: as `read`.
    """
    return parse(_overridden(_without_none(settings.model_dump(mode="json")), overrides))


def assigned(overrides: Iterable[str]) -> dict[str, Any]:
    """A plain table of `key=value`.

    Raises:
        SettingsError: an override has no key or no value.

    >>> assigned(["limit=80", "protocol=fedit"])
    {'limit': 80, 'protocol': 'fedit'}
    """
    return _overridden({}, overrides)


def _overridden(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SettingsError(f"override {override!r} is not key=value; write federation.rounds=2")
        if not paths.is_utf8(override):
            named = os.fsencode(override)
            raise SettingsError(f"override {named!r} is not UTF-8, as a run file is; rename what it names")
        key, value = _translated(key.strip(), _value(text.strip()), table)
        *parents, last = key.split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"override {key}: {parent} is not a table; give a whole value to it")
        inner[last] = value
    return table


def _translated(key: str, value: Any, table: dict[str, Any]) -> tuple[str, Any]:
    """An override whose key had another name in the version before, under its new one."""
    new = legacy.MOVED.get(key, key)
    if new != key:
        _warn(f"override {key}: {legacy.moved(key)}")
        if (key, value) == ("federation.select", "all") and isinstance(table.get("selection"), dict):
            table["selection"].pop("share", None)  # which it does not have
    return new, value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word: output=runs/two


def plain(settings: RunSettings) -> dict[str, Any]:
    """The settings as JSON's values, without what is None; `parse` reads them back to an equal value."""
    values: dict[str, Any] = _without_none(settings.model_dump(mode="json"))
    return values


def dump(settings: RunSettings) -> str:
    """The whole run file as TOML, defaults written out; `parse` reads it back to an equal value."""
    return shown_toml(tomli_w.dumps(plain(settings)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}  # TOML has no null
    return [_without_none(item) for item in value] if isinstance(value, list) else value
