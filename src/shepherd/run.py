"""A run from its run file to its final adapter: the parts put together, and the body of the loop.

with open_run(read("examples/demo.toml")) as run:
    for state, row in run.rounds():
        print(row["round"], row["loss"])
    run.finish()

What goes on is logged by the logger "shepherd": `logging.basicConfig(level="INFO")` shows it, with a line at
least every half minute. In a notebook there are progress bars as well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Self

from shepherd import card, checkpoint, folder, paths, plugins, prepare, tracking, weighing, world
from shepherd.checkpoint import Checkpoint
from shepherd.client_store import ClientStore, Kept, OnDisk
from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Algorithm, Method, Selection, ServerState, seed_for
from shepherd.data.examples import Example
from shepherd.data.files import left_out
from shepherd.data.template import Template, prompt, stop_ids
from shepherd.errors import FederationError, FolderError
from shepherd.evaluate import answers, loss
from shepherd.expected import Expected, expected, memory_bytes
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.folder import RunFolder
from shepherd.loading import load_base, load_checkpoint
from shepherd.machine import memory, planning
from shepherd.machine import plan as plans
from shepherd.machine.executors import Executor, Inline, processes
from shepherd.machine.plan import Plan
from shepherd.model import base as bases
from shepherd.model import files, lora
from shepherd.model import generate as generation
from shepherd.model.coverage import coverage
from shepherd.prepare import Prepared
from shepherd.progress import roughly, stage
from shepherd.rounds import RoundReport, context_of, report_row, rounds, start
from shepherd.settings import RunSettings
from shepherd.training import score, tune
from shepherd.training.local import LocalTraining, completed, local_training

log = logging.getLogger(__name__)
Row = dict[str, Any]
ANSWERS = "answers.jsonl"


@dataclass(slots=True, kw_only=True, repr=False)
class Run:
    """A run that this process holds until `close()` or the end of its `with`; from `open_run` or `resume`."""

    settings: RunSettings
    """As they were given."""
    plan: Plan
    """What was chosen where they leave something open, and how this machine runs it."""
    holder: RunFolder
    base: bases.Base
    prepared: Prepared
    method: Method
    training: LocalTraining
    selection: Selection
    state: ServerState
    trackers: tracking.Trackers
    consent: Consent = NOTHING
    closed: bool = False
    finished: Row | None = None
    """What `finish` has returned."""
    unlogged: Row | None = None
    """Of a round that is saved and does not stand in the log yet."""
    simulation: Simulation = field(init=False)

    def __post_init__(self) -> None:
        self.simulation = Simulation(
            local=LocalClients(
                datasets=self.prepared.clients,
                algorithm=self.method.algorithm,
                transform=self.method.transform,
                tuning=self.settings.tuning,
                federation=self.settings.federation,
                micro_batch_tokens=self.plan.micro_batch_tokens,
                order_seed=self.settings.seed,
                training=self.training,
            ),
            executor=executor(self.plan, self.base, self.consent),
            stack_size=self.plan.stack_size,
            store=OnDisk(self.holder.clients, self.settings.checkpoints.keep),
        )

    def __repr__(self) -> str:
        """Where it is and how far, and no text of any example."""
        s = self.settings
        closed = ", closed" if self.closed else ""
        return f"<Run {self.folder}: {s.algorithm.name}, round {self.state.round} of {self.until}{closed}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.holder.path

    @property
    def planned(self) -> RunSettings:
        """The settings with everything that they leave open as the plan has it."""
        return self.plan.over(self.settings)

    @property
    def until(self) -> int:
        """Rounds in all."""
        return self.settings.federation.rounds

    def rounds(self) -> Iterator[tuple[ServerState, Row]]:
        """Train to the last round; each is saved and logged before it is yielded.

        The row is what `rounds.jsonl` got; row 0, the untrained adapter's scores, stands there already.

        Raises:
            QuorumNotMet: too few clients gave a usable update; the round before is kept.
            FolderError: the disk is full; the round before is kept. Or the run is closed.
            FederationError: another loop over the rounds of this run went on in between.
        """
        self._require_open()
        self._complete_saved()
        done = rounds(
            self.method,
            self.simulation,
            self.state,
            context=context_of(self.settings, self.selection, self.state.adapter, len(self.prepared.clients)),
            until=self.until,
            select=self.selection.cohort,
            quorum=self.settings.federation.quorum,
            seed=self.settings.seed,
            allow=weighing.allowing(self.settings),
            max_share=self.settings.federation.max_share,
        )
        while self.state.round < self.until:
            with stage(f"round {self.state.round + 1}/{self.until}"):
                state, report = next(done)
                row = self._row(state, report)
                self._save(state, row)
                self.trackers.log(row)
            yield state, row
            self._require_open()
            if self.state is not state:
                raise FederationError(
                    f"another loop over rounds() has gone on with the run in {self.folder}; use one loop at a"
                    " time"
                )

    def finish(self, answer: bool = True) -> Row:
        """Write the final adapter with its card, answer held-out examples where they have checks, and close.

        Args:
            answer: whether to answer them here, as a comparison does not, which answers for all its arms.

        Returns:
            `adapter`, its folder; `answers`, category -> (share right before, share right after); and
            `remarks`, sentences on what the scores stand on. A second call returns the same and does nothing.
        """
        if self.finished is not None:
            return self.finished
        self._require_open()
        self.holder.require_held()
        self._complete_saved()
        files.write(self.holder.adapter, self.state.adapter, self.base)
        stop = stop_ids(Template.of(self.planned.data), self.base.tokenizer)
        files.write_beside(self.holder.adapter, self.base, stop)
        examples = self.prepared.heldout_examples if answer else []
        scores = answered(self.holder, self.planned, self.base, self.state.adapter, examples)
        self._write_card(scores)
        self.holder.write(folder.FINISHED, json.dumps({"round": self.state.round, "answers": scores}) + "\n")
        self.close()
        said = prepare.remarks(self.prepared)
        self.finished = {"adapter": self.holder.adapter, "answers": scores, "remarks": said}
        return self.finished

    def close(self) -> None:
        """Give the run folder back, and end what the trackers still hold; once or again."""
        if not self.closed:
            self.closed = True
            self.simulation.executor.close()
            self.trackers.finish()
            self.holder.close()

    def _require_open(self) -> None:
        if self.closed:
            raise FolderError(
                f"the run in {self.folder} is closed here; go on with it by"
                f" shepherd.resume({str(self.folder)!r})"
            )

    def _log_start(self) -> None:
        if not folder.read_rows(self.folder):
            scored = {"heldout": self._scored(self.state.adapter)} if len(self.prepared.heldout) else {}
            row = {"round": 0, **scored}
            self.holder.append(row)
            self.trackers.log(row)
            if scored:
                log.info("before training  held out %.4f", scored["heldout"]["loss"])

    def _row(self, state: ServerState, report: RoundReport) -> Row:
        began = perf_counter()
        due = state.round % self.settings.evaluation.every == 0 or state.round == self.until
        scored = {"heldout": self._scored(state.adapter)} if due and len(self.prepared.heldout) else {}
        scoring = perf_counter() - began
        return {
            **report_row(report),
            **scored,
            "coverage": self.simulation.coverage(),
            "learning_rate": self.simulation.local.learning_rate(report.round - 1),
            "seconds": {
                "round": report.seconds + scoring,
                "tuning": report.federation_seconds,
                "scoring": scoring,
            },
        }

    def _scored(self, adapter: Adapter) -> Row:
        """Held-out loss of one adapter on the same examples every round."""
        categories = prepare.categories(self.prepared)
        places = loss.spread(categories, self.settings.evaluation.examples)
        data = self.prepared.heldout.take(places)
        sums = score.losses(self.base, [adapter], data, micro_batch=self.plan.micro_batch_tokens)[0]
        counts = tune.predictions(data)
        named = [categories[i] for i in places]
        return loss.summarise(sums, counts, named, self.prepared.mixes).row()

    def _save(self, state: ServerState, row: Row) -> None:
        """On disk first: where that fails, the round before stands here too. What is on disk is done."""
        self.holder.require_held()
        positions, memories = self.simulation.reached()
        notes = {"positions": positions, "memories": memories, "row": row, "base": self.base.fingerprint}
        saved = Checkpoint(state=state, notes=notes)
        before = checkpoint.latest(self.holder.checkpoints)
        try:
            checkpoint.save(self.holder.checkpoints, saved, keep=self.settings.checkpoints.keep)
        finally:  # it may be there where saving was interrupted, too
            if checkpoint.latest(self.holder.checkpoints) != before:
                self.state, self.unlogged = state, row
        self.simulation.commit()
        self.holder.append(row)
        self.unlogged = None

    def _complete_saved(self) -> None:
        """Do what an interrupt has kept `_save` from after the checkpoint; each part may be done already."""
        if self.unlogged is not None:
            self.simulation.commit()
            self.holder.reconcile(self.state.round, self.unlogged)
            self.unlogged = None

    def _write_card(self, scores: Mapping[str, tuple[float, float]]) -> None:
        card.write(
            self.holder.adapter,
            self.planned,
            rows=folder.read_rows(self.folder),
            answers=scores,
            data=self.prepared.summary,
            clients={name: len(data) for name, data in self.prepared.clients.items()},
        )


def answered(
    holder: RunFolder, settings: RunSettings, base: bases.Base, adapter: Adapter, examples: Sequence[Example]
) -> Mapping[str, tuple[float, float]]:
    """Greedy answers of the base alone and of an adapter, checked; all go to answers.jsonl.

    Args:
        settings: with what the run's plan has chosen.

    Returns:
        Category -> (share right before, share right after); empty where no example has a check, or the base
        cannot generate.
    """
    if base.proof.mute:  # which loading has said
        return {}
    checked = [i for i, example in enumerate(examples) if example.check is not None]
    named = [examples[i].category for i in checked]
    places = [checked[i] for i in loss.spread(named, settings.evaluation.answers)]
    if not places:
        return {}
    template, tokenizer = Template.of(settings.data), base.tokenizer
    limit = min(settings.data.max_tokens, base.reads or settings.data.max_tokens)
    prompts = {i: prompt(examples[i].turns[:-1], template, tokenizer, max_tokens=limit) for i in places}
    prompts = {i: ids for i, ids in prompts.items() if len(ids) < (base.reads or len(ids) + 1)}
    asked = [examples[i] for i in prompts]
    before, after = generation.generate(
        base,
        [None, adapter],
        list(prompts.values()),
        max_new_tokens=settings.evaluation.max_new_tokens,
        stop=stop_ids(template, tokenizer),
    )
    texts = [
        [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in arm] for arm in (before, after)
    ]
    rows = answers.checked(asked, *texts, passes=world.passes)
    holder.write(ANSWERS, "".join(json.dumps(row) + "\n" for row in rows))
    return answers.by_category(rows)


def open_run(settings: RunSettings, prepared: Prepared | None = None, consent: Consent = NOTHING) -> Run:
    """Prepare a new run: base, data, clients, and its folder with everything to go on from.

    Says what it does, what it found and what it expects to the logger "shepherd", at level INFO.

    Args:
        prepared: the data, where they are read and divided already; None reads them.
        consent: what a person has agreed to that the settings only wish for.

    Raises:
        FolderError: `output` holds another run or anything else, or cannot be written.
        ShepherdError: the base, the data or a setting cannot be used; nothing is written then.
    """
    with stage("preparing the run"):
        return _opened(settings, prepared, consent)


def _opened(settings: RunSettings, prepared: Prepared | None, consent: Consent) -> Run:
    folder.require_free(settings.output)
    tracking.require(settings.tracking, consent)
    method = plugins.method(settings, consent.plugins)
    training = local_training(settings.tuning, consent.plugins)
    selection = plugins.selection(settings, consent.plugins)
    settings = completed(settings, consent.plugins)
    base = load_base(settings, consent)
    if told := files.rehearse(base):
        log.info("%s", told)
    dated = prepare.dated(settings, base.tokenizer)
    prepared = prepared or _read(dated, base, consent)
    prepare.require_readable(prepared, base)
    selection.require_possible({name: len(own) for name, own in prepared.clients.items()})
    cohort = selection.size(len(prepared.clients))
    plan = _plan(dated, base, prepared, cohort)
    _describe(base, plan, method.algorithm, prepared)
    for sentence in (*prepare.training_remarks(prepared), *prepare.remarks(prepared)):
        log.info("%s", sentence)
    sample = next(iter(prepared.clients.values()))
    _expect(expected(base, settings.tuning, plan, sample, _round_tokens(settings, prepared, cohort)))
    holder = folder.create(settings.output, settings, plan.text())
    with _given_back_on_error(holder):
        prepare.save(holder.path / "data", prepared)
        adapter = lora.fresh(base.sites, settings.adapter.rank, seed_for(settings.seed, "adapter"))
        run = Run(
            settings=settings,
            plan=plan,
            holder=holder,
            base=base,
            prepared=prepared,
            method=method,
            training=training,
            selection=selection,
            state=start(method, adapter, context_of(settings, selection, adapter, len(prepared.clients))),
            trackers=tracking.start(plan.over(settings), holder),
            consent=consent,
        )
        run._log_start()
    return run


def _read(settings: RunSettings, base: bases.Base, consent: Consent) -> Prepared:
    log.info("reading %s", settings.data.source)
    for name in left_out(settings.data.source):
        log.info("%s is left out: files that begin so are for testing; rename it if it is a client's", name)
    return prepare.prepare(settings, base.tokenizer, consent.plugins)


def resume(path: str | Path, consent: Consent = NOTHING) -> Run:
    """Go on with a run from its last finished round; the bits come out as if it had never stopped.

    Says what it does to the logger "shepherd", at level INFO.

    Args:
        consent: what a person has agreed to that the run file in the folder only wishes for; what was said
            when the run began does not count, since a folder may come from anywhere.

    Raises:
        FolderError: there is no run, another process holds it, or its data are damaged.
        CheckpointError: its last checkpoint is damaged; the message names the mend.
        DataError: the base cannot read an example of the run.
    """
    if folder.is_over_silos(path):
        raise FolderError(f"the run in {path} is over silos; go on with it by `shepherd resume {path}`")
    holder = folder.reopen(path)
    with _given_back_on_error(holder), stage("preparing the run"):
        return _resumed(holder, consent)


@contextmanager
def _given_back_on_error(holder: RunFolder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        holder.close()
        raise


def _resumed(holder: RunFolder, consent: Consent) -> Run:
    settings, plan = folder.read_settings(holder.path), plans.read(holder.path)
    if plan is None and settings.machine.stack_size == "auto":  # a run writes down what it chose
        raise FolderError(
            f"{holder.path} holds no {folder.PLAN}, so no run has begun there; give output=ANOTHER_FOLDER, or"
            " start it with `shepherd run`"
        )
    tracking.require(settings.tracking, consent)
    method = plugins.method(settings, consent.plugins)
    training = local_training(settings.tuning, consent.plugins)
    selection = plugins.selection(settings, consent.plugins)
    base = load_base(plan.over(settings) if plan else settings, consent)
    if plan is None:
        plan = planning.written(settings, base)
        holder.write(folder.PLAN, plan.text())
    for name, (then, now) in folder.changed_versions(holder.path).items():
        log.info("%s was %s and is %s: the bits may differ from an undisturbed run's", name, then, now)
    data = holder.path / "data"
    last = checkpoint.latest(holder.checkpoints)
    if not (last or prepare.whole(data)):  # killed before its first round: it is as good to prepare again
        prepare.save(data, prepare.prepare(plan.over(settings), base.tokenizer, consent.plugins))
    prepared = prepare.load(data)
    prepare.require_readable(prepared, base)
    fresh = lora.fresh(base.sites, settings.adapter.rank, seed_for(settings.seed, "adapter"))
    saved = load_checkpoint(last, base) if last else None
    context = context_of(settings, selection, fresh, len(prepared.clients))
    state = saved.state if saved else start(method, fresh, context)
    rows = holder.reconcile(state.round, saved.notes["row"] if saved else None)
    run = Run(
        settings=settings,
        plan=plan,
        holder=holder,
        base=base,
        prepared=prepared,
        method=method,
        training=training,
        selection=selection,
        state=state,
        trackers=tracking.start(plan.over(settings), holder, rows),
        consent=consent,
    )
    if saved is not None:
        run.simulation.positions.update(saved.notes["positions"])
        run.simulation.memories.update(_memories(saved, run.simulation.store))
    _describe(base, plan, method.algorithm, run.prepared)
    took = [row["seconds"]["tuning"] for row in rows if row["round"]]
    if took:
        _expect(Expected(memory_bytes=memory_bytes(base, plan), seconds_a_round=median(took)))
    run._log_start()
    log.info("going on after round %d of %d", state.round, run.until)
    return run


def _memories(saved: Checkpoint, store: ClientStore) -> dict[str, Kept]:
    """Which memory each client had when a checkpoint was saved; an older version saved them in it."""
    older = {client: store.put(client, saved.state.round, memory) for client, memory in saved.clients.items()}
    return older | {client: Kept(*kept) for client, kept in saved.notes.get("memories", {}).items()}


def _plan(settings: RunSettings, base: bases.Base, prepared: Prepared, cohort: int) -> Plan:
    """What is left open, chosen by measuring; the settings have the day already."""
    return planning.chosen(
        settings,
        base,
        clients=cohort,
        step_tokens=prepare.mean_length(prepared) * settings.tuning.batch_size,
        all_tokens=settings.federation.rounds * _round_tokens(settings, prepared, cohort),
    )


def _visit_examples(settings: RunSettings, prepared: Prepared) -> float:
    """That a client trains on in one visit, on average."""
    tuning = settings.tuning
    if tuning.max_steps:
        return tuning.max_steps * tuning.batch_size
    held = sum(len(data) for data in prepared.clients.values())
    return (tuning.epochs or 1.0) * held / len(prepared.clients)


def _round_tokens(settings: RunSettings, prepared: Prepared, cohort: int) -> float:
    """That the cohort of one round trains on, on average."""
    return prepare.mean_length(prepared) * cohort * _visit_examples(settings, prepared)


def executor(plan: Plan, base: bases.Base, consent: Consent) -> Executor:
    """Where the run is tuned: in worker processes, where it was laid out for more than this one."""
    return processes(plan.workers, base, consent) if plan.workers > 1 else Inline(base)


def _describe(base: bases.Base, plan: Plan, algorithm: Algorithm, prepared: Prepared) -> None:
    """Log what is trained, on what, and how."""
    whole = memory.parameters(base)
    trained = sum(prod(shape) for name, shape in base.shapes.items() if algorithm.trainable(name, 0))
    dtype = str(base.dtype).removeprefix("torch.")
    log.info(
        "base %s: %s parameters, and %s to train (%.2f%%), %s on %s",
        paths.short(base.name), f"{whole:,}", f"{trained:,}", 100 * trained / whole, dtype, base.device,
    )  # fmt: skip
    log.info("%s", coverage(base.model, base.sites).sentence)
    s = prepared.summary
    log.info(
        "%d clients, %s examples to train on (%s cut, %s dropped), %s held out",
        len(prepared.clients), *(f"{s[name]:,}" for name in ("kept", "cut", "dropped", "heldout")),
    )  # fmt: skip
    many = plan.workers > 1
    threads = max(1, memory.threads() // plan.workers)
    log.info(
        "tuning %s client%s at once%s, %d thread%s, up to %s tokens a pass",
        plan.stack_size, "s" * (plan.stack_size != 1),
        f" in each of {plan.workers} processes" if many else " in one process",
        threads, "s" * (threads != 1) + " each" * many, f"{plan.micro_batch_tokens:,}",
    )  # fmt: skip


def _expect(of_run: Expected) -> None:
    memory_gb, seconds = of_run.memory_bytes / 1e9, of_run.seconds_a_round
    # one digit of a trial is all that holds where other work shares the machine
    rough = roughly(float(f"{seconds:.1g}"))
    log.info("expecting about %.1f GB of memory, about %s a round", memory_gb, rough)
