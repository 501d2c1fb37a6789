"""A run in this process: its rounds, each scored, saved and logged, and its final adapter.

with open_run(read("examples/demo.toml")) as run:
    for state, row in run.rounds():
        print(row["round"], row["loss"])
    run.finish()

Progress goes to the logger "shepherd": `logging.basicConfig(level="INFO")` shows it, with a line at least
every half minute. A notebook shows progress bars as well.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.consent import NOTHING, Consent
from shepherd.core import (
    Adapter,
    Federation,
    FromSystem,
    Method,
    Scoped,
    Seeded,
    Selection,
    ServerState,
    Update,
)
from shepherd.data import dataset, remarks
from shepherd.data.dataset import TokenisedData
from shepherd.data.examples import Example
from shepherd.data.template import Template, stop_ids
from shepherd.errors import FederationError, FolderError
from shepherd.evaluate import answers, contribution, loss, personal, rewards
from shepherd.federation.client_store import OnDisk
from shepherd.federation.clients import LocalClients
from shepherd.federation.clocked import Clocked, speeds
from shepherd.federation.root import Root, root_of
from shepherd.federation.simulation import Simulation
from shepherd.federation.summed import Summed
from shepherd.io.atomic import renew_secret
from shepherd.io.progress import many, stage
from shepherd.machine import memory
from shepherd.machine.executors import Executor, Inline, RayActors, processes
from shepherd.machine.plan import Plan
from shepherd.model import answer, files
from shepherd.model import base as bases
from shepherd.privacy.client_level import ClientPrivacy, hides_data
from shepherd.privacy.example_level import ExampleAccount
from shepherd.rounds import RoundReport, context_of, report_row, rounds, weights
from shepherd.rounds.loop import next_broadcast
from shepherd.rounds.ranks import ranks_of
from shepherd.run import card, checkpoint, claims, folder, ledger, lineage, measured, release, tracking
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.folder import HeldRun, RunFolder
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings
from shepherd.training import score, tune
from shepherd.training.local import LocalTraining

log = logging.getLogger(__name__)
Row = dict[str, Any]
ANSWERS = "answers.jsonl"
PERSONAL = (
    "each client has a model of its own: write them with shepherd export {folder} --all-clients -o FOLDER, or"
    " one of them with --client NAME"
)
UNPROTECTED = (
    "; the noise of the run does not hide a client in its own model, so give that to the client alone"
)


@dataclass(slots=True, kw_only=True, repr=False)
class Run(HeldRun):
    """A run, held by this process until `close()` or the end of its `with`; see `open_run` and `resume`."""

    settings: RunSettings
    """Settings as they were given."""
    plan: Plan
    """Plan: what this machine chose where the settings leave something open."""
    holder: RunFolder
    base: bases.Base
    prepared: TokenisedData
    method: Method
    training: LocalTraining
    selection: Selection
    state: ServerState
    trackers: tracking.Trackers
    consent: Consent = NOTHING
    account: ExampleAccount | None = None
    """What the steps of each client spend of its examples' privacy; None if nothing protects examples."""
    privacy: ClientPrivacy | None = None
    """What the rounds spend of each client's privacy; None if no transform hides clients."""
    before: Adapter | None = None
    """The adapter of `adapter.start`, which an objective compares with; None is a new one, which is as good
    as the base alone."""
    closed: bool = False
    finished: Row | None = None
    """Result of `finish`; None before it."""
    unlogged: Row | None = None
    """Row of a round that is saved but not logged yet."""
    simulation: Simulation = field(init=False)
    clocked: Clocked | None = field(init=False)
    """The clients on a simulated clock, under [stragglers]."""
    root: Root | None = field(init=False)
    """Tunes the server's own examples, if there are any."""
    held_pairs: rewards.Pairs | None = field(init=False, default=None)
    """The held-out pairs that are scored, once they are."""

    def __post_init__(self) -> None:
        self.simulation = Simulation(
            local=LocalClients(
                datasets=self.prepared.trained_on,
                algorithm=self.method.algorithm,
                transform=self.method.transform,
                tuning=self.settings.tuning,
                federation=self.settings.federation,
                micro_batch_tokens=self.plan.micro_batch_tokens,
                order_seed=self.settings.seed,
                training=self.training,
                ranks=ranks_of(self.settings.adapter, self.method.aggregation, list(self.prepared.clients)),
                truncates=self.method.aggregation.truncates,
                privacy=self.settings.privacy.examples,
                account=self.account,
                # noise that protects a person must not be reproducible
                draws=FromSystem() if self.method.is_private else None,
                reference=self.before,
            ),
            executor=executor(self.settings, self.plan, self.base, self.consent),
            stack_size=self.plan.stack_size,
            store=OnDisk(self.holder.clients, self.settings.checkpoints.keep),
            quiet=self._hides_data,
        )
        self.clocked = None
        if self.settings.stragglers is not None and self.method.stragglers is not None:
            self.clocked = Clocked(
                timed=self.simulation,
                stragglers=self.method.stragglers,
                speeds=speeds(
                    self.settings.stragglers.speeds, list(self.prepared.clients), self.settings.seed
                ),
                store=OnDisk(self.holder.late, self.settings.checkpoints.keep),
                keep=self.settings.checkpoints.keep,
            )
        self.root = root_of(self.prepared.root, self.simulation)

    def __repr__(self) -> str:
        """Folder, algorithm and round; no text of any example."""
        s = self.settings
        closed = ", closed" if self.closed else ""
        return f"<Run {self.folder}: {s.algorithm.name}, round {self.state.round} of {self.until}{closed}>"

    def rounds(self) -> Iterator[tuple[ServerState, Row]]:
        """Train to the last round; each round is saved and logged before it is yielded.

        Yields:
            The server state, and the row that was added to `rounds.jsonl`. Row 0, with the scores of the
            untrained adapter, is logged when the run is opened and not yielded.

        Raises:
            QuorumNotMet: too few clients returned a usable update; the previous round is kept.
            FolderError: the disk is full (the previous round is kept), or the run is closed.
            FederationError: another loop over the rounds of this run has advanced it in the meantime.
        """
        self._require_open()
        self._complete_saved()
        held, federation = contribution.Held(self._scores_contribution), self._federation()
        done = rounds(
            contribution.recorded(self.method, held)
            if self.settings.evaluation.contribution
            else self.method,
            federation,
            self.state,
            context=context_of(self.settings, self.selection, self.state.adapter, len(self.prepared.clients)),
            until=self.until,
            select=self.selection.cohort,
            by_loss=self.selection.by_loss,
            quorum=self.settings.federation.quorum,
            seed=self.settings.seed,
            allow=weights.allowed_by(self.settings),
            max_share=self.settings.federation.max_share,
            root=self.root,
            # a finished run draws no cohort, and its secret is deleted
            secret=self._secret() if self.method.is_private and self.state.round < self.until else None,
            noise=FromSystem() if self.method.is_private else None,
        )
        while self.state.round < self.until:
            with stage(f"round {self.state.round + 1}/{self.until}"):
                self._keep_ledger(more=1)
                state, report = next(done)
                row = self._save(state, self._round_row(state, report, held.updates))
                self.trackers.log(row)
            yield state, row
            self._require_open()
            if self.state is not state:
                raise FederationError(
                    f"another loop over rounds() advanced the run in {self.folder}; use one loop at a time"
                )

    def finish(self, answer: bool = True) -> Row:
        """Write the final adapter with its card, answer held-out examples that have a check, and close.

        Args:
            answer: whether to answer held-out examples; a comparison does it later, for all its arms.

        Returns:
            `adapter`, its folder, or None if the server's adapter is no model; `answers`, category ->
            (share right before, share right after); and
            `remarks`, sentences on what the scores are based on. A second call only returns the same again.
        """
        if self.finished is not None:
            return self.finished
        self._require_open()
        self.holder.require_held()
        self._complete_saved()
        is_model = self.method.algorithm.server_is_model
        examples = self.prepared.heldout_examples if answer and is_model else []
        if is_model:
            files.write(self.holder.adapter, self.state.adapter, self.base)
            stop = stop_ids(Template.of(self.planned.data), self.base.tokenizer)
            files.write_tokenizer(self.holder.adapter, self.base, stop)
        adapters = (self.before, self.state.adapter)
        scores = answer_heldout(self.holder, self.planned, self.base, adapters, examples)
        if is_model:
            self._write_card(scores)
        if not self._hides_data:  # while the worker processes are there
            # the memory of actors, perhaps on other machines, is not known here
            peak = None if self.settings.machine.ray else memory.peak_bytes(self.base.device)
            self.holder.write(measured.MEASURED, measured.text(memory_bytes=peak))
        self.holder.write(folder.FINISHED, json.dumps({"round": self.state.round, "answers": scores}) + "\n")
        if self.privacy is not None and self.state.round == self.until:
            ledger.forget_cohorts(self.folder)
        self.close()
        verdict = release.settled(self.folder).sentence()
        said = [*remarks.heldout_remarks(self.prepared), *([verdict] if verdict else [])]
        if self.method.algorithm.personal:
            how = PERSONAL.format(folder=shlex.quote(str(self.folder)))
            said = [*said, how + UNPROTECTED if self.method.is_private else how]
        if self._hides_data:
            said += lineage.caveats(lineage.source(self.folder), lineage.before(self.folder))
        written = self.holder.adapter if is_model else None
        self.finished = {"adapter": written, "answers": scores, "remarks": said}
        return self.finished

    def close(self) -> None:
        """Release the run folder, and stop executor and trackers; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self.simulation.executor.close()
            self.trackers.finish()
            self.holder.close()

    @property
    def _hides_data(self) -> bool:
        return hides_data(self.settings, self.method)

    def _require_open(self) -> None:
        if self.closed:
            raise FolderError(
                f"the run in {self.folder} is closed; continue it with shepherd.resume({str(self.folder)!r})"
            )

    def _federation(self) -> Federation:
        """The clients; under [secure], what is known of them is a sum."""
        clients = self.simulation if self.clocked is None else self.clocked
        if self.settings.secure is None:
            return clients
        return Summed(federation=clients, ring_bits=self.settings.secure.ring_bits)

    def _secret(self) -> int:
        """The seed of the cohorts, where noise hides clients."""
        file = self.folder / ledger.SECRET
        return ledger.secret_of_cohorts(file, self.state.round, self.selection.together)

    def _log_start(self) -> None:
        if not read_rows(self.folder):
            scored = self._scored(self.state)
            row = {"round": 0, **scored}
            self.holder.append(row)
            self.trackers.log(row)
            if "heldout" in scored:
                log.info("before training  held out %.4f", scored["heldout"]["loss"])

    def _is_scored(self, number: int) -> bool:
        """Whether the held-out examples are scored after a round, counted from 1."""
        due = number % self.settings.evaluation.every == 0 or number == self.until
        return due and len(self.prepared.heldout) > 0

    def _scores_contribution(self, number: int) -> bool:
        return self.settings.evaluation.contribution and self._is_scored(number)

    def _contribution(self, state: ServerState, after: float, updates: Sequence[Update]) -> Row:
        """What each client contributed to a round that led from `state` to the held-out loss `after`."""
        noise = Scoped(Seeded(self.settings.seed), (state.round, "noise"))
        context = context_of(self.settings, self.selection, state.adapter, len(self.prepared.clients))
        without = contribution.without_each(self.method, state, updates, context, noise)
        one_out = {name: self._heldout_scores(other.adapter)["loss"] - after for name, other in without}
        fall = self._heldout_scores(state.adapter)["loss"] - after
        return {"leave_one_out": one_out, "projection": contribution.projections(updates, fall)}

    def _keep_ledger(self, more: int = 0, lost: Mapping[str, int] = {}) -> None:
        """Write what is spent.

        Args:
            more: how many rounds are about to draw noise.
            lost: the last round that is lost and counted besides now, by key of a row.
        """
        finished = self.state.round
        if self.privacy is not None:
            last = lost.get(ledger.CLIENTS, 0)
            if last:
                renew_secret(self.folder / ledger.SECRET)
            begun = max(last, ledger.begun(self.folder, finished)) + more
            ledger.write(self.folder, self.privacy, begun=begun, finished=finished, last_lost=last)
        if self.account is not None and not more:
            spent, last = self._examples_spent(self.account, finished), lost.get(ledger.EXAMPLES, 0)
            ledger.write_examples(self.folder, self.account, spent, finished=finished, last_lost=last)

    def _examples_spent(self, account: ExampleAccount, finished: int) -> Row:
        """What the most exposed client has spent of its examples' privacy after `finished` rounds.

        Where noise hides which clients a round asks, each counts as asked in every round.
        """
        local, made = self.simulation.local, self.simulation.steps_made()
        visits = {each.name: (each.examples, local.visit_steps(each.name)) for each in local.infos()}
        return account.row(
            {
                (size, (finished * steps if self.privacy else made.get(name, 0)) + account.again * steps)
                for name, (size, steps) in visits.items()
            }
        )

    def _round_row(self, state: ServerState, report: RoundReport, updates: Sequence[Update] = ()) -> Row:
        if self.method.is_private:  # scored once it is saved; all else depends on who took part
            spent = {ledger.CLIENTS: self.privacy.row(state.round)} if self.privacy else {}
            if self.account is not None:
                spent["example_privacy"] = self._examples_spent(self.account, state.round)
            rate = self.simulation.local.learning_rate(report.round - 1)
            return {**report_row(report), "learning_rate": rate, **spent}
        began = perf_counter()
        scored = self._scored(state) if self._is_scored(state.round) else {}
        if updates:
            scored["contribution"] = self._contribution(self.state, scored["heldout"]["loss"], updates)
        scoring = perf_counter() - began
        return {
            **report_row(report),
            **scored,
            "coverage": self.simulation.coverage(),
            **({"example_privacy": self._examples_spent(self.account, state.round)} if self.account else {}),
            "learning_rate": self.simulation.local.learning_rate(report.round - 1),
            **({} if self.clocked is None else {"clock_s": self.clocked.reached().now}),
            "seconds": {
                "round": report.seconds + scoring,
                "tuning": report.federation_seconds,
                "scoring": scoring,
            },
        }

    def _scored(self, state: ServerState) -> Row:
        """Held-out loss: of the server's model, and of the clients' own where they differ from it."""
        algorithm = self.method.algorithm
        found: Row = {}
        if len(self.prepared.heldout) and algorithm.server_is_model:
            found["heldout"] = self._heldout_scores(state.adapter)
        if len(self.prepared.heldout) and algorithm.personal and not self.method.is_private:
            found["personal" if algorithm.server_is_model else "heldout"] = self._personal_scores(state)
        # no client that is scored may have held anything out
        return {name: scores for name, scores in found.items() if scores}

    def _personal_scores(self, state: ServerState) -> Row:
        """Held-out loss of clients' own models, each on its own data or on data like its own."""
        prepared, broadcast = self.prepared, next_broadcast(self.method, state, 0)
        categories = dataset.categories(prepared)
        scored = loss.stratified_subset(categories, self.settings.evaluation.examples)
        names = personal.scored_clients(list(prepared.clients), self.settings.evaluation.clients)
        found = {}
        with stage(f"scoring the models of {many(len(names), 'client')}", len(names)) as now:
            for name in names:
                # where noise hides what it trains on, only what it has held out counts
                mix = {} if self._hides_data else prepared.category_counts[name]
                places = personal.own_places(prepared.heldout_examples, scored.tolist(), name, mix)
                mix = mix or Counter(categories[place] for place in places)
                if places:
                    own = self.simulation.own_adapter(broadcast, name)
                    found[name] = self._losses(own, places, {name: mix})
                now.advance()
        return personal.summarise(found).row() if found else {}

    def _heldout_scores(self, adapter: Adapter) -> Row:
        """Held-out loss of an adapter, on the same examples in every round; and what it prefers of pairs."""
        categories = dataset.categories(self.prepared)
        places = loss.stratified_subset(categories, self.settings.evaluation.examples)
        # what a client holds is its own where noise hides it, or its examples
        mixes = {} if self._hides_data else self.prepared.category_counts
        found = self._losses(adapter, places.tolist(), mixes).row()
        if self.prepared.heldout_rejected is None or self.training.objective.margins is None:
            return found
        margins = rewards.margins(
            self.base,
            self.training.objective,
            adapter,
            self._held_pairs(places),
            micro_batch=self.plan.micro_batch_tokens,
        )
        return {**found, "preference": rewards.summarise(margins, [categories[place] for place in places])}

    def _held_pairs(self, places: NDArray[np.int64]) -> rewards.Pairs:
        """Held-out pairs with the reference's scores of them, which no round changes."""
        if self.held_pairs is None:
            assert self.prepared.heldout_rejected is not None
            both = [part.take(places) for part in (self.prepared.heldout, self.prepared.heldout_rejected)]
            self.held_pairs = rewards.pairs(
                self.base, self.before, *both, micro_batch=self.plan.micro_batch_tokens
            )
        return self.held_pairs

    def _losses(
        self, adapter: Adapter, places: Sequence[int], clients: Mapping[str, Mapping[str, int]]
    ) -> loss.HeldOutLoss:
        data, categories = self.prepared.heldout.take(places), dataset.categories(self.prepared)
        sums = score.losses(self.base, [adapter], data, micro_batch=self.plan.micro_batch_tokens)[0]
        named = [categories[place] for place in places]
        return loss.summarise(sums, tune.predictions(data), named, clients)

    def _save(self, state: ServerState, row: Row) -> Row:
        """Save a round on disk before it counts: if saving fails, this run stays at the previous round.

        Returns:
            The row as it is logged. Where noise hides clients it is scored only now: a round that is lost and
            made again has other noise, and nobody may have seen anything of the first.
        """
        self.holder.require_held()
        positions, memories = self.simulation.reached()
        notes = {
            "positions": positions,
            "memories": memories,
            "row": row,
            "base": self.base.fingerprint,
            "is_model": self.method.algorithm.server_is_model,
            **({} if self.clocked is None else {"clock": self.clocked.reached().notes()}),
        }
        saved = Checkpoint(state=state, notes=notes)
        before = checkpoint.latest(self.holder.checkpoints)
        try:
            checkpoint.save(self.holder.checkpoints, saved, keep=self.settings.checkpoints.keep)
        finally:  # an interrupt may come after the checkpoint is complete
            if checkpoint.latest(self.holder.checkpoints) != before:
                self.state, self.unlogged = state, row
        self._commit()
        self._keep_ledger()
        row = self._scored_late(row)
        self.holder.append(row)
        self.unlogged = None
        return row

    def _commit(self) -> None:
        self.simulation.commit()
        if self.clocked is not None:
            self.clocked.commit()

    def _scored_late(self, row: Row) -> Row:
        """The row of the round that was saved last, with the scores that it may have only then."""
        if not self.method.is_private or not self._is_scored(self.state.round):
            return row
        return {**row, **self._scored(self.state)}

    def _complete_saved(self) -> None:
        """Finish what an interrupt cut off in `_save` after the checkpoint; each part may be done already."""
        if self.unlogged is not None:
            self._commit()
            self._keep_ledger()
            self.holder.reconcile(self.state.round, self._scored_late(self.unlogged))
            self.unlogged = None

    def _write_card(self, scores: Mapping[str, tuple[float, float]]) -> None:
        rows = read_rows(self.folder)
        spent = claims.spent(self.folder, rows)
        card.write(
            self.holder.adapter,
            self.planned,
            rows=rows,
            answers=scores,
            data=self.prepared.summary,
            clients=self.prepared.sizes,
            privacy=spent.get(ledger.CLIENTS, {}),
            of_examples=spent.get(ledger.EXAMPLES, {}),
            revision=files.named(self.base)[1],
            start=lineage.source(self.folder),
            before=lineage.before(self.folder),
        )


def answer_heldout(
    holder: RunFolder,
    settings: RunSettings,
    base: bases.Base,
    adapters: tuple[Adapter | None, Adapter],
    examples: Sequence[Example],
) -> Mapping[str, tuple[float, float]]:
    """Answer held-out examples before and after the run, check them, and write answers.jsonl.

    Args:
        settings: the settings filled in from the run's plan.
        adapters: what the run began with, None for the base alone, and what it ended with.

    Returns:
        Category -> (share right before, share right after); empty if no example has a check, or if the base
        cannot generate.
    """
    if base.proof.mute:  # reported when the base was loaded
        return {}
    checked = [i for i, example in enumerate(examples) if example.check is not None]
    named = [examples[i].category for i in checked]
    places = [checked[i] for i in loss.stratified_subset(named, settings.evaluation.answers)]
    if not places:
        return {}
    prompts = {i: answer.prompt_ids(base, settings.data, examples[i].turns[:-1]) for i in places}
    prompts = {i: ids for i, ids in prompts.items() if len(ids) < (base.max_length or len(ids) + 1)}
    asked = [examples[i] for i in prompts]
    longest = settings.evaluation.max_new_tokens
    found = answer.answers(base, settings.data, adapters, list(prompts.values()), max_new_tokens=longest)
    before, after = ([each.text for each in texts] for texts in found)
    rows = answers.checked(asked, before, after)
    holder.write(ANSWERS, "".join(json.dumps(row) + "\n" for row in rows))
    return answers.by_category(rows)


def executor(settings: RunSettings, plan: Plan, base: bases.Base, consent: Consent) -> Executor:
    """Executor of a plan: Ray if the settings ask for it, worker processes if there are several workers, else
    this process.

    Raises:
        SettingsError: Ray is asked for and not installed.
    """
    if settings.machine.ray is not None:
        return RayActors(settings.machine.ray, plan.workers, base, consent)
    return processes(plan.workers, base, consent) if plan.workers > 1 else Inline(base)
