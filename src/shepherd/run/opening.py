"""Start a run, or continue one: everything before its first round."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from statistics import median

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import Algorithm, seed_for
from shepherd.data import pipeline
from shepherd.data.files import left_out
from shepherd.data.pipeline import TokenisedData
from shepherd.errors import FolderError
from shepherd.federation.client_store import ClientStore, Kept
from shepherd.io import paths
from shepherd.io.progress import roughly, stage
from shepherd.machine import memory, planning
from shepherd.machine import plan as plans
from shepherd.machine.estimate import Expected, expected, memory_bytes
from shepherd.machine.plan import PLAN, Plan
from shepherd.model import base as bases
from shepherd.model import files, lora
from shepherd.model.coverage import coverage
from shepherd.rounds import context_of, start
from shepherd.run import checkpoint, folder, tracking
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.folder import RunFolder
from shepherd.run.loading import load_base, load_checkpoint
from shepherd.run.run import Run
from shepherd.run.versions import changed_versions
from shepherd.settings import RunSettings
from shepherd.training.local import completed, local_training

log = logging.getLogger(__name__)


def open_run(settings: RunSettings, prepared: TokenisedData | None = None, consent: Consent = NOTHING) -> Run:
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


def _opened(settings: RunSettings, prepared: TokenisedData | None, consent: Consent) -> Run:
    folder.require_free(settings.output)
    tracking.require(settings.tracking, consent)
    method = plugins.method(settings, consent.plugins)
    training = local_training(settings.tuning, consent.plugins)
    selection = plugins.selection(settings, consent.plugins)
    settings = completed(settings, consent.plugins)
    base = load_base(settings, consent)
    if told := files.rehearse(base):
        log.info("%s", told)
    dated = pipeline.dated(settings, base.tokenizer)
    prepared = prepared or _read(dated, base, consent)
    pipeline.require_readable(prepared, base)
    selection.require_possible({name: len(own) for name, own in prepared.clients.items()})
    cohort = selection.size(len(prepared.clients))
    plan = _plan(dated, base, prepared, cohort)
    _describe(base, plan, method.algorithm, prepared)
    for sentence in (*prepared.dropped, *pipeline.remarks(prepared)):
        log.info("%s", sentence)
    sample = next(iter(prepared.clients.values()))
    _expect(expected(base, settings.tuning, plan, sample, _round_tokens(settings, prepared, cohort)))
    holder = folder.create(settings.output, settings, plan.text())
    with _given_back_on_error(holder):
        pipeline.save(holder.path / "data", prepared)
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


def _read(settings: RunSettings, base: bases.Base, consent: Consent) -> TokenisedData:
    log.info("reading %s", settings.data.source)
    for name in left_out(settings.data.source):
        log.info("%s is left out: files that begin so are for testing; rename it if it is a client's", name)
    return pipeline.prepare(settings, base.tokenizer, consent.plugins)


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
            f"{holder.path} holds no {PLAN}, so no run has begun there; give output=ANOTHER_FOLDER, or"
            " start it with `shepherd run`"
        )
    tracking.require(settings.tracking, consent)
    method = plugins.method(settings, consent.plugins)
    training = local_training(settings.tuning, consent.plugins)
    selection = plugins.selection(settings, consent.plugins)
    base = load_base(plan.over(settings) if plan else settings, consent)
    if plan is None:
        plan = planning.written(settings, base)
        holder.write(PLAN, plan.text())
    for name, (then, now) in changed_versions(holder.path).items():
        log.info("%s was %s and is %s: the bits may differ from an undisturbed run's", name, then, now)
    data = holder.path / "data"
    last = checkpoint.latest(holder.checkpoints)
    if not (last or pipeline.whole(data)):  # killed before its first round: it is as good to prepare again
        pipeline.save(data, pipeline.prepare(plan.over(settings), base.tokenizer, consent.plugins))
    prepared = pipeline.load(data)
    pipeline.require_readable(prepared, base)
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


def _plan(settings: RunSettings, base: bases.Base, prepared: TokenisedData, cohort: int) -> Plan:
    """What is left open, chosen by measuring; the settings have the day already."""
    return planning.chosen(
        settings,
        base,
        clients=cohort,
        step_tokens=pipeline.mean_length(prepared) * settings.tuning.batch_size,
        all_tokens=settings.federation.rounds * _round_tokens(settings, prepared, cohort),
    )


def _visit_examples(settings: RunSettings, prepared: TokenisedData) -> float:
    """That a client trains on in one visit, on average."""
    tuning = settings.tuning
    if tuning.max_steps:
        return tuning.max_steps * tuning.batch_size
    held = sum(len(data) for data in prepared.clients.values())
    return (tuning.epochs or 1.0) * held / len(prepared.clients)


def _round_tokens(settings: RunSettings, prepared: TokenisedData, cohort: int) -> float:
    """That the cohort of one round trains on, on average."""
    return pipeline.mean_length(prepared) * cohort * _visit_examples(settings, prepared)


def _describe(base: bases.Base, plan: Plan, algorithm: Algorithm, prepared: TokenisedData) -> None:
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
