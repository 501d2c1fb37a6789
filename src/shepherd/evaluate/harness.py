"""Benchmark tasks by lm-eval, for all arms over one base in memory. The only file that imports `lm_eval`.

lm-eval builds the prompts and computes the metrics of a document. Its requests are answered here: one pass
scores a choice for every arm, and what one arm's evaluation has asked the others find answered.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval.utils
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.metrics import mean
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray

from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError, ShepherdError
from shepherd.evaluate import task_files
from shepherd.evaluate.how import How, HowTask
from shepherd.evaluate.task_files import CODE, TaskFile, Wish
from shepherd.io.phrases import listed
from shepherd.model.base import Base
from shepherd.model.generate import generate
from shepherd.training.score import continuations

Floats = NDArray[np.float64]
Texts = list[str]
FEWSHOT_SEED = 1234
"""Seed of the few-shot examples, lm-eval's own default."""
MAX_ANSWER_TOKENS = 256
"""Longest answer of a task that names none, as lm-eval's models have it."""
READ_AT_ONCE = 2048
"""Tokens of a window of running text, for a base that has no longest length; lm-eval's own default."""
NO_COMMON_METRIC = "group {name} has no metric that all its tasks have; name its tasks one by one"
_DROPPED = ("tag", "group", "task_list", "dataset_path", "dataset_name", "dataset_kwargs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to evaluate."""

    tasks: Sequence[str]
    """Names of tasks, groups or tags, or task files."""
    include: Sequence[Path] = ()
    """Folders whose task files are known by name."""
    limit: int | None = None
    """Most documents of each task, the first ones; None is all."""
    fewshot: int | None = None
    """Examples in each prompt; None is what the task says."""
    chat: bool = False
    """Whether prompts go through the chat template of the base's tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One metric of one task, or of the tasks of a group: each document's value for every model."""

    task: str
    metric: str
    values: Floats
    """(K, Q); without documents' values (K, 0)."""
    strata: tuple[str, ...]
    """The task of each document, (Q,)."""
    weights: Floats | None
    """Weight of each document inside its task, (Q,); None where all weigh the same."""
    means: Floats
    """The metric as lm-eval gives it, (K,); of several tasks, the mean over the tasks."""
    higher_is_better: bool
    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A document of a multiple-choice task, for other ways of asking it."""

    task: str
    query: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """Tasks that are read and agreed to; see `opened`."""

    asked: Asked
    tasks: Mapping[str, Mapping[str, Task]]
    """The tasks of each name that was asked for, by their own names."""
    own_fewshot: Mapping[str, int]
    """Examples in a prompt that each task itself asks for."""
    consent: Consent

    def measure(self, base: Base, adapters: Sequence[Adapter | None], micro_batch: int) -> list[Measured]:
        """Evaluate K models, base and adapter each (None is the base alone), on every task.

        Args:
            micro_batch: tokens of one forward pass.

        Raises:
            DataError: a document does not fit its task's templates, or a choice is empty or too long.
            BaseError: a task has answers written, which the base cannot.
        """
        every = {name: task for tasks in self.tasks.values() for name, task in tasks.items()}
        answered = Answered(base=base, adapters=adapters, micro_batch=micro_batch)
        with _quiet(), _errors(listed(list(self.tasks))), _templates(self.consent):
            found = [self._one(_Model(answered, k), every) for k in range(len(adapters))]
        return [
            measured
            for name, tasks in self.tasks.items()
            for measured in _measured(name, [_of_tasks(each, tasks) for each in found])
        ]

    def _one(self, model: _Model, tasks: Mapping[str, Task]) -> Mapping[str, Any]:
        for task in tasks.values():
            task.set_fewshot_seed(FEWSHOT_SEED)  # each model gets the same examples
        found: Mapping[str, Any] = evaluate(
            lm=model,
            task_dict={"tasks": dict(tasks)},
            limit=self.asked.limit,
            bootstrap_iters=0,
            apply_chat_template=self.asked.chat,
            fewshot_as_multiturn=self.asked.chat,
            confirm_run_unsafe_code=self.consent.task_code,
        )
        return {**found, "tasks": tasks}

    def how(self, name: str) -> How:
        """How the tasks of a name are asked."""
        fewshot = {each: int(task.get_config("num_fewshot") or 0) for each, task in self.tasks[name].items()}
        asked = {
            each: HowTask(version=_version(task), fewshot=fewshot[each], own_fewshot=self.own_fewshot[each])
            for each, task in self.tasks[name].items()
        }
        return self._how(self.tasks[name]).model_copy(update={"tasks": asked, "chat": self.asked.chat})

    def how_choices(self) -> How:
        """How the tasks of `choices` are asked in another format, which has prompts of its own."""
        chosen = {
            name: task
            for tasks in self.tasks.values()
            for name, task in tasks.items()
            if task.OUTPUT_TYPE == "multiple_choice"
        }
        asked = {name: HowTask(version=_version(task)) for name, task in chosen.items()}
        return self._how(chosen).model_copy(update={"tasks": asked})

    def _how(self, tasks: Mapping[str, Task]) -> How:
        sizes = [len(task.eval_docs) for task in tasks.values()]
        limit = self.asked.limit
        return How(
            limited=limit is not None and any(size > limit for size in sizes),
            of_documents=sum(sizes),
            lm_eval=lm_eval.__version__,
        )

    def choices(self) -> list[Choice]:
        """The documents of the multiple-choice tasks with one right choice."""
        found: list[Choice] = []
        with _errors(listed(list(self.tasks))), _templates(self.consent):
            for name, tasks in self.tasks.items():
                for task in tasks.values():
                    if task.OUTPUT_TYPE == "multiple_choice":
                        found += _choices(name, task, self.asked.limit)
        return found


def opened(asked: Asked, consent: Consent = NOTHING) -> Harness:
    """Read the tasks that are asked for, and their data.

    A task is looked for in the folders, then as a file, and then, if a person agreed to the hub, among
    lm-eval's own.

    Raises:
        DataError: a task is unknown or cannot be read, or would run code or fetch something without consent;
            or a group cannot be one score.
    """
    if not asked.tasks:
        raise DataError("no task is named; give --tasks NAME or --tasks FILE.yaml")
    index = task_files.index(asked.include)
    found: dict[str, dict[str, Task]] = {}
    with _quiet():
        for name in asked.tasks:
            files = index.find(name) or _file_of(name)
            label = Path(name).stem if name.endswith(".yaml") else name
            with _errors(label), _templates(consent):
                found[label] = _of_files(files, consent) if files else _own(name, consent)
            _require_alike(label, found[label])
    own = {
        name: _set_fewshot(task, asked.fewshot) for tasks in found.values() for name, task in tasks.items()
    }
    names = [name for tasks in found.values() for name in tasks]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise DataError(f"task {twice[0]} is asked for twice; name it once")
    return Harness(asked=asked, tasks=found, own_fewshot=own, consent=consent)


def _require_alike(name: str, tasks: Mapping[str, Task]) -> None:
    """Raise DataError where the metrics that tasks declare cannot be one score of their group."""
    declared = {task: each.higher_is_better() for task, each in tasks.items()}
    common = set.intersection(*(set(each) for each in declared.values()))
    own = any(each.get_config("process_results") for each in tasks.values())  # may give others than declared
    if not common and not own:
        raise DataError(NO_COMMON_METRIC.format(name=name))
    for metric in sorted(common):
        _higher_is_better(name, metric, tasks)


def _higher_is_better(name: str, metric: str, tasks: Mapping[str, Task]) -> bool:
    """Whether more of a metric is better, in all tasks of a name; lm-eval's tasks need not say.

    Raises:
        DataError: some say so and some the opposite, and the mean over them would say nothing.
    """
    said = {task: each.higher_is_better().get(metric) for task, each in tasks.items()}
    down = [task for task, higher in said.items() if higher is not None and not higher]
    up = [task for task in said if task not in down]
    if up and down:
        raise DataError(
            f"group {name} has no one score by {metric}, which is better when it is higher in {up[0]} and"
            f" when it is lower in {down[0]}; name its tasks one by one"
        )
    return not down


def _file_of(name: str) -> tuple[TaskFile, ...]:
    if not name.endswith((".yaml", ".yml")):
        return ()
    file = task_files.read(Path(name))
    if not isinstance(file.config.get("task"), str):
        raise DataError(f"{name} holds no task; give its folder with --include and name the group")
    return (file,)


def _of_files(files: Sequence[TaskFile], consent: Consent) -> dict[str, Task]:
    wishful = {file.path for file in files if _agreed(file, consent)}
    tasks = [_with_code(file) if file.path in wishful else _plain_task(file) for file in files]
    return {task.task_name: task for task in tasks}


def _agreed(file: TaskFile, consent: Consent) -> list[Wish]:
    """What a task file wishes for; an error if nobody agreed to it."""
    wishes = task_files.wishes(file, metric_registry.keys())
    for wish in wishes:
        if not (consent.task_code if wish.option == CODE else consent.hub):
            raise DataError(
                f"task file {file.path} wants to {wish.what}, which a file may not decide; read it, and add"
                f" {wish.option} to allow it"
            )
    return wishes


def _plain_task(file: TaskFile) -> Task:
    """A task that is data alone: its rows are read here, and lm-eval is given them."""
    splits = task_files.documents(file)
    config = {key: value for key, value in file.config.items() if key not in _DROPPED}
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})


def _with_code(file: TaskFile) -> Task:
    """A task that a person agreed to, as lm-eval itself reads it."""
    (task,) = TaskManager(include_defaults=False).load([str(file.path)])["tasks"].values()
    return task


def _own(name: str, consent: Consent) -> dict[str, Task]:
    """A task or group of lm-eval itself, whose data come from the hub."""
    if not consent.hub:
        raise DataError(
            f"no task file here is called {name!r}; give its folder with --include, or add --allow-hub if it"
            " is a task of lm-eval, whose data are fetched from the hub"
        )
    manager = TaskManager()
    if name not in manager.all_tasks:
        raise DataError(f"lm-eval has no task {name!r}; `lm-eval ls tasks` lists those that it has")
    for path in dict.fromkeys(_files_of(manager.task_index, name)):
        _agreed(task_files.read(path), consent)
    return dict(manager.load([name])["tasks"])


def _files_of(index: Mapping[str, Any], name: str, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files that a task, a group or a tag of lm-eval is made of."""
    entry = index.get(name)
    if entry is None or name in above:
        return
    if entry.yaml_path is not None:
        yield entry.yaml_path
    members = (entry.cfg or {}).get("task")
    for member in [*entry.tags, *(members if isinstance(members, list) else [])]:
        inner = member if isinstance(member, str) else member.get("task", member.get("group"))
        for each in [inner] if isinstance(inner, str) else []:
            yield from _files_of(index, each, (*above, name))


def _version(task: Task) -> str | None:
    """Version of a task; lm-eval calls that of a file without one "Yaml"."""
    return None if task.VERSION in (None, "Yaml") else str(task.VERSION)


def _set_fewshot(task: Task, asked: int | None) -> int:
    """As `lm_eval.simple_evaluate` does: a task that says 0 keeps it. Returns what the task itself says."""
    own = task.get_config("num_fewshot")
    if own is None or (asked is not None and own != 0):
        task.set_config(key="num_fewshot", value=asked or 0)
    return int(own or 0)


def _choices(name: str, task: Any, limit: int | None) -> Iterator[Choice]:
    for _, document in task.doc_iterator(limit=limit):
        query, choices, right = (
            task.doc_to_text(document),
            [str(each) for each in task.doc_to_choice(document)],
            task.doc_to_target(document),
        )
        place = choices.index(right) if isinstance(right, str) and right in choices else right
        if isinstance(query, str) and isinstance(place, int) and 0 <= place < len(choices):
            yield Choice(task=name, query=query, choices=tuple(choices), right=place)


def _of_tasks(found: Mapping[str, Any], tasks: Mapping[str, Task]) -> Mapping[str, Any]:
    return {
        "samples": {name: found["samples"][name] for name in tasks},
        "results": {name: found["results"][name] for name in tasks},
        "tasks": tasks,
    }


def _measured(name: str, models: Sequence[Mapping[str, Any]]) -> Iterator[Measured]:
    """The metrics that every task of a name has."""
    tasks: Mapping[str, Any] = models[0]["tasks"]
    keys = [
        {(metric, sample["filter"]) for sample in models[0]["samples"][task] for metric in sample["metrics"]}
        for task in tasks
    ]
    order = dict.fromkeys(
        (metric, sample["filter"])
        for sample in models[0]["samples"][next(iter(tasks))]
        for metric in sample["metrics"]
    )
    shared = [each for each in order if all(each in of_task for of_task in keys)]
    if not shared:
        raise DataError(NO_COMMON_METRIC.format(name=name))
    for metric, filtered in shared:
        means = [
            float(np.mean([model["results"][task][f"{metric},{filtered}"] for task in tasks]))
            for model in models
        ]
        parts = [_documents(task, tasks[task], models, metric, filtered) for task in tasks]
        whole = all(part is not None for part in parts)
        values = [part[0] for part in parts if part is not None] if whole else []
        heavy = [part[1] for part in parts if part is not None] if whole else []
        count = sum(
            sum(sample["filter"] == filtered for sample in models[0]["samples"][task]) for task in tasks
        )
        yield Measured(
            task=name,
            metric=metric if filtered == "none" else f"{metric}, {filtered}",
            values=np.concatenate(values, axis=1) if values else np.zeros((len(models), 0)),
            strata=tuple(
                task for task, each in zip(tasks, values, strict=False) for _ in range(each.shape[1])
            ),
            weights=np.concatenate(heavy) if heavy and any((w != 1).any() for w in heavy) else None,
            means=np.array(means),
            higher_is_better=_higher_is_better(name, metric, tasks),
            documents=count,
        )


def _documents(
    name: str, task: Any, models: Sequence[Mapping[str, Any]], metric: str, filtered: str
) -> tuple[Floats, Floats] | None:
    """Each document's value (K, Q) and weight (Q,); None where the metric is no mean over documents."""
    rows = [
        [sample[metric] for sample in model["samples"][name] if sample["filter"] == filtered]
        for model in models
    ]
    if metric == "bits_per_byte":  # (log-likelihood, bytes) of each
        pairs = np.array(rows, dtype=np.float64)  # (K, Q, 2)
        return -pairs[..., 0] / pairs[..., 1] / math.log(2), pairs[0, :, 1]
    plain = all(isinstance(value, int | float | np.number) for row in rows for value in row)
    if task.aggregation().get(metric) is not mean or not plain:
        return None
    values = np.array(rows, dtype=np.float64)
    return (values, np.ones(values.shape[1])) if np.isfinite(values).all() else None


@dataclass(slots=True, kw_only=True)
class Answered:
    """Answers of K models to lm-eval's requests, kept since each model's evaluation makes the same ones."""

    base: Base
    adapters: Sequence[Adapter | None]
    micro_batch: int
    likelihoods: dict[tuple[tuple[int, ...], tuple[int, ...]], list[tuple[float, bool]]] = field(
        default_factory=dict
    )
    texts: dict[tuple[str, str, int], list[str]] = field(default_factory=dict)
    """By prompt, options, and which sample of them it is, from 0."""

    def score(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Score the pairs of context and continuation that are new, for all models in one pass."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.likelihoods]
        if not new:
            return
        logs, greedy = continuations(
            self.base,
            [adapter or self.base.zero for adapter in self.adapters],
            _tokens(new, self.base.max_length),
            micro_batch=self.micro_batch,
        )
        for place, pair in enumerate(new):
            self.likelihoods[pair] = [
                (float(log), bool(hit)) for log, hit in zip(logs[:, place], greedy[:, place], strict=True)
            ]

    def write(self, prompts: Mapping[tuple[str, int], list[int]], options: str) -> None:
        """Have all models answer the new prompts.

        Args:
            prompts: token ids of each, by its text and which sample of its answers is asked for.
            options: lm-eval's generation options as JSON.
        """
        new = {
            (text, draw): ids
            for (text, draw), ids in prompts.items()
            if (text, options, draw) not in self.texts
        }
        if not new:
            return
        tokenizer = self.base.tokenizer
        how = normalize_gen_kwargs(json.loads(options), MAX_ANSWER_TOKENS)
        end = tokenizer.decode(tokenizer.eos_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(how.get("until"), eos=end)
        most = how["max_gen_toks"]
        room = (self.base.max_length - most) if self.base.max_length else None
        if room is not None and room < 1:
            raise DataError(
                f"a task asks for answers of {most} tokens, and {self.base.name} reads {most + room}"
            )
        found = generate(
            self.base,
            self.adapters,
            [ids[-room:] if room else ids for ids in new.values()],
            max_new_tokens=most,
            stop=_ends(self.base),
            temperature=float(how.get("temperature") or 0) if how.get("do_sample") else 0.0,
            top_p=float(how.get("top_p") or 1),
            draws=[draw for _, draw in new],
            until=[text for text in until if text],
        )
        for place, (text, draw) in enumerate(new):
            written = [tokenizer.decode(rows[place], skip_special_tokens=True) for rows in found]
            self.texts[(text, options, draw)] = [
                postprocess_generated_text(generation=each, stop=until, think_end_token=None)
                for each in written
            ]


def _ends(base: Base) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those of the base's generation."""
    own = getattr(base.model.generation_config, "eos_token_id", None)
    return list(
        dict.fromkeys(
            [base.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own] * (own is not None))]
        )
    )


def _tokens(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], most: int | None) -> Tokens:
    """The pairs as examples whose continuations are scored; too long a context loses its beginning."""
    ids, masks, ends = [], [], [0]
    for context, continuation in pairs:
        if not continuation:
            raise DataError("a task has a choice without a token; correct its doc_to_choice or its data")
        if most is not None and len(continuation) >= most:
            raise DataError(f"a task has a choice of {len(continuation)} tokens, and the base reads {most}")
        kept = context[-(most - len(continuation)) :] if most is not None else context
        ids.append([*kept, *continuation])
        masks.append([False] * len(kept) + [True] * len(continuation))
        ends.append(ends[-1] + len(ids[-1]))
    return Tokens(
        ids=np.concatenate(ids).astype(np.int32),
        loss_mask=np.concatenate(masks).astype(np.bool_),
        offsets=np.array(ends, dtype=np.int64),
    )


class _Model(TemplateLM):  # type: ignore[misc]
    """Model `number` of some that answer together, as lm-eval calls it."""

    def __init__(self, answered: Answered, number: int) -> None:
        super().__init__()
        self.answered, self.number = answered, number
        self.tokenizer = answered.base.tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return self.answered.base.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            options = {"add_special_tokens": False}  # the text has it already
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        self.answered.score(pairs)
        return [self.answered.likelihoods[pair][self.number] for pair in pairs]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        longest = self.answered.base.max_length
        windows = [
            [
                (None, *lm_eval.utils.make_disjoint_window(window))
                for window in lm_eval.utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=longest - 1 if longest else READ_AT_ONCE,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        self._loglikelihood_tokens([window for each in windows for window in each])  # all in one pass
        return [sum(log for log, _ in self._loglikelihood_tokens(each)) for each in windows]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        times = Counter[tuple[str, str]]()
        asked: list[tuple[str, str, int]] = []
        for request in requests:  # where answers are drawn, one that a task repeats gets another each time
            text, options = request.args[0], json.dumps(request.args[1], sort_keys=True)
            asked.append((text, options, times[text, options]))
            times[text, options] += bool(request.args[1].get("do_sample"))
        for options in dict.fromkeys(options for _, options, _ in asked):
            encoded = {(text, n): self.tok_encode(text) for text, each, n in asked if each == options}
            self.answered.write(encoded, options)
        return [self.answered.texts[key][self.number] for key in asked]


@contextmanager
def _templates(consent: Consent) -> Iterator[None]:
    """Render templates in a sandbox: in lm-eval's own environment a template can run any Python."""
    if consent.task_code:
        yield
        return
    own = lm_eval.utils.env
    sandbox = ImmutableSandboxedEnvironment(undefined=own.undefined, keep_trailing_newline=True)
    sandbox.filters["regex_replace"] = own.filters["regex_replace"]
    lm_eval.utils.env = sandbox
    try:
        yield
    finally:
        lm_eval.utils.env = own


@contextmanager
def _errors(tasks: str) -> Iterator[None]:
    """Turn what lm-eval raises at a task into a sentence."""
    try:
        yield
    except ShepherdError:
        raise
    except Exception as error:  # jinja2, lm-eval and metrics have their own
        said = " ".join(str(error).split())[:300] or "no reason given"
        raise DataError(
            f"task {tasks} cannot be evaluated ({type(error).__name__}: {said}); correct the task file or its"
            " data"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's remarks and progress bars from the terminal, where this package shows its own."""
    log = logging.getLogger("lm_eval")
    level = log.level
    bar: Callable[..., Any] = lm_eval.api.task.tqdm
    log.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        log.setLevel(level)
        lm_eval.api.task.tqdm = bar
