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
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter, Method, Selection, ServerState
from shepherd.data import pipeline
from shepherd.data.examples import Example
from shepherd.data.pipeline import TokenisedData
from shepherd.data.template import Template, stop_ids
from shepherd.errors import FederationError, FolderError
from shepherd.evaluate import answers, loss
from shepherd.federation.client_store import OnDisk
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.io.progress import stage
from shepherd.machine.executors import Executor, Inline, processes
from shepherd.machine.plan import Plan
from shepherd.model import answer, files
from shepherd.model import base as bases
from shepherd.rounds import RoundReport, context_of, report_row, rounds, weights
from shepherd.run import card, checkpoint, folder, tracking
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.folder import RunFolder
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings
from shepherd.training import score, tune
from shepherd.training.local import LocalTraining

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
    prepared: TokenisedData
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
            allow=weights.allowing(self.settings),
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
        said = pipeline.remarks(self.prepared)
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
        if not read_rows(self.folder):
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
        categories = pipeline.categories(self.prepared)
        places = loss.stratified_subset(categories, self.settings.evaluation.examples)
        data = self.prepared.heldout.take(places)
        sums = score.losses(self.base, [adapter], data, micro_batch=self.plan.micro_batch_tokens)[0]
        counts = tune.predictions(data)
        named = [categories[i] for i in places]
        return loss.summarise(sums, counts, named, self.prepared.category_counts).row()

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
            rows=read_rows(self.folder),
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
    places = [checked[i] for i in loss.stratified_subset(named, settings.evaluation.answers)]
    if not places:
        return {}
    prompts = {i: answer.prompt_ids(base, settings.data, examples[i].turns[:-1]) for i in places}
    prompts = {i: ids for i, ids in prompts.items() if len(ids) < (base.max_length or len(ids) + 1)}
    asked = [examples[i] for i in prompts]
    longest = settings.evaluation.max_new_tokens
    found = answer.answers(
        base, settings.data, [None, adapter], list(prompts.values()), max_new_tokens=longest
    )
    before, after = ([each.text for each in texts] for texts in found)
    rows = answers.checked(asked, before, after)
    holder.write(ANSWERS, "".join(json.dumps(row) + "\n" for row in rows))
    return answers.by_category(rows)


def executor(plan: Plan, base: bases.Base, consent: Consent) -> Executor:
    """Where the run is tuned: in worker processes, where it was laid out for more than this one."""
    return processes(plan.workers, base, consent) if plan.workers > 1 else Inline(base)
