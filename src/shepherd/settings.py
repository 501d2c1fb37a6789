"""The run file's tables and keys; `shepherd.overrides` reads and writes it.

Every key has a default except `model.base` and `data.source`. A docstring under a key says what it means.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shepherd import legacy
from shepherd.config import (
    Day,
    Delimiter,
    Encoding,
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
from shepherd.io import paths

MAX_SHOWN_CHARS = 60
"""Longest value in the `repr` of settings."""
TINY, WORLD, MEMORY = "tiny", "world", "memory"
"""Names of the embedded base, of the embedded data, and of rows that a Python program gives."""
PREFERENCES = "world-preferences"
"""Name of the embedded data with a right and a wrong answer to each instruction."""
ROW_NUMBER = "#row"
"""Value of data.group that stands for a row's number in its file."""
PATHS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("model", "base"): (TINY,),
    ("adapter", "start"): ("",),
    ("data", "source"): (WORLD, PREFERENCES, MEMORY),
    ("data", "root"): ("",),
    ("evaluation", "data"): ("",),
    ("evaluation", "harmful"): ("",),
    ("judge", "questions"): ("heldout", "vicuna", "mt-bench"),
}
"""Keys that may hold a path, each with the values that are names and not paths."""


LONGEST_WAIT_S = 7 * 24 * 3600.0  # far below what overflows in the calls that wait
Seconds = Annotated[float, Strict(), Field(gt=0.0, le=LONGEST_WAIT_S)]


def as_text(path: Any) -> Any:
    """A path as text; any other value stays as it is."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


PathText = Annotated[str, BeforeValidator(as_text)]
"""A path as text, which Python may give as a `pathlib.Path`."""


class ModelTable(Table):
    base: PathText
    """Base model: "tiny" (embedded), a folder relative to this file, or a Hugging Face id."""
    revision: str | None = None
    """Branch, tag or commit of the base on the Hugging Face hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the frozen base; "auto" takes bfloat16 where the device computes it fast."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Quantise the base with bitsandbytes, on CUDA or a processor; needs the extra [quantize]."""
    trust_remote_code: Annotated[bool, Strict()] = False
    """Run code that comes with the base. It also needs --trust-remote-code; read the code first."""


class AdapterTable(Table):
    rank: PositiveInt = 8
    """Rank of the two factors A and B."""
    ranks: tuple[PositiveInt, ...] | dict[str, PositiveInt] = ()
    """Ranks of clients that train fewer than `rank`, the first ones of the adapter; the others stay as they
    were sent. A table names clients; a list is dealt out to all clients in the order of their names. The
    aggregation has to take unequal ranks, such as "product". Sites of a federation see this key."""
    min_rank: PositiveInt | None = None
    """Fewest ranks that a site of a federation may train. A site whose owner allows fewer than `rank` (its
    `policy.max_rank`) then trains as many as it allows, the first ones, as with `ranks`; one that allows
    fewer than this is left out. By default every site trains `rank`, and so does every client of a run in one
    process."""
    alpha: PositiveFloat = 16.0
    """Scale of the adapter: its output is multiplied by alpha / rank, whatever part of it a client trains."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the input of A during tuning."""
    rank_stabilised: Annotated[bool, Strict()] = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732)."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear modules to adapt, such as ["q_proj", "v_proj"]. "all-linear" is every linear layer
    that text passes through, except the output head and the out_proj of Mamba-like layers, which PEFT
    refuses."""
    target_parameters: tuple[str, ...] = ()
    """Names of parameters that stack the matrices of experts, such as ["mlp.experts.gate_up_proj"]; each
    expert gets its own factors."""
    start: PathText = ""
    """Adapter to begin with, relative to this file: the folder of a run (its final adapter, else its last
    checkpoint), of an arm of a comparison, or of a PEFT adapter. Its rank, scale and targets must be those of
    this table, and its base that of `model`. "" begins with a new adapter, which changes nothing at first."""

    @model_validator(mode="after")
    def _require_target(self) -> Self:
        if not self.targets and not self.target_parameters:
            raise ValueError('targets is empty; name modules or write "all-linear"')
        if self.target_parameters and self.dropout:
            raise ValueError(
                "target_parameters cannot be tuned with dropout, as in PEFT; set dropout to 0 or remove"
                " target_parameters"
            )
        return self

    @model_validator(mode="after")
    def _require_ranks_within(self) -> Self:
        own = self.ranks.values() if isinstance(self.ranks, Mapping) else self.ranks
        if max(own, default=0) > self.rank:
            raise ValueError(
                f"ranks has {max(own)}, above rank = {self.rank}; raise rank to the largest of them"
            )
        for key in ("ranks", "min_rank"):
            if getattr(self, key) and self.target_parameters:
                raise ValueError(
                    f"{key} cannot be used with target_parameters, whose experts share one tensor; remove one"
                )
        return self

    @model_validator(mode="after")
    def _require_min_rank_within(self) -> Self:
        if self.min_rank and self.min_rank > self.rank:
            raise ValueError(f"min_rank = {self.min_rank} is above rank = {self.rank}; lower it")
        if self.min_rank and self.ranks:
            raise ValueError(
                "ranks and min_rank are both set, and with min_rank each site says its rank itself; keep one"
                " of them"
            )
        return self


class FieldsTable(Table):
    """Names of the data's fields; an empty string says that the data have no such field."""

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
    chosen: str = "auto"
    """The better one of a pair of answers, as text or as a chat; "auto" takes `chosen`, beside a field of the
    rejected one."""
    rejected: str = "auto"
    """The worse one of a pair of answers; "auto" takes `rejected`."""


NOT_OPTIONS = {
    "self", "conversation", "conversations", "messages", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now",
    "raise_exception",
}  # fmt: skip
"""Arguments of `apply_chat_template` that are not variables of a template, or are always set here."""


class DataTable(Table):
    source: PathText
    """Training data: "world" (embedded), "world-preferences" (the same with two answers, a right and a wrong
    one), a file or a folder with one file per client, relative to this file, a Hugging Face id, or "memory"
    for rows given in Python, as `open_run(settings, rows=...)`."""
    config: str | None = None
    """Configuration of a Hugging Face dataset."""
    part: str = "train"
    """Split of a Hugging Face dataset to read, or the key of one of several tables in a JSON file."""
    delimiter: Delimiter = "auto"
    """Separator of the cells of a CSV or TSV file, such as ";" or "tab"; "auto" detects it."""
    encoding: Encoding = "auto"
    """Encoding of the data's text files, such as "cp1252"; "auto" is UTF-8 or UTF-16."""
    columns: tuple[str, ...] = ()
    """Column names of a CSV, TSV or Excel file without a header."""
    sheet: str = "auto"
    """Sheet of an Excel file; "auto" is the only one that is not empty."""
    fields: FieldsTable = FieldsTable()
    category: str = "category"
    """Field that names the kind of instruction; "" if there is none."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What to do with an example that its client has already, question and answer: leave it out, or train on
    it as often as it is there. The same question with another answer is no duplicate. What several clients
    have stays with each of them. Both are counted and shown."""
    group: str = ""
    """Field that names what an example belongs to, such as a problem, a thread or a passage; examples of one
    group are held out or trained on together. "#row" is the row's number in its file, for files whose lines
    match, such as translations. "" if there is none."""
    root: PathText = ""
    """Examples of the server's own: a file relative to this file, with the fields of the data. An aggregation
    such as "fltrust" compares each update with the one that they give; nothing else is trained on them."""
    template: Literal["alpaca", "alpaca-short", "vicuna", "plain", "chat"] = "alpaca"
    """Prompt template; "chat" is the tokenizer's own chat template."""
    template_options: dict[str, JsonValue] = {}  # noqa: RUF012 (pydantic copies it)
    """Variables that the chat template reads, such as `enable_thinking`, as a table."""
    system: str | None = None
    """System prompt of chats without a system turn, for any template; the default is the template's own, and
    "" is an empty one."""
    date: Day = ""
    """Date that a chat template prints as today, such as "2026-11-28"; "" is the day on which the run
    starts."""
    holdout: ShareBelowOne = 0.1
    """Share of the examples held out of training, taken before the split and from each category alike;
    examples that share a question stay together. Not used where evaluation.data is set."""
    max_tokens: Annotated[int, Strict(), Field(ge=8)] = 512
    """Longest example, in tokens; longer ones are cut, contexts first, and counted. A response that is cut
    gets no end token (law 9)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a row that cannot be read: stop with an error, or skip and count it."""
    limit: PositiveInt | None = None
    """Use at most this many examples of each category, drawn with the seed; the default is all."""
    seed: NonNegativeInt | None = None
    """Seed of the held-out examples and of the split; the default is the run's seed."""

    @model_validator(mode="after")
    def _require_chat_template(self) -> Self:
        if self.template_options and self.template != "chat":
            raise ValueError('template_options are only for template = "chat"')
        taken = sorted(NOT_OPTIONS & self.template_options.keys())
        if taken:
            raise ValueError(f"template_options cannot set {taken[0]}, which is set for each chat")
        return self


class SplitTable(OpenTable):
    by: PartName = "iid"
    """How examples are divided among clients: a file of `shepherd/data/splits`, or a dotted module outside
    the package, with --allow-plugin NAME."""

    @property
    def name(self) -> str:
        """Name by which the module is found."""
        return self.by


class FederationTable(Table):
    rounds: PositiveInt = 20
    """Number of rounds; in each, a cohort trains and its updates are combined."""
    weights: Literal["examples", "tokens", "size", "equal"] = "examples"
    """Weight of a client's update in the mean: the examples or the tokens that it trained on in its visit,
    the examples that it holds ("size"), or 1 ("equal"). FedAvg's n_k (McMahan et al., 2017) is "size".
    "examples" is the same as "size" if a visit covers all of a client's examples, and the same as "equal" if
    `tuning.max_steps` makes all visits equally long."""
    quorum: PositiveShare = 0.5
    """Share of the cohort that must return a usable update; with fewer the round does not finish."""
    max_share: Annotated[float, Strict(), Field(ge=0.1, le=1.0)] = 0.5
    """Largest share of a round that one client may count for; the weight of a heavier one is reduced to it.
    Two clients count for half each, and a single one for all. 1 is no limit, which a server of silos refuses.
    The server holds back at most 1 / max_share updates until it knows the weights of the others."""


class OptimiserTable(PartTable):
    name: str = "adamw"
    """Local optimiser: a file of `shepherd/training/optimisers`, or a dotted module outside the package, with
    --allow-plugin NAME."""


class ObjectiveTable(PartTable):
    name: str = "sft"
    """What a local step minimises: a file of `shepherd/training/objectives`, or a dotted module outside the
    package, with --allow-plugin NAME."""


class TuningTable(Table):
    epochs: PositiveFloat | None = None
    """Passes over the client's own data in one visit; 1 if neither this nor max_steps is set."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in one visit; the next visit continues in the client's data where this one stopped."""
    batch_size: PositiveInt = 32
    """Examples per optimiser step."""
    learning_rate: PositiveFloat = 1.5e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate within a visit."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up at the start of each visit."""
    round_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate over the rounds."""
    final_share: Share = 0.0
    """Learning rate at the end of a linear or cosine schedule, as a share of the peak."""
    optimiser: OptimiserTable = OptimiserTable()
    objective: ObjectiveTable = ObjectiveTable()
    clip_norm: NonNegativeFloat = 1.0
    """Clip each client's gradient to this norm; 0 turns clipping off."""
    loss_on: Literal["responses", "all"] = "responses"
    """Train on the responses alone, or on the prompts as well."""

    @model_validator(mode="after")
    def _require_one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps are both set; keep one of them")
        return self


class AlgorithmTable(PartTable):
    name: PartName = "fedavg"
    """What a client does differently: a file of `shepherd/algorithms`, or a dotted module outside the
    package, with --allow-plugin NAME."""


class AggregationTable(PartTable):
    name: PartName = "mean"
    """How the cohort's updates become one: a file of `shepherd/aggregations`, or a dotted module outside the
    package, with --allow-plugin NAME."""


class ServerTable(PartTable):
    name: PartName = "sgd"
    """How the aggregate moves the server's adapter: a file of `shepherd/server_optimisers`, or a dotted
    module outside the package, with --allow-plugin NAME."""


class SelectionTable(PartTable):
    name: PartName = "uniform"
    """How the clients of a round are chosen: a file of `shepherd/selections`, or a dotted module outside the
    package, with --allow-plugin NAME."""


def _as_table(part: Any) -> Any:
    return {"name": part} if isinstance(part, str) else part


def _as_name_or_table(part: PartTable) -> Any:
    return {"name": part.name, **part.own} if part.own else part.name


NamedPart = Annotated[PartTable, BeforeValidator(_as_table), PlainSerializer(_as_name_or_table)]
"""A plug-in by its name alone, or as a table of its name and its other keys."""


class ExamplesTable(Table):
    """DP-SGD at each client: its examples are protected by noise that it adds to every step. A step draws
    each example with the chance tuning.batch_size / examples, clips gradients by example instead of by
    tuning.clip_norm, and weights each example by itself. No client reports losses or counts, and
    federation.weights must be "equal" or "size". The number of examples of each client counts as public."""

    norm: Annotated[float, Strict(), Field(ge=1e-6, le=1e9)]
    """Norm that the gradient of each example is clipped to, over all trained tensors together."""
    noise: Annotated[float, Strict(), Field(gt=0.0, le=1e6)]
    """Noise multiplier: the standard deviation of the noise of a step, as a multiple of `norm`."""


class PrivacyTable(Table):
    """The privacy budget of a run, where something in it adds noise: a transform such as "gaussian"."""

    epsilon: PositiveFloat | None = None
    """Largest epsilon that all rounds may spend together; a run that plans more is refused before it starts.
    The default is no limit: what is spent is reported all the same."""
    delta: Annotated[float, Strict(), Field(gt=0.0, lt=1.0)] | None = None
    """Delta at which epsilon is counted, below 1 over the number of clients, or of the examples of each
    client. The default is that number to the power of -1.1, and 1e-5 at most."""
    examples: Annotated[ExamplesTable | None, Field(examples=[{"norm": 1.0, "noise": 1.0}])] = None
    """Protect the single examples of each client: a table with norm and noise."""


class SecureTable(Table):
    """Secure aggregation: the sites of a federation mask their updates, so that the server sees the sum of a
    round's updates and nothing else of them. Without this table it sees each one. It needs three clients a
    round, a transform that sends whole numbers as the last one ("fixed_point", or "skellam" with noise), and
    an aggregation that is a mean. So that a sum hides each update in it, visits need `tuning.max_steps`,
    `federation.weights` is "equal" or "size", and no algorithm may leave something with its clients. A run in
    one process adds the same numbers up, and hides nothing."""

    ring_bits: Literal[32, 64] = 32
    """Bits of each number of a sum, in which all clients of a round together must have room."""


class SpeedsTable(Table):
    """Speeds of the clients of a run in one process, where no time is waited: a visit takes as long on a
    simulated clock as its examples take at the client's speed, which is drawn once with the seed. A run over
    silos ignores this table."""

    examples_per_s: PositiveFloat = 10.0
    """Examples that a usual client trains on in a second of the simulated clock."""
    spread: Annotated[float, Strict(), Field(ge=0.0, le=5.0)] = 0.0
    """Standard deviation of the natural logarithm of a client's speed: speeds are log-normal."""
    slow_share: Share = 0.1
    """Share of the clients that are slow."""
    slow_factor: Annotated[float, Strict(), Field(ge=1.0, le=1e6)] = 10.0
    """How many times slower these are."""


class StragglersTable(Table):
    """A round that does not wait for its slowest clients: it ends `wait_s` seconds after `min_updates` usable
    updates have come, or once all have answered. Without this table a round waits for every client that it
    asked; over silos, for `silos.deadline_s` at most, which holds with this table, too."""

    min_updates: PositiveInt
    """Usable updates that a round waits for: one that is refused does not count. A client's own min_cohort
    may raise it. With a robust aggregation at least nine tenths of the cohort."""
    wait_s: Annotated[float, Strict(), Field(ge=0.0, le=LONGEST_WAIT_S)] = 0.0
    """Seconds that a round goes on once it has them; in one process, of the simulated clock."""
    carry: Annotated[bool, Strict()] = False
    """Whether an update that comes later is part of the round in which it comes, with the weight of FedBuff
    for an update that is t rounds late, 1 / sqrt(1 + t) of its own (arXiv 2106.06639); its client is not
    asked until then. The default is to drop it."""
    speeds: SpeedsTable = SpeedsTable()


class GateTable(Table):
    """When the adapter of a run may be released. Without a key every adapter may; with one, an adapter that
    fails, or was not measured yet, is "not released": `shepherd export` and `push` refuse it and say why."""

    drops: dict[str, NonNegativeFloat] = {}  # noqa: RUF012 (pydantic copies it)
    """How much worse than the untuned base a score may be, by its name: "loss" in nats a token, as a share of
    1 the others: "right", "exact", "f1", "rouge_l" of a comparison, "refusal", "refusal_judged", or a
    benchmark task (its first metric, or "TASK.METRIC" in quotes); such as {loss = 0.0, refusal = 0.02}."""
    audit: Annotated[bool, Strict()] = False
    """Whether `shepherd audit` of this run must be there and must not contradict the epsilon that the run
    claims."""
    membership: Annotated[float, Strict(), Field(ge=0.5, le=1.0)] | None = None
    """Largest AUC at which the audit may tell training examples from held-out ones by their loss against the
    base; 0.5 is guessing."""

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return bool(self.drops) or self.audit or self.membership is not None


class EvaluationTable(Table):
    data: PathText = ""
    """Test set: a file relative to this file, such as a folder's global_test.json, with the fields of the
    data. All of it is held out, in place of data.holdout: examples that it holds are not trained on. "" takes
    the held-out examples from the data."""
    every: PositiveInt = 1
    """Score the held-out examples after every this many rounds, and always after the last."""
    examples: PositiveInt = 200
    """Largest number of held-out examples scored by loss, drawn evenly over the categories, and over the
    clients where the data name them."""
    clients: PositiveInt = 20
    """Largest number of clients whose own models are scored, where the algorithm leaves a part of the model
    with each client; evenly drawn from their names."""
    answers: NonNegativeInt = 0
    """Number of held-out examples to answer before the first and after the last round, if a checker can judge
    them (the embedded world has checkers); 0 answers none."""
    max_new_tokens: PositiveInt = 64
    """Longest answer, in tokens."""
    contribution: bool = False
    """Whether each scored round reports what each of its clients contributed to the fall of the held-out
    loss. It holds the updates of the cohort, and scores the held-out examples once more for each client; not
    for a run over a network."""
    harmful: PathText = ""
    """Prompts that a model should refuse: a file relative to this file, one a line, or rows with a field such
    as prompt or goal. A comparison says how many of them the base and each arm refuse."""
    gate: GateTable = GateTable()
    metrics: tuple[NamedPart, ...] = tuple(
        PartTable(name=name) for name in ("right", "exact", "f1", "rouge_l")
    )
    """Metrics of each answer in a comparison: files of `shepherd/evaluate/metrics`, or dotted modules outside
    the package, with --allow-plugin NAME. A metric with keys is a table, such as {name = "f1", ...}."""


class JudgeTable(Table):
    """The judge: a model that compares answers, behind any OpenAI-compatible endpoint."""

    model: str = ""
    """Model name at the endpoint; "" turns judging off."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the endpoint, usually ending in /v1. Any address but OpenAI's also needs --base-url."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; "" for an endpoint without keys. Any name but the default
    also needs --key-env."""
    protocol: Literal["pairwise", "fedit"] = "pairwise"
    """"pairwise" asks which answer is better, in both orders; "fedit" scores both from 1 to 10."""
    questions: PathText = "heldout"
    """The questions: "heldout", "vicuna", "mt-bench" (its first turns), or a file relative to this file."""
    limit: PositiveInt | None = None
    """Largest number of questions, drawn evenly over their categories; the default is all."""
    repeats: PositiveInt = 3
    """Number of times that "fedit" scores each pair of answers."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the judge's replies."""
    max_tokens: PositiveInt = 512
    """Longest reply, in tokens: the reasons and the verdict after them."""
    concurrency: PositiveInt = 8
    """Requests in flight at the same time."""
    timeout: PositiveFloat = 60.0
    """Seconds without a response after which a request is tried again."""
    retries: NonNegativeInt = 5
    """Number of times that a request is tried again, after longer and longer pauses."""

    @field_validator("key_env")
    @classmethod
    def _require_variable_name(cls, name: str) -> str:
        # no ValueError: its message would repeat the value, which may be the key itself
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SettingsError(
                "key judge.key_env is not the name of an environment variable; put the API key into a "
                "variable, such as OPENAI_API_KEY, and write the variable's name"
            )
        return name

    @field_validator("base_url")
    @classmethod
    def _require_plain_address(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url) or not _has_host_and_port(url):
            raise SettingsError(
                "key judge.base_url is not a plain http address; write it as https://host/v1, "
                "without a password or a query (the API key belongs in the variable of judge.key_env)"
            )
        return url


def _has_host_and_port(url: str) -> bool:
    """Whether an address has a host, and a port that exists if it has any."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that is not closed, or a port that is no number below 65,536
        return False


class CompareTable(Table):
    """What a comparison's long trainings do otherwise: the arms that see as many examples as all clients.

    One long training and many short visits are not at their best with the same batches and rates, so that a
    comparison with one of them at the other's settings says little.
    """

    batch_size: PositiveInt | None = None
    """Examples per optimiser step of the arms that are matched by examples; the default is
    tuning.batch_size."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of the arms that are matched by examples; the default is tuning.learning_rate."""


class TrackingTable(Table):
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()
    """Experiment trackers; each needs its own package. All but "tensorboard" may send figures to a service,
    and also need --allow-tracker NAME."""
    project: str = "shepherd"
    """Project name under which the trackers file the run."""


class CheckpointTable(Table):
    keep: PositiveInt = 2
    """Number of checkpoints kept on disk: those of the last rounds."""


class RayTable(Table):
    """Tune on Ray, in actors on one machine or many, instead of in this process or in worker processes. The
    run file says how many actors there are and what each needs; which cluster has them is said on the command
    line only: `shepherd run RUN.toml --ray ADDRESS`. Without it a Ray of the run's own is started on this
    machine, and ends with the run."""

    actors: PositiveInt
    """Actors, each with its own copy of the base; they take the place of `machine.workers`."""
    cpus: PositiveInt = 1
    """Processor threads of each actor, which Ray reserves for it."""
    gpus: NonNegativeFloat = 0.0
    """GPUs of each actor, which Ray reserves for it: 1.0 for a whole one, 0.5 if two actors share one, 0.0 to
    tune on the processor."""
    start_s: Seconds = 600.0
    """Time limit for the first actor to have a place in the cluster and load the base, in seconds."""
    tries: PositiveInt = 3
    """Times that clients are tuned whose actor dies, before they count as failed in the round."""


class MachineTable(Table):
    """Speed and memory: how this machine runs what the other tables ask for. A run chooses what is left at
    "auto" once, when it begins, and keeps it in plan.json in its folder. Nothing of this table is sent to a
    site, where its owner decides."""

    device: str = "auto"
    """Device to compute on: "auto", "cpu", "cuda", "cuda:1", "mps"."""
    threads: Literal["auto"] | PositiveInt = "auto"
    """Processor threads; "auto" is the number of cores."""
    workers: Literal["auto"] | PositiveInt = "auto"
    """Processes that tune side by side, each with its own copy of the base and its share of the threads;
    "auto" is one per core on a CPU, if memory allows it and the run is long, else 1."""
    stack_size: Literal["auto"] | PositiveInt = "auto"
    """Clients tuned in one pass; "auto" chooses by the memory available."""
    micro_batch_tokens: Literal["auto"] | PositiveInt = "auto"
    """Tokens in one forward pass, over all the clients in it; changes speed and memory, not the result."""
    ray: Annotated[RayTable | None, Field(examples=[{"actors": 2}])] = None
    """Tune on Ray: a table with the number of actors."""


class SilosTable(Table):
    """A run over a network, whose clients are sites; any other run ignores this table."""

    sites: tuple[str, ...] = ()
    """Names of the sites that take part; the default is every site that is connected at the start."""
    deadline_s: Seconds = 3600.0
    """Time limit for a site to answer a round, in seconds; a week at most."""
    short_deadline_s: Literal["auto"] | Seconds = "auto"
    """Time limit for a site to join or to score, in seconds; a round can do without either. "auto" is a
    quarter of deadline_s, at least 300, and never more than deadline_s."""
    max_in_flight: PositiveInt = 4
    """Sites contacted at the same time; the server holds at most this many updates in memory."""
    assembly_s: Seconds = 30.0
    """Seconds to wait for sites that are not connected before the run begins without them."""
    start_s: Seconds = 90.0
    """Time limit for the server to begin a submitted job, in seconds; then another job is submitted."""
    silence_s: Seconds = 20.0
    """Seconds without an answer from the server's job after which it counts as dead and another begins."""
    grace_s: Seconds = 60.0
    """Seconds that a site may be disconnected before the round continues without it; if it returns within
    them, it is asked again."""
    return_s: Seconds = 20.0
    """Seconds to wait, after a round without quorum, for its missing sites before the round is repeated."""
    max_deaths: PositiveInt = 12
    """Jobs in a row that may die without finishing a round before the run stops."""


class RunSettings(Table):
    """A whole run file; each field is a table or a key of it."""

    seed: NonNegativeInt = 0
    """Seed of every random draw: the split, the cohorts, the order of the examples."""
    output: Annotated[PathText, AfterValidator(os.path.expanduser)] = "runs/run"
    """Run folder, relative to the current directory; it must be new or empty."""
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
    privacy: PrivacyTable = PrivacyTable()
    secure: Annotated[SecureTable | None, Field(examples=[{"ring_bits": 32}])] = None
    """Have sites mask their updates, so that the server sees sums alone: a table, which may be empty."""
    stragglers: Annotated[StragglersTable | None, Field(examples=[{"min_updates": 2}])] = None
    """Do not wait for the slowest clients of a round: a table with min_updates."""
    evaluation: EvaluationTable = EvaluationTable()
    compare: CompareTable = CompareTable()
    judge: JudgeTable = JudgeTable()
    tracking: TrackingTable = TrackingTable()
    checkpoints: CheckpointTable = CheckpointTable()
    silos: SilosTable = SilosTable()
    machine: MachineTable = MachineTable()
    stages: tuple[dict[str, JsonValue], ...] = ()
    """Trainings one after another, each from the adapter of the one before: a table [[stages]] for each, with
    what differs in it from the rest of the file, and a `name` for its folder."""

    @model_validator(mode="before")
    @classmethod
    def _rename_old_keys(cls, table: Any, info: ValidationInfo) -> Any:
        where = (info.context or {}).get("where", "the run settings")
        return legacy.modern(table, where) if isinstance(table, Mapping) else table

    @model_validator(mode="after")
    def _require_sound_privacy(self) -> Self:
        # no ValueError: its message would quote the whole file
        if self.privacy.examples is None:
            return self
        if self.federation.weights in ("examples", "tokens"):
            raise SettingsError(
                f'federation.weights = "{self.federation.weights}" tells how many of them a visit drew, which'
                ' [privacy.examples] hides; set it to "equal", or to "size" if it may be known how many'
                " examples each client holds"
            )
        if self.adapter.target_parameters:
            raise SettingsError(
                "adapter.target_parameters names the stacked matrices of experts, where the gradients of"
                " single examples are not known; set it to [], or remove [privacy.examples]"
            )
        return self

    def __repr__(self) -> str:
        """The keys whose values are not the defaults, as overrides."""
        return f"RunSettings({', '.join(_dotted(self.model_dump(exclude_defaults=True)))})"

    __str__ = __repr__

    @property
    def data_seed(self) -> int:
        """Seed of the held-out examples and of the split."""
        return self.seed if self.data.seed is None else self.data.seed


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            text = repr(value)
            yield f"{prefix}{key}={text if len(text) <= MAX_SHOWN_CHARS else f'{text[:MAX_SHOWN_CHARS]}…'}"


def published(settings: RunSettings) -> RunSettings:
    """The settings for readers on other machines: each path reduced to its last name."""
    table = settings.model_dump()
    for name, key in PATHS:
        if table[name][key]:
            table[name][key] = paths.short(table[name][key])
    table["output"] = paths.short(table["output"])
    return RunSettings.model_validate(table)
