"""Start a run: everything before its first round."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import (
    Parts,
    Selection,
)
from shepherd.data import data_folder, dataset, pipeline
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import typical_length
from shepherd.errors import SettingsError
from shepherd.io.progress import stage
from shepherd.machine import memory, planning
from shepherd.machine.estimate import Amounts, amounts, expected, server_bytes
from shepherd.machine.executors import ray
from shepherd.model import base as bases
from shepherd.model import files
from shepherd.overrides import require_settings
from shepherd.privacy.client_level import hides_data
from shepherd.rounds import context_of, start
from shepherd.rounds.loop import bytes_of_round
from shepherd.rounds.ranks import ranks_of
from shepherd.run import (
    accounts,
    announcing,
    folder,
    lineage,
    measured,
    requirements,
    starting,
    tracking,
)
from shepherd.run.loading import load_base
from shepherd.run.run import Run
from shepherd.settings import RunSettings
from shepherd.training import local
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
    training = training_parts(parts)
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
    requirements.require_room(base, method)
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
    requirements.require_possible(settings, method, selection, prepared)
    account = accounts.of_examples(settings, base, training, prepared, selection, method)
    privacy = accounts.of_clients(settings, method, selection, prepared, consent)
    if account is not None or privacy is not None:
        announcing.log_caveats(lineage.caveats(first.source or {}, first.before))
    work = amounts_of(settings, selection, prepared)
    token_bytes = memory.bytes_per_token(base, typical_length(prepared.clients.values()))
    plan = planning.choose(dated, base, work, more_ranks=method.more_ranks, token_bytes=token_bytes)
    hidden = hides_data(settings, method)
    announcing.log_description(base, plan, method, prepared, hidden=hidden)
    announcing.log_remarks(prepared, hidden=hidden)
    context = context_of(settings, selection, first.adapter, len(prepared.clients))
    state = start(method, first.adapter, context)  # a transform may refuse this many numbers
    ranks = ranks_of(settings.adapter, method.aggregation, list(prepared.clients))
    down, up = bytes_of_round(method, state, [ranks.get(name) for name in prepared.clients], settings.secure)
    found = expected(
        base,
        settings.tuning,
        plan,
        dataset.sample(prepared, settings.seed),
        round_tokens=work.round_tokens,
        step_tokens=work.step_tokens,
        more_ranks=method.more_ranks,
        training=training,
        token_bytes=token_bytes,
        process=memory.process_bytes(base),
        server=server_bytes(method, state, up, work.cohort) if base.device.type == "cpu" else 0,
        nodes=planning.nodes(settings, base, workers=plan.workers),
    )
    announcing.log_expectation(found, hidden=hidden)
    holder = folder.create(settings.output, settings, plan.text())
    with holder.closed_on_error():
        starting.keep(holder, first, base)
        if not hidden:
            bytes_of = {"bytes_down": down * work.cohort, "bytes_up": up * work.cohort}
            holder.write(measured.EXPECTED, measured.text(**asdict(found), **bytes_of))
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


def training_parts(parts: dict[str, Any]) -> GivenTraining:
    """Take the parts of the local training out of `parts`."""
    return GivenTraining(**{name: parts.pop(name) for name in ("optimiser", "objective") if name in parts})


def amounts_of(settings: RunSettings, selection: Selection, prepared: TokenisedData) -> Amounts:
    """How much a run on these data tunes on, on average."""
    sizes = list(prepared.sizes.values())
    cohort, length = selection.expected(len(sizes)), dataset.mean_length(prepared)
    return amounts(settings, sizes, cohort=cohort, length=length)
