"""A run from its run file to its final adapter: the parts put together, and the body of the loop.

run = open_run(read("examples/demo.toml"))
for state, row in run.rounds():
    print(row["round"], row["loss"])
run.finish()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from shepherd import card, checkpoint, folder, plugins, prepare, select, tracking, world
from shepherd.checkpoint import Checkpoint
from shepherd.core import Adapter, Algorithm, ServerState, Transform, seed_for
from shepherd.data.examples import Example
from shepherd.data.files import left_out
from shepherd.data.template import Template, prompt, stop_ids
from shepherd.errors import FolderError, SettingsError
from shepherd.evaluate import answers, loss
from shepherd.federation.simulation import Progress, Simulation
from shepherd.federation.workers import Workers, beside
from shepherd.folder import RunFolder
from shepherd.loading import load_base, load_checkpoint, placed
from shepherd.model import base as bases
from shepherd.model import files, lora, memory, score, tune
from shepherd.model import generate as generation
from shepherd.prepare import Prepared
from shepherd.rounds import RoundReport, report_row, rounds, start
from shepherd.settings import RunSettings, TuningTable

Row = dict[str, Any]
Say = Callable[[str], None]
ANSWERS = "answers.jsonl"


def _quiet(text: str) -> None:
    pass


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that this process holds; from `open_run` or `resume`.

    `progress`, where it is set, is called often while clients are tuned.
    """

    settings: RunSettings
    holder: RunFolder
    base: bases.Base
    prepared: Prepared
    algorithm: Algorithm
    transform: Transform
    state: ServerState
    trackers: tracking.Trackers
    progress: Callable[[Progress], None] | None = None
    closed: bool = False
    simulation: Simulation = field(init=False)

    def __post_init__(self) -> None:
        assert self.settings.tuning.cohort_size != "auto"
        self.simulation = Simulation(
            base=self.base,
            datasets=self.prepared.clients,
            algorithm=self.algorithm,
            transform=self.transform,
            tuning=self.settings.tuning,
            federation=self.settings.federation,
            seed=self.settings.seed,
            cohort_size=self.settings.tuning.cohort_size,
            workers=_workers(self.settings),
            watch=self._heard,
        )

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.holder.path

    @property
    def until(self) -> int:
        """Rounds in all."""
        return self.settings.federation.rounds

    def rounds(self) -> Iterator[tuple[ServerState, Row]]:
        """Train to the last round; each is saved and logged before it is yielded.

        The row is what `rounds.jsonl` got; row 0, the untrained adapter's scores, stands there already.

        Raises:
            QuorumNotMet: too few clients gave a usable update; the round before is kept.
            FolderError: the disk is full; the round before is kept.
        """
        for state, report in rounds(
            self.algorithm,
            self.simulation,
            self.transform,
            self.state,
            until=self.until,
            select=select.selector(self.settings.federation),
            quorum=self.settings.federation.quorum,
            seed=self.settings.seed,
        ):
            row = self._row(state, report)
            self._save(state, row)
            self.trackers.log(row)
            self.state = state
            yield state, row

    def finish(self, answer: bool = True) -> Row:
        """Write the final adapter with its card, answer held-out examples where they have checks, and close.

        Args:
            answer: whether to answer them here, as a comparison does not, which answers for all its arms.

        Returns:
            `adapter`, its folder; and `answers`, category -> (share right before, share right after).
        """
        self.holder.require_held()
        files.write(self.holder.adapter, self.state.adapter, self.base)
        examples = self.prepared.heldout_examples if answer else []
        scores = answered(self.holder, self.settings, self.base, self.state.adapter, examples)
        self._write_card(scores)
        self.close()
        return {"adapter": self.holder.adapter, "answers": scores}

    def close(self) -> None:
        """Give the run folder back, and end what the trackers still hold; once or again."""
        if not self.closed:
            self.closed = True
            if self.simulation.workers:
                self.simulation.workers.close()
            self.trackers.finish()
            self.holder.close()

    def _heard(self, progress: Progress) -> None:
        if self.progress is not None:
            self.progress(progress)

    def _log_start(self) -> None:
        if not folder.read_rows(self.folder):
            scored = {"heldout": self._scored(self.state.adapter)} if len(self.prepared.heldout) else {}
            row = {"round": 0, **scored}
            self.holder.append(row)
            self.trackers.log(row)

    def _row(self, state: ServerState, report: RoundReport) -> Row:
        began = perf_counter()
        due = state.round % self.settings.evaluation.every == 0 or state.round == self.until
        scored = {"heldout": self._scored(state.adapter)} if due and len(self.prepared.heldout) else {}
        scoring = perf_counter() - began
        return {
            **report_row(report),
            **scored,
            "coverage": self.simulation.coverage(),
            "learning_rate": self.simulation.learning_rate(report.round - 1),
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
        micro_batch = tune.micro_batch_tokens(self.settings.tuning, self.base.device)
        sums = score.losses(self.base, [adapter], data, micro_batch=micro_batch)[0]
        counts = tune.predictions(data)
        named = [categories[i] for i in places]
        return loss.summarise(sums, counts, named, self.prepared.mixes).row()

    def _save(self, state: ServerState, row: Row) -> None:
        self.holder.require_held()
        notes = {"positions": self.simulation.positions, "row": row, "base": self.base.fingerprint}
        saved = Checkpoint(state=state, clients=self.simulation.memories, notes=notes)
        checkpoint.save(self.holder.checkpoints, saved, keep=self.settings.checkpoints.keep)
        self.holder.append(row)

    def _write_card(self, scores: Mapping[str, tuple[float, float]]) -> None:
        card.write(
            self.holder.adapter,
            self.settings,
            rows=folder.read_rows(self.folder),
            answers=scores,
            data=self.prepared.summary,
            clients={name: len(data) for name, data in self.prepared.clients.items()},
        )


def answered(
    holder: RunFolder, settings: RunSettings, base: bases.Base, adapter: Adapter, examples: Sequence[Example]
) -> Mapping[str, tuple[float, float]]:
    """Greedy answers of the base alone and of an adapter, checked; all go to answers.jsonl.

    Returns:
        Category -> (share right before, share right after); empty where no example has a check.
    """
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


def open_run(settings: RunSettings, say: Say = _quiet, prepared: Prepared | None = None) -> Run:
    """Prepare a new run: base, data, clients, and its folder with everything to go on from.

    Args:
        prepared: the data, where they are read and divided already; None reads them.

    Raises:
        FolderError: `output` holds another run or anything else, or cannot be written.
        ShepherdError: the base, the data or a setting cannot be used; nothing is written then.
    """
    folder.require_free(settings.output)
    tracking.require(settings.tracking)
    algorithm, transform = plugins.algorithm(settings.algorithm), plugins.transform(settings.transforms)
    base = load_base(settings, say)
    settings = prepare.dated(settings, base.tokenizer)
    prepared = prepared or _read(settings, base, say)
    prepare.require_readable(prepared, base)
    settings = _resolved(settings, base, prepared)
    say(_what(prepared, settings))
    for sentence in prepared.dropped:
        say(sentence)
    holder = folder.create(settings.output, settings)
    with _given_back_on_error(holder):
        prepare.save(holder.path / "data", prepared)
        adapter = lora.fresh(base.sites, settings.adapter.rank, seed_for(settings.seed, "adapter"))
        run = Run(
            settings=settings,
            holder=holder,
            base=base,
            prepared=prepared,
            algorithm=algorithm,
            transform=transform,
            state=start(algorithm, transform, adapter),
            trackers=tracking.start(settings, holder),
        )
        run._log_start()
    return run


def _read(settings: RunSettings, base: bases.Base, say: Say) -> Prepared:
    say(f"reading {settings.data.source}")
    for name in left_out(settings.data.source):
        say(f"{name} is left out: files that begin so are for testing; rename it if it is a client's")
    return prepare.prepare(settings, base.tokenizer)


def resume(path: str | Path, say: Say = _quiet) -> Run:
    """Go on with a run from its last finished round; the bits come out as if it had never stopped.

    Raises:
        FolderError: there is no run, another process holds it, or its data are damaged.
        CheckpointError: its last checkpoint is damaged; the message names the mend.
    """
    if folder.is_over_silos(path):
        raise FolderError(f"the run in {path} is over silos; go on with it by `shepherd resume {path}`")
    holder = folder.reopen(path)
    with _given_back_on_error(holder):
        return _resumed(holder, say)


@contextmanager
def _given_back_on_error(holder: RunFolder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        holder.close()
        raise


def _resumed(holder: RunFolder, say: Say) -> Run:
    settings = folder.read_settings(holder.path)
    if settings.tuning.cohort_size == "auto":  # a run writes down what it chose
        raise FolderError(
            f"{holder.path} holds a run file that no run has written; give output=ANOTHER_FOLDER, or start it"
            " with `shepherd run`"
        )
    algorithm, transform = plugins.algorithm(settings.algorithm), plugins.transform(settings.transforms)
    base = load_base(settings, say)
    for name, (then, now) in folder.changed_versions(holder.path).items():
        say(f"{name} was {then} and is {now}: the bits may differ from an undisturbed run's")
    data = holder.path / "data"
    last = checkpoint.latest(holder.checkpoints)
    if not (last or prepare.whole(data)):  # killed before its first round: it is as good to prepare again
        prepare.save(data, prepare.prepare(settings, base.tokenizer))
    fresh = lora.fresh(base.sites, settings.adapter.rank, seed_for(settings.seed, "adapter"))
    saved = load_checkpoint(last, base) if last else None
    state = saved.state if saved else start(algorithm, transform, fresh)
    rows = holder.reconcile(state.round, saved.notes["row"] if saved else None)
    run = Run(
        settings=settings,
        holder=holder,
        base=base,
        prepared=prepare.load(data),
        algorithm=algorithm,
        transform=transform,
        state=state,
        trackers=tracking.start(settings, holder, after_round=rows[-1]["round"] if rows else -1),
    )
    if saved is not None:
        run.simulation.positions.update(saved.notes["positions"])
        run.simulation.memories.update(saved.clients)
    run._log_start()
    say(f"going on after round {state.round} of {run.until}")
    return run


def _resolved(settings: RunSettings, base: bases.Base, prepared: Prepared) -> RunSettings:
    """What was chosen by measuring, written out, so that a resumed run chooses the same (law 3)."""
    tuning, model = settings.tuning, settings.model
    if tuning.workers not in ("auto", 1) and base.device.type != "cpu":
        raise SettingsError(f"tuning.workers = {tuning.workers} is for a processor; write 1 on {base.device}")
    clients = select.share_of(len(prepared.clients), settings.federation.share)
    length = prepare.mean_length(prepared)
    chosen = memory.plan(
        base,
        clients=clients,
        step_tokens=length * tuning.batch_size,
        all_tokens=length * settings.federation.rounds * clients * _visit_examples(settings, prepared),
        micro_batch=tune.micro_batch_tokens(tuning, base.device),
        workers=None if tuning.workers == "auto" else tuning.workers,
        cohort_size=None if tuning.cohort_size == "auto" else tuning.cohort_size,
    )
    tuning = tuning.model_copy(update={**asdict(chosen), "threads": memory.threads()})
    model = model.model_copy(
        update={"dtype": str(base.dtype).removeprefix("torch."), "device": str(base.device)}
    )
    return settings.model_copy(update={"tuning": tuning, "model": model})


def _visit_examples(settings: RunSettings, prepared: Prepared) -> float:
    """That a client trains on in one visit, on average."""
    tuning = settings.tuning
    if tuning.max_steps:
        return tuning.max_steps * tuning.batch_size
    held = sum(len(data) for data in prepared.clients.values())
    return (tuning.epochs or 1.0) * held / len(prepared.clients)


def _workers(settings: RunSettings) -> Workers | None:
    """Processes to tune in, where the run was laid out for more than this one."""
    count = settings.tuning.workers
    # "auto" stands in folders from before there were workers
    return beside(1 if count == "auto" else count, placed(settings.model), settings.adapter)


def _what(prepared: Prepared, settings: RunSettings) -> str:
    s = prepared.summary
    return (
        f"{len(prepared.clients)} clients, {s['kept']} examples to train on ({s['cut']} cut, {s['dropped']}"
        f" dropped), {s['heldout']} held out, {_at_once(settings.tuning)} tuned at once"
    )


def _at_once(tuning: TuningTable) -> str:
    beside = "" if tuning.workers == 1 else f" in each of {tuning.workers} processes"
    return f"{tuning.cohort_size} client{'s' * (tuning.cohort_size != 1)}{beside}"
