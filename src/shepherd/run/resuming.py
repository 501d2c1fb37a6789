"""Continue a run from its last finished round, with the bits of an uninterrupted one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import (
    Adapter,
    Parts,
    padded,
    require_shapes,
    shapes_of,
)
from shepherd.data import data_folder, dataset, pipeline
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import typical_length
from shepherd.errors import AdapterError, CheckpointError, FolderError, SettingsError
from shepherd.federation.client_store import ClientStore, StoredMemory
from shepherd.federation.clocked import clock_from
from shepherd.io.progress import stage
from shepherd.machine import memory, planning
from shepherd.machine import plan as plans
from shepherd.machine.estimate import Expected, memory_of
from shepherd.machine.plan import PLAN, Plan
from shepherd.model import base as bases
from shepherd.privacy.client_level import hides_data
from shepherd.rounds import context_of, start
from shepherd.rounds.ring import require_sums
from shepherd.run import (
    accounts,
    announcing,
    changes,
    checkpoint,
    folder,
    ledger,
    lineage,
    starting,
    tracking,
)
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.folder import Row, RunFolder
from shepherd.run.loading import load_base, load_checkpoint
from shepherd.run.log import agreeing, read_rows
from shepherd.run.opening import amounts_of, training_parts
from shepherd.run.run import Run
from shepherd.run.versions import changed_versions
from shepherd.settings import RunSettings
from shepherd.training import local
from shepherd.training.local import (
    GivenTraining,
    local_training,
    require_steps_of,
)

log = logging.getLogger(__name__)


def resume(path: str | Path, consent: Consent = NOTHING, overrides: Iterable[str] = (), **parts: Any) -> Run:
    """Continue a run from its last finished round; its results have the bits of an uninterrupted run.

    Progress goes to the logger "shepherd" at level INFO.

    Args:
        overrides: `key=value` texts; "federation.rounds=30" gives the run more rounds, see `run.changes`.
        consent: what a person has agreed to now; the run file in the folder alone cannot allow it, and
            consent given when the run began does not count, since a folder may come from anywhere.
        parts: the parts that were given as values when the run began; see `open_run`.

    Raises:
        TypeError: there is no such part.
        SettingsError: a part that was given as a value is missing, or one is given that the run file names;
            or an override changes a key that the rounds depend on.
        FolderError: there is no run, another process holds it, its data are damaged, or its run file was
            edited in such a key.
        CheckpointError: its last checkpoint is damaged; the message says how to continue.
        DataError: the base cannot read an example of the run.
    """
    if folder.is_over_silos(path):
        raise FolderError(f"the run in {path} is over silos; continue it with `shepherd resume {path}`")
    training = training_parts(parts)
    again = Parts(**parts)
    holder = folder.reopen(path)
    with holder.closed_on_error(), stage("preparing the run"):
        return _continue(holder, consent, changes.continued(path, overrides), again, training)


def _continue(
    holder: RunFolder, consent: Consent, settings: RunSettings, parts: Parts, given: GivenTraining
) -> Run:
    plan = _kept_plan(holder, settings)
    begun_with = [*plugins.given(settings), *local.given(settings)]
    _require_same_parts(holder.path, begun_with, [*parts.given, *given.given])
    tracking.require(settings.tracking, consent)
    method = plugins.method(settings, consent.plugins, parts)
    training = local_training(settings.tuning, consent.plugins, given)
    require_steps_of(method.algorithm, training.optimiser, settings)
    selection = plugins.selection(settings, consent.plugins, parts)
    base = load_base(plan.over(settings) if plan else settings, consent)
    if plan is None:
        plan = planning.from_run_file(settings, base)
        holder.write(PLAN, plan.text())
    for name, (then, now) in changed_versions(holder.path).items():
        log.info(
            "%s was %s when the run began and is %s now: bits may differ from an uninterrupted run's",
            name, then, now,
        )  # fmt: skip
    last = checkpoint.latest(holder.checkpoints)
    prepared = _kept_data(
        holder, plan.over(settings), base, consent, begun=last is not None, paired=training.paired
    )
    fresh = starting.of_run(holder, settings, base, method)
    if changed := starting.change(holder.path, settings):
        log.info("%s; the run continues from its own copy", changed)
    saved = load_checkpoint(last, base) if last else None
    if saved is not None:
        _require_ranks(last, padded(fresh, method.aggregation.side_rank), saved)
    context = context_of(settings, selection, fresh, len(prepared.clients))
    require_sums(settings, method, selection, len(prepared.clients))
    state = saved.state if saved else start(method, fresh, context)
    if said := changes.remark(settings, holder.path):
        changes.require_extendable(method)
        log.info("%s", said)
    noted = saved.notes["row"] if saved else None
    counted = {level: ledger.as_counted(settings, holder.path, level) for level in ledger.LEVELS}
    account = accounts.of_examples(counted[ledger.EXAMPLES], base, training, prepared, selection, method)
    privacy = accounts.of_clients(counted[ledger.CLIENTS], method, selection, prepared, consent)
    known = read_rows(holder.path)
    account, privacy, lost = accounts.spent_before(
        holder.path,
        settings,
        prepared,
        account,
        privacy,
        known if noted is None else [*known, noted],
        state.round,
    )
    logged = None if method.is_private else noted
    rows = agreeing(known, state.round, logged)
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
        account=account,
        privacy=privacy,
        before=fresh if settings.adapter.start else None,
    )
    if saved is not None:
        run.simulation.positions.update(saved.notes["positions"])
        run.simulation.memories.update(_restored_memories(saved, run.simulation.store))
        if run.clocked is not None:
            run.clocked.clock = clock_from(saved.notes["clock"])
    # all that may refuse has done so: from here on the folder changes
    changes.keep(holder, settings)
    run._keep_ledger(lost=lost)
    holder.reconcile(state.round, logged)  # last: the log says what was released
    if noted is not None and all(row["round"] < state.round for row in rows):
        run.unlogged = noted  # killed between saving a round and scoring it
        run._complete_saved()
        rows = read_rows(holder.path)
        run.trackers.log(rows[-1])
    _log_continuation(run, rows)
    return run


def _require_ranks(path: Path | None, due: Adapter, saved: Checkpoint) -> None:
    """Raise CheckpointError unless a checkpoint has the ranks that this run and its aggregation ask for."""
    try:
        require_shapes(shapes_of(due), shapes_of(saved.state.adapter))
    except AdapterError as error:
        raise CheckpointError(f"checkpoint {path} belongs to another adapter: {error}") from error


def _require_same_parts(path: Path, begun_with: Sequence[str], given: Sequence[str]) -> None:
    """Raise SettingsError unless the parts given as values are those that were given when the run began."""
    if missing := [name for name in begun_with if name not in given]:
        values = ", ".join(f"{name}=VALUE" for name in begun_with)
        raise SettingsError(
            f"the {' and the '.join(missing)} of the run in {path} was given as a value in Python, and no"
            f" file holds its code; give it again: shepherd.resume({str(path)!r}, {values})"
        )
    if other := [name for name in given if name not in begun_with]:
        raise SettingsError(
            f"the run in {path} began with the {' and the '.join(other)} that its run file names; leave out"
            f" {', '.join(f'{name}=' for name in other)}, or start a new run with it"
        )


def _kept_plan(holder: RunFolder, settings: RunSettings) -> Plan | None:
    """Plan of a run folder; an older version wrote no plan file, but all it chose into the run file."""
    plan = plans.read(holder.path)
    if plan is None and settings.machine.stack_size == "auto":
        raise FolderError(
            f"{holder.path} has no {PLAN}, so its run never began; set output=ANOTHER_FOLDER, or start it"
            " with `shepherd run`"
        )
    return plan


def _kept_data(
    holder: RunFolder,
    settings: RunSettings,
    base: bases.Base,
    consent: Consent,
    *,
    begun: bool,
    paired: bool,
) -> TokenisedData:
    """The data of a run folder; prepared again if the run was killed before its first round."""
    data = holder.path / "data"
    if not (begun or data_folder.whole(data)):
        data_folder.save(data, pipeline.prepare(settings, base.tokenizer, consent.plugins, paired=paired))
    prepared = data_folder.load(data)
    dataset.require_readable(prepared, base)
    return prepared


def _log_continuation(run: Run, rows: Sequence[Row]) -> None:
    hidden = hides_data(run.settings, run.method)
    if hidden:
        announcing.log_caveats(lineage.caveats(lineage.source(run.folder), lineage.before(run.folder)))
    announcing.log_description(run.base, run.plan, run.method, run.prepared, hidden=hidden)
    took = [row["seconds"]["tuning"] for row in rows if row["round"] and "seconds" in row]
    if took:
        length = typical_length(run.prepared.clients.values())
        announcing.log_expectation(
            Expected(
                memory_bytes=memory_of(
                    run.base,
                    run.plan,
                    step_tokens=amounts_of(run.settings, run.selection, run.prepared).step_tokens,
                    more_ranks=run.method.more_ranks,
                    token_bytes=memory.bytes_per_token(run.base, length),
                    process=memory.process_bytes(run.base),
                    nodes=planning.nodes(run.settings, run.base, workers=run.plan.workers),
                ).total,
                seconds_a_round=median(took),
            ),
            hidden=hidden,
        )
    run._log_start()
    log.info("continuing after round %d of %d", run.state.round, run.until)


def _restored_memories(saved: Checkpoint, store: ClientStore) -> dict[str, StoredMemory]:
    """Memory of each client at a checkpoint; an older version stored the memories inside it."""
    older = {client: store.put(client, saved.state.round, memory) for client, memory in saved.clients.items()}
    return older | {client: StoredMemory(*kept) for client, kept in saved.notes.get("memories", {}).items()}
