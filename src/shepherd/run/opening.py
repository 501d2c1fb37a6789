"""Start a run, or continue one: everything before its first round."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import (
    Adapter,
    Aggregation,
    Method,
    Parts,
    Selection,
    padded,
    require_shapes,
    shapes_of,
)
from shepherd.data import data_folder, dataset, pipeline, remarks
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import typical_length
from shepherd.errors import AdapterError, CheckpointError, FolderError, SettingsError
from shepherd.federation.client_store import ClientStore, StoredMemory
from shepherd.federation.clocked import clock_from
from shepherd.io import paths
from shepherd.io.progress import many, roughly, stage
from shepherd.machine import memory, planning
from shepherd.machine import plan as plans
from shepherd.machine.estimate import Amounts, Expected, amounts, expected, memory_of, server_bytes
from shepherd.machine.executors import ray
from shepherd.machine.plan import PLAN, Plan
from shepherd.model import base as bases
from shepherd.model import files
from shepherd.model.coverage import coverage
from shepherd.overrides import require_settings
from shepherd.privacy import example_level, required
from shepherd.privacy.client_level import ClientPrivacy, hides_data
from shepherd.privacy.example_level import ExampleAccount
from shepherd.rounds import context_of, start
from shepherd.rounds.loop import bytes_of_round
from shepherd.rounds.ranks import ranks_of
from shepherd.rounds.ring import require_balanced, require_sums
from shepherd.rounds.waiting import require_enough
from shepherd.run import changes, checkpoint, folder, ledger, measured, starting, tracking
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.folder import Row, RunFolder
from shepherd.run.loading import load_base, load_checkpoint
from shepherd.run.log import agreeing, read_rows
from shepherd.run.run import Run
from shepherd.run.versions import changed_versions
from shepherd.settings import RunSettings
from shepherd.training import example_privacy, local
from shepherd.training.local import (
    GivenTraining,
    LocalTraining,
    completed,
    local_training,
    require_steps_of,
)

log = logging.getLogger(__name__)


def open_run(
    settings: RunSettings,
    prepared: TokenisedData | None = None,
    consent: Consent = NOTHING,
    rows: Any = None,
    **parts: Any,
) -> Run:
    """Start a new run: load base and data, divide them among clients, and create the run folder.

    Progress, findings and expectations go to the logger "shepherd" at level INFO.

    Args:
        prepared: the data, if they are read and divided already; None reads them.
        consent: what a person has agreed to; the settings alone cannot allow it.
        rows: the data, where data.source is "memory": a list of dicts, a pandas DataFrame, a
            `datasets.Dataset`, columns by name; or any of these by the name of its client.
        parts: `algorithm`, `aggregation`, `server`, `transform` or `selection`, a value of the type of that
            name in `shepherd.core`; or `optimiser` or `objective`, of the type in `shepherd.training`; in
            place of what the settings name. The run file in the folder says so, and `resume` needs the same
            again.

    Raises:
        TypeError: there is no such part.
        SettingsError: what is given as settings is something else.
        FolderError: `output` holds another run or other files, or cannot be written.
        ShepherdError: the base, the data or a setting cannot be used; nothing has been written.
    """
    require_settings(settings)
    if settings.stages:
        raise SettingsError(
            "the run file has [[stages]], which are one run each; train them with shepherd.open_stages"
        )
    training = _of_training(parts)
    with stage("preparing the run"):
        return _start(settings, prepared, consent, rows, Parts(**parts), training)


def _start(
    settings: RunSettings,
    prepared: TokenisedData | None,
    consent: Consent,
    rows: Any,
    parts: Parts,
    given: GivenTraining,
) -> Run:
    folder.require_free(settings.output)
    tracking.require(settings.tracking, consent)
    if settings.machine.ray is not None:
        ray.require()
    settings = local.with_given(plugins.with_given(settings, parts), given)
    method = plugins.method(settings, consent.plugins, parts)
    training = local_training(settings.tuning, consent.plugins, given)
    require_steps_of(method.algorithm, training.optimiser, settings)
    selection = plugins.selection(settings, consent.plugins, parts)
    settings = completed(settings, consent.plugins)
    base = load_base(settings, consent)
    _require_room_for_side_ranks(base, method)
    if warning := files.rehearse(base):
        log.info("%s", warning)
    first = starting.first(settings, base, method)
    if first.says:
        log.info("%s", first.says)
    dated = pipeline.dated(settings, base.tokenizer)
    prepared = (
        _read_data(dated, base, consent, rows, paired=training.paired)
        if prepared is None
        else _as_trained(prepared, training, settings)
    )
    dataset.require_readable(prepared, base)
    _require_contribution(settings, method, prepared)
    _require_root(settings, method, prepared)
    ranks = ranks_of(settings.adapter, method.aggregation, list(prepared.clients))
    sizes = {name: len(own) for name, own in prepared.clients.items()}
    selection.require_possible(sizes)
    require_cohort(settings, method.aggregation, selection, len(prepared.clients))
    require_sums(settings, method, selection, len(prepared.clients))
    require_balanced(settings, method, sizes, selection.size(len(sizes)))
    require_enough(settings, method, selection, len(prepared.clients))
    account = _example_account(settings, base, training, prepared, selection, method)
    privacy = _privacy(settings, method, selection, prepared, consent)
    work = _amounts(settings, selection, prepared)
    kept = memory.bytes_per_token(base, typical_length(prepared.clients.values()))
    plan = planning.choose(dated, base, work, more_ranks=_more_ranks(method), token_bytes=kept)
    hidden = hides_data(settings, method)
    _log_description(base, plan, method, prepared, hidden=hidden)
    _log_remarks(prepared, hidden=hidden)
    context = context_of(settings, selection, first.adapter, len(prepared.clients))
    state = start(method, first.adapter, context)  # a transform may refuse this many numbers
    down, up = bytes_of_round(
        method,
        state,
        [ranks.get(client) for client in prepared.clients],
        64 if settings.secure is None else settings.secure.ring_bits,
    )
    found = expected(
        base,
        settings.tuning,
        plan,
        dataset.sample(prepared, settings.seed),
        round_tokens=work.round_tokens,
        step_tokens=work.step_tokens,
        more_ranks=_more_ranks(method),
        training=training,
        token_bytes=kept,
        process=memory.process_bytes(base),
        server=server_bytes(method, state, up, work.cohort) if base.device.type == "cpu" else 0,
        nodes=planning.nodes(settings, base, workers=plan.workers),
    )
    _log_expectation(found, hidden=hidden)
    holder = folder.create(settings.output, settings, plan.text())
    with holder.closed_on_error():
        starting.keep(holder, first, base)
        if not hides_data(settings, method):
            holder.write(
                measured.EXPECTED,
                measured.text(
                    memory_bytes=found.memory_bytes,
                    seconds_a_round=found.seconds_a_round,
                    bytes_down=down * work.cohort,
                    bytes_up=up * work.cohort,
                ),
            )
        data_folder.save(holder.path / "data", prepared)
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
            trackers=tracking.start(plan.over(settings), holder),
            consent=consent,
            account=account,
            privacy=privacy,
            before=first.adapter if first.source else None,
        )
        run._keep_ledger()
        run._log_start()
    return run


def _log_remarks(prepared: TokenisedData, *, hidden: bool) -> None:
    """Log what is cut, dropped or masked; what clients hold at DEBUG where noise is to hide it."""
    for sentence in remarks.training_remarks(prepared):
        log.log(_level(hidden), "%s", sentence)
    for sentence in remarks.heldout_remarks(prepared):
        log.info("%s", sentence)
    for sentence in remarks.training_warnings(prepared):
        log.log(_level(hidden, logging.WARNING), "%s", sentence)


def _privacy(
    settings: RunSettings, method: Method, selection: Selection, prepared: TokenisedData, consent: Consent
) -> ClientPrivacy | None:
    """What the planned rounds spend of each client's privacy, within the budget; logs it.

    Raises:
        SettingsError: as `required.of_clients`.
    """
    found = required.of_clients(settings, method, selection, len(prepared.clients), consent.plugins)
    if found is None:
        return None
    log.info(
        "%s will spend epsilon %.3g at delta %.3g for each client",
        many(found.rounds, "round"), found.epsilon(found.rounds), found.delta,
    )  # fmt: skip
    for sentence in found.sentences():
        log.info("%s", sentence)
    return found


def require_cohort(
    settings: RunSettings, aggregation: Aggregation, selection: Selection, clients: int
) -> None:
    """Raise SettingsError if a round asks fewer clients than the aggregation needs."""
    asked, needed = selection.size(clients), aggregation.smallest_cohort
    if asked < needed:
        raise SettingsError(
            f"a round asks {asked} of {many(clients, 'client')}, and aggregation.name ="
            f' "{settings.aggregation.name}" as it is set requires {needed} usable updates; raise'
            " selection.share, have more clients, or choose another aggregation"
        )


def _require_root(settings: RunSettings, method: Method, prepared: TokenisedData) -> None:
    """Raise SettingsError if an aggregation needs examples of the server's own and there are none."""
    if method.aggregation.needs_root and prepared.root is None:
        raise SettingsError(
            f'aggregation.name = "{settings.aggregation.name}" compares updates with what the server\'s own'
            " examples give, and there is none; name a file of examples in data.root"
        )


def _require_contribution(settings: RunSettings, method: Method, prepared: TokenisedData) -> None:
    """Raise SettingsError if the contribution of each client is asked for and cannot be computed."""
    if settings.evaluation.contribution and not method.algorithm.server_is_model:
        raise SettingsError(
            f"evaluation.contribution scores the server's model without each client, and algorithm.name ="
            f" {settings.algorithm.name!r} has none; set evaluation.contribution = false"
        )
    if settings.evaluation.contribution and method.aggregation.needs_root:
        raise SettingsError(
            "evaluation.contribution aggregates each round again without each client, and aggregation.name ="
            f' "{settings.aggregation.name}" needs the server\'s own update for that, which is not kept; set'
            " evaluation.contribution = false"
        )
    if settings.evaluation.contribution and not len(prepared.heldout):
        raise SettingsError(
            "evaluation.contribution scores held-out examples, and there is none; set data.holdout, or"
            " evaluation.contribution = false"
        )


def _example_account(
    settings: RunSettings,
    base: bases.Base,
    training: LocalTraining,
    prepared: TokenisedData,
    selection: Selection,
    method: Method,
) -> ExampleAccount | None:
    """What the clients' steps may spend of their examples' privacy; None if nothing protects examples.

    Raises:
        SettingsError: as `required.of_examples` and `example_privacy.require_possible`.
    """
    if settings.privacy.examples is None:
        return None
    example_privacy.require_possible(base, training.objective)
    sizes = {name: len(data) for name, data in prepared.clients.items()}
    account = required.of_examples(settings, method, selection, sizes)
    if account is not None:
        log.info("%s", account.sentence)
    return account


def _spent_before(
    path: Path,
    settings: RunSettings,
    prepared: TokenisedData,
    account: ExampleAccount | None,
    privacy: ClientPrivacy | None,
    rows: Sequence[Row],
    finished: int,
) -> tuple[ExampleAccount | None, ClientPrivacy | None, Mapping[str, int]]:
    """Both accounts of a run that goes on after `finished` rounds; nothing is written.

    Later rounds that were released and are lost have spent as well.

    Args:
        rows: the log, not yet cut to these rounds, and the row that the checkpoint has.

    Returns:
        The accounts, and the last round that is lost and counted by them now, by key of a row.

    Raises:
        FolderError: a ledger is damaged, or that of rounds that were released is missing.
        SettingsError: the rounds would then spend more than the budget.
    """
    places: dict[str, ledger.Standing] = {}
    for level, of_run in ((ledger.CLIENTS, privacy), (ledger.EXAMPLES, account)):
        if of_run is not None:
            kept = ledger.read(path, ledger.LEVELS[level])
            places[level] = ledger.standing(kept, rows, level, finished)
            if places[level].released and not kept:
                raise FolderError(
                    f"{path / ledger.LEVELS[level]} is missing, which says what the rounds of this run have"
                    " spent of privacy; restore it from a copy, or start a run with output=ANOTHER_FOLDER"
                )
    if privacy is not None:
        privacy = ledger.continued(path, privacy, places[ledger.CLIENTS])
    if account is not None:
        sizes = [len(data) for data in prepared.clients.values()]
        visits = {(size, example_level.steps(settings.tuning, size)) for size in sizes}
        account = ledger.continued_examples(path, account, visits, places[ledger.EXAMPLES])
    lost = {level: at.last_lost for level, at in places.items() if at.last_lost}
    if lost:
        log.warning("%s", ledger.remade(max(places.values(), key=lambda at: at.last_lost)))
    return account, privacy, lost


def _as_trained(prepared: TokenisedData, training: LocalTraining, settings: RunSettings) -> TokenisedData:
    """Data that were read before, as the objective needs them: of pairs maybe the better answers alone.

    Raises:
        SettingsError: it compares two answers, and the worse ones were not read.
    """
    if not training.paired:
        return replace(prepared, rejected={})
    if not prepared.rejected:
        raise SettingsError(
            f"the objective {settings.tuning.objective.name!r} compares two answers to each prompt, and the"
            " data were read for one; leave out prepared=, and they are read again"
        )
    return prepared


def _read_data(
    settings: RunSettings, base: bases.Base, consent: Consent, rows: Any, *, paired: bool
) -> TokenisedData:
    log.info("reading %s", settings.data.source)
    found = pipeline.prepare(settings, base.tokenizer, consent.plugins, rows, paired=paired)
    for sentence in found.left_out:
        log.info("%s", sentence)
    return found


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
    training = _of_training(parts)
    again = Parts(**parts)
    holder = folder.reopen(path)
    with holder.closed_on_error(), stage("preparing the run"):
        return _continue(holder, consent, changes.continued(path, overrides), again, training)


def _of_training(parts: dict[str, Any]) -> GivenTraining:
    """Take the parts of the local training out of `parts`."""
    return GivenTraining(**{name: parts.pop(name) for name in ("optimiser", "objective") if name in parts})


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
    account = _example_account(settings, base, training, prepared, selection, method)
    privacy = _privacy(settings, method, selection, prepared, consent)
    known = read_rows(holder.path)
    account, privacy, lost = _spent_before(
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


def _require_room_for_side_ranks(base: bases.Base, method: Method) -> None:
    stacked = [target for target in base.targets if target.experts > 1]
    if method.aggregation.side_rank and stacked:
        raise SettingsError(
            f"{stacked[0].module}.{stacked[0].parameter} of base {base.name} stacks the matrices of"
            f" {stacked[0].experts} experts, which cannot have the {method.aggregation.side_rank} side ranks"
            ' of this aggregation; set [aggregation] name = "product", or adapter.target_parameters = []'
        )
    more = _more_ranks(method)
    needed, free = memory.adapter_bytes(base, more), memory.free_bytes(base.device)
    if more and needed > free:
        raise SettingsError(
            f"an adapter with {more} ranks more than adapter.rank takes {needed / 1e9:.3g} GB, and"
            f" {free / 1e9:.3g} GB are free; lower aggregation.side_rank or algorithm.rank"
        )


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
    _log_description(run.base, run.plan, run.method, run.prepared, hidden=hidden)
    took = [row["seconds"]["tuning"] for row in rows if row["round"] and "seconds" in row]
    if took:
        length = typical_length(run.prepared.clients.values())
        _log_expectation(
            Expected(
                memory_bytes=memory_of(
                    run.base,
                    run.plan,
                    step_tokens=_amounts(run.settings, run.selection, run.prepared).step_tokens,
                    more_ranks=_more_ranks(run.method),
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


def _more_ranks(method: Method) -> int:
    """Ranks of a client's adapter in addition to the run's: side ranks, or its own."""
    return method.aggregation.side_rank + method.algorithm.adds_ranks


def _amounts(settings: RunSettings, selection: Selection, prepared: TokenisedData) -> Amounts:
    sizes = [len(data) for data in prepared.clients.values()]
    cohort, length = selection.expected(len(sizes)), dataset.mean_length(prepared)
    return amounts(settings, sizes, cohort=cohort, length=length)


def _level(hidden: bool, level: int = logging.INFO) -> int:
    """The level at which to log what the clients hold: DEBUG where noise is to hide it."""
    return logging.DEBUG if hidden else level


def _log_description(
    base: bases.Base, plan: Plan, method: Method, prepared: TokenisedData, *, hidden: bool
) -> None:
    """Log the base, the data, and how the run is tuned."""
    whole = memory.parameters(base)
    trained = sum(prod(shape) for name, shape in base.shapes.items() if method.algorithm.trainable(name, 0))
    dtype = str(base.dtype).removeprefix("torch.")
    log.info(
        "base %s: %s parameters, and %s to train (%.2f%%), %s on %s",
        paths.short(base.name), f"{whole:,}", f"{trained:,}", 100 * trained / whole, dtype, base.device,
    )  # fmt: skip
    log.info("%s", coverage(base.model, base.targets).sentence)
    s = prepared.summary
    log.log(
        _level(hidden),
        "%d clients, %s examples to train on (%s cut, %s dropped), %s held out",
        len(prepared.clients), *(f"{s[name]:,}" for name in ("kept", "cut", "dropped", "heldout")),
    )  # fmt: skip
    several = plan.workers > 1
    threads = max(1, memory.threads() // plan.workers)
    log.info(
        "tuning %s client%s at once%s, %d thread%s, up to %s tokens a pass",
        plan.stack_size, "s" * (plan.stack_size != 1),
        f" in each of {plan.workers} processes" if several else " in one process",
        threads, "s" * (threads != 1) + " each" * several, f"{plan.micro_batch_tokens:,}",
    )  # fmt: skip


def _log_expectation(of_run: Expected, *, hidden: bool) -> None:
    memory_gb, seconds = of_run.memory_bytes / 1e9, of_run.seconds_a_round
    # a trial is good for one digit, since other work may share the machine
    rough = roughly(float(f"{seconds:.1g}"))
    # both are computed from the lengths of the clients' examples
    log.log(_level(hidden), "expecting about %.1f GB of memory, about %s a round", memory_gb, rough)
