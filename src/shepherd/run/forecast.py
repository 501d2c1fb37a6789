"""What a run will take, before its base is loaded or its data are tokenised: `shepherd plan`.

Sizes come from the base's configuration, speed from a short trial of its first layers with random weights,
lengths from a sample of the examples, and bytes from an update of zeros that goes through the transforms.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import Method, seed_for
from shepherd.data import dataset, pipeline
from shepherd.data.dataset import Partition
from shepherd.data.tokens import Tokens, typical_length
from shepherd.errors import DataError
from shepherd.evaluate import personal
from shepherd.evaluate.loss import stratified_subset
from shepherd.io.phrases import data_size
from shepherd.io.progress import many, stage
from shepherd.machine import estimate, malloc, memory, planning
from shepherd.machine.estimate import Memory
from shepherd.machine.plan import Plan
from shepherd.model import lora, outline
from shepherd.model.base import Base
from shepherd.overrides import require_settings
from shepherd.privacy.required import require_private
from shepherd.rounds import context_of, start
from shepherd.rounds.loop import bytes_of_round, client_memory
from shepherd.rounds.ranks import ranks_of
from shepherd.run.disk import Disk, disk
from shepherd.run.loading import placed
from shepherd.settings import RunSettings
from shepherd.training.local import LocalTraining, completed, local_training, require

TRIAL_PARAMETERS = 30_000_000
"""Parameters of the layers that a trial may have; a base with fewer is tried as a whole."""
PROOF_BYTES = 130 * 2**20
"""What the proof at load leaves behind in a process, which a plan does not make; measured."""
FORWARD_SHARE = 1 / 3
"""Of a token's time in tuning that scoring it takes: the forward pass alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run is expected to take on a machine."""

    plan: Plan
    parameters: int
    trained: int
    """Parameters of the adapter."""
    examples: int
    """Examples to train on."""
    tokens: int
    """Their tokens, estimated from a sample."""
    clients: int
    cohort: float
    """Clients of a round, on average."""
    rounds: int
    memory: Memory
    """Of this machine; where Ray's actors fill several, one of which must be as large as this."""
    available_bytes: int
    """Memory that there is for the run on this machine."""
    tuning_seconds: float | None
    """Seconds of local tuning in one round; None where even a trial does not fit."""
    scoring_seconds: float | None
    """Seconds of scoring after a round that is scored; None with `tuning_seconds`."""
    scored_rounds: int
    bytes_down: float
    """Bytes that the cohort of one round receives."""
    bytes_up: float
    disk: Disk
    free_disk_bytes: int
    probe: str
    """What was measured, in words; "" if nothing was."""
    nodes: int = 0
    """Machines like this one that Ray's actors fill; 0 without Ray."""
    advice: tuple[str, ...] = ()
    """What to change where the run does not fit, a sentence each."""

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.memory.total <= self.available_bytes and self.disk.total <= self.free_disk_bytes

    @property
    def seconds_a_round(self) -> float | None:
        """Seconds of one round, with its share of the scoring; None where it was not measured."""
        if self.tuning_seconds is None or self.scoring_seconds is None:
            return None
        return self.tuning_seconds + self.scoring_seconds * self.scored_rounds / self.rounds

    def plain(self) -> dict[str, Any]:
        """The forecast in JSON's types, with its sums."""
        table = asdict(self)
        table["memory"]["total"], table["disk"]["total"] = self.memory.total, self.disk.total
        return {**table, "seconds_a_round": self.seconds_a_round, "fits": self.fits}

    def text(self) -> str:
        """The forecast as JSON, for `--json`."""
        return json.dumps(self.plain(), indent=2) + "\n"


def forecast(
    settings: RunSettings, consent: Consent = NOTHING, *, available: int | None = None, rows: Any = None
) -> Forecast:
    """Estimate what a run takes, without loading its base.

    The examples are read and divided, and a sample of them is tokenised. The trial takes seconds.

    Args:
        available: memory that there is for the run, in bytes; None for what is free now.
        rows: the data where data.source is "memory", as for `open_run`.

    Raises:
        ShepherdError: the base, the data or a setting cannot be used.
    """
    require_settings(settings)
    malloc.keep_pages()
    memory.use_threads(settings.machine.threads)
    method = plugins.method(settings, consent.plugins)
    selection = plugins.selection(settings, consent.plugins)
    training = local_training(settings.tuning, consent.plugins)
    require(settings, consent.plugins)
    settings = completed(settings, consent.plugins)
    name = settings.model.base
    base = outline.outline(
        placed(settings.model), settings.adapter, name, device=settings.machine.device, consent=consent
    )
    settings = pipeline.dated(settings, base.tokenizer)
    on_cpu = base.device.type == "cpu"
    if available is None:  # this process's own memory is a part of what is planned
        available = memory.free_bytes(base.device) + on_cpu * memory.resident_bytes()
    division = pipeline.divide(settings, consent.plugins, rows)
    require_private(settings, division.sizes, consent.plugins)
    sample = _sample(division, settings, base.tokenizer, training)
    ranks = ranks_of(settings.adapter, method.aggregation, list(division.clients))
    adapter = lora.first(base.targets, settings.adapter.rank, settings.seed)
    context = context_of(settings, selection, adapter, len(division.clients))
    length = len(sample.ids) * training.objective.group_size / len(sample)
    sizes = list(division.sizes.values())
    work = estimate.amounts(settings, sizes, cohort=selection.expected(len(sizes)), length=length)
    scored_tokens = length * _scored_examples(settings, method, division, work.cohort)
    # a run chooses its plan with the base loaded
    left_for_trial = max(0, available - on_cpu * memory.resident_bytes())
    left = max(0, left_for_trial - memory.weight_bytes(base))
    room = min(left_for_trial, memory.free_bytes(base.device))
    choose = partial(planning.choose, settings, base, work, more_ranks=method.more_ranks, free=left)
    trial = _Trial.of(base, consent)
    seconds: float | None = None
    if trial.largest_bytes > room:  # a plan must not exhaust the memory that it measures
        token_bytes, held = 0, memory.resident_bytes()
        plan = choose(token_bytes=1)
    else:
        with stage("measuring the speed of a few layers"):
            trial = trial.made(room)
            typical = typical_length([sample])
            token_bytes = round(trial.measured(lambda each: memory.bytes_per_token(each, typical)))
            malloc.release_free_memory()
            # before the timed trials, whose passes and compiled products are counted by themselves
            held = memory.resident_bytes() - sum(memory.weight_bytes(each) for each in trial.kept)
            plan = choose(token_bytes=token_bytes)
            seconds = trial.measured(
                lambda each: estimate.seconds_a_token(
                    each, settings.tuning, plan, sample, work.step_tokens, training
                )
            )
    state, nodes = start(method, adapter, context), planning.nodes(settings, base, workers=plan.workers)
    down, up = bytes_of_round(
        method,
        state,
        [ranks.get(client) for client in division.clients],
        settings.secure,
    )
    memory_of = partial(
        estimate.memory_of,
        base,
        step_tokens=work.step_tokens,
        more_ranks=method.more_ranks,
        token_bytes=token_bytes,
        process=held + PROOF_BYTES if on_cpu else memory.PROCESS_BYTES,
        server=estimate.server_bytes(method, state, up, work.cohort) if on_cpu else 0,
        nodes=nodes,
    )
    found = Forecast(
        plan=plan,
        parameters=memory.parameters(base),
        trained=sum(int(np.prod(shape)) for shape in base.shapes.values()),
        examples=sum(sizes),
        tokens=round(sum(sizes) * length),
        clients=len(division.clients),
        cohort=work.cohort,
        rounds=settings.federation.rounds,
        memory=memory_of(plan),
        available_bytes=available,
        tuning_seconds=None if seconds is None else seconds * work.round_tokens,
        scoring_seconds=None if seconds is None else FORWARD_SHARE * seconds * plan.workers * scored_tokens,
        scored_rounds=-(-settings.federation.rounds // settings.evaluation.every),
        bytes_down=down * work.cohort,
        bytes_up=up * work.cohort,
        disk=disk(settings, division, state, client_memory(method, state), length=length, cohort=work.cohort),
        free_disk_bytes=shutil.disk_usage(_existing(Path(settings.output))).free,
        probe=trial.words if seconds is not None else "",
        nodes=nodes,
    )
    said = [] if seconds is not None else [trial.refusal(room)]
    return replace(found, advice=(*said, *_advice(found, base, memory_of)))


def _sample(division: Partition, settings: RunSettings, tokenizer: Any, training: LocalTraining) -> Tokens:
    """Examples to train on, drawn at random and tokenised; of pairs both answers, one after the other.

    Raises:
        DataError: none of them is kept.
    """
    rng = np.random.default_rng(seed_for(settings.seed, "forecast"))
    drawn = rng.permutation(division.held.train)[: dataset.SAMPLED_EXAMPLES]
    tokens, found = pipeline.training_tokens(
        division.of(drawn.tolist()), settings, tokenizer, paired=training.paired
    )
    if not len(tokens):
        reason = next(iter(found.counts().dropped), "there is none")
        raise DataError(f"no example is left to train on ({reason}); change data.template or data.max_tokens")
    return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Bases with some of the layers: one with all of them, or two from which the rest follows."""

    counts: Sequence[int]
    whole: int
    cut: Callable[[int], Base]
    """The base with this many layers and random weights."""
    largest_bytes: int
    """Of its weights, before they are quantised."""
    kept: Sequence[Base] = ()
    """The bases, if there is room for them at the same time; else each is made when it is measured."""

    @classmethod
    def of(cls, base: Base, consent: Consent) -> _Trial:
        """Trials with as many layers as `TRIAL_PARAMETERS` have, and half of them; nothing is made yet."""
        whole = outline.layers(base)
        ends = base.model.get_input_embeddings().weight.numel()
        of_layer = max(1, (memory.parameters(base) - ends) // whole)
        most = min(whole, max(2, TRIAL_PARAMETERS // of_layer))
        sized = memory.parameters(outline.cut(base, most, consent, device=outline.META))
        return cls(
            counts=[whole] if most == whole else [max(1, most // 2), most],
            whole=whole,
            cut=lambda count: outline.cut(base, count, consent),
            largest_bytes=sized * base.dtype.itemsize,
        )

    def made(self, room: int) -> _Trial:
        """The trial with its bases, where `room` bytes hold them all."""
        fit = len(self.counts) * self.largest_bytes <= room
        return replace(self, kept=[self.cut(count) for count in self.counts] if fit else ())

    def measured(self, measure: Callable[[Base], float]) -> float:
        """What `measure` gives for each base, extrapolated to all layers."""
        made = [measure(each) for each in self.kept]
        return self.extrapolated(made or [measure(self.cut(count)) for count in self.counts])

    def refusal(self, room: int) -> str:
        """Why nothing was measured, and what that leaves out."""
        return (
            f"a trial of {many(self.counts[-1], 'layer')} takes {data_size(self.largest_bytes)} and"
            f" {data_size(room)} are free, so the time is not known and activations are not counted; plan"
            " where more memory is free"
        )

    def extrapolated(self, values: Sequence[float]) -> float:
        """A value that grows evenly with the layers, at all of them; at least that of the largest trial.

        >>> _Trial(counts=(1, 3), whole=30, cut=..., largest_bytes=0).extrapolated([2.0, 3.0])
        16.5
        """
        if len(values) == 1:
            return values[0]
        (few, more), (less, much) = self.counts, values
        return max(much, much + (self.whole - more) * (much - less) / (more - few))

    @property
    def words(self) -> str:
        """What was tried."""
        if len(self.counts) == 1:
            return f"all {many(self.whole, 'layer')} with random weights"
        return f"{self.counts[0]} and {self.counts[1]} of {self.whole} layers with random weights"


def _scored_examples(settings: RunSettings, method: Method, division: Partition, cohort: float) -> float:
    """Examples that are scored after a round that is scored, each as often as it is."""
    held = division.of(division.held.heldout.tolist())
    places = stratified_subset([example.category or "all" for example in held], settings.evaluation.examples)
    # with contribution also the model before the round, and the one without each client
    models = method.algorithm.server_is_model * (1 + settings.evaluation.contribution * (1 + cohort))
    if not method.algorithm.personal or method.is_private:
        return models * len(places)
    names = personal.scored_clients(list(division.clients), settings.evaluation.clients)
    mixes: Iterable[Mapping[str, int]] = (
        Counter(e.category or "all" for e in division.of(division.clients[name])) for name in names
    )
    if settings.privacy.examples is not None:
        mixes = ({} for _ in names)
    own = [personal.own_places(held, places.tolist(), *each) for each in zip(names, mixes, strict=True)]
    return models * len(places) + sum(map(len, own))


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def _advice(found: Forecast, base: Base, memory_of: Callable[..., Memory]) -> list[str]:
    """What to change, one step after another, until the run would fit."""
    said = []
    if found.disk.total > found.free_disk_bytes:
        said.append(
            f"the run folder needs {data_size(found.disk.total)} and {data_size(found.free_disk_bytes)} are"
            " free; name another place in output, or lower checkpoints.keep"
        )
    steps = {"stack_size": 1, "micro_batch_tokens": memory.MIN_CPU_PASS_TOKENS}
    plan, changes = found.plan, []
    total = found.memory.total
    if found.nodes == 0:
        steps = {"workers": 1, **steps}  # beside Ray's actors there are no worker processes
    elif total > found.available_bytes and found.nodes < plan.workers and base.device.type == "cpu":
        memory_of = partial(memory_of, nodes=plan.workers)
        changes.append(f"machine.ray.cpus = {memory.threads()}")  # one actor on a node
        total = memory_of(plan).total
    for key, value in steps.items():
        if total <= found.available_bytes:
            break
        if getattr(plan, key) <= value:
            continue
        plan = replace(plan, **{key: value})  # type: ignore[arg-type]
        changes.append(f"machine.{key} = {value}")
        total = memory_of(plan).total
    if changes:
        said.append(f"set {' and '.join(changes)}, which takes {data_size(total)}")
    if total > found.available_bytes:
        smaller = (
            'model.dtype = "bfloat16", or '
            if found.plan.dtype == "float32"
            else 'model.quantize = "4bit", or '
            if base.device.type == "cuda" and base.table.quantize != "4bit"
            else ""
        )
        said.append(
            f"{data_size(found.available_bytes)} are too little for base {base.name}, whose weights take"
            f" {data_size(memory.weight_bytes(base))}; use {smaller}a smaller base"
        )
    return said
