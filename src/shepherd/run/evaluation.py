"""Score a run on a file of examples, against its untuned base. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.data import data_folder, dataset, pipeline
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import Tokens
from shepherd.errors import BaseError, DataError
from shepherd.evaluate import loss, rewards
from shepherd.evaluate.draws import draws
from shepherd.evaluate.metric import Metric, metrics, scores
from shepherd.evaluate.sentences import LOSS, Measure, says
from shepherd.evaluate.statistics import Compared, Interval, between, interval, sample
from shepherd.io import paths
from shepherd.io.progress import many
from shepherd.model import files
from shepherd.model.answer import answers as generated
from shepherd.model.answer import prompt_ids
from shepherd.model.base import Base
from shepherd.run import folder, hidden, starting
from shepherd.run.answerer import Options, adapter_of, require_options
from shepherd.run.loading import identity, load_base
from shepherd.settings import RunSettings
from shepherd.training import local, score
from shepherd.training.objective import Objective
from shepherd.training.tune import predictions

PASS_TOKENS = 4096
"""Tokens of a forward pass, where the run chose none for this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One measure of base and run on the same examples, each with its 95% interval."""

    measure: Measure
    base: Interval
    run: Interval
    difference: Compared
    """The run minus the base."""

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        of = {"base": self.base.row(), "run": self.run.row(), "difference": self.difference.difference.row()}
        return {**self.measure.row(), **of, "p": self.difference.p, "examples": self.difference.questions}

    def sentence(self) -> str:
        """Says which of the two is better, if these examples can tell."""
        return says(
            self.difference,
            first="the run",
            second="the base",
            score_first=self.run.value,
            score_second=self.base.value,
            measure=self.measure,
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Evaluation:
    """Result of `evaluate_run`."""

    folder: str
    adapter: str
    """Digest of the adapter that was scored, by `loading.identity`."""
    data: str
    examples: int
    """Number of examples that were scored by loss."""
    scored: tuple[Scored, ...]
    """The loss first, then what is preferred of pairs of answers, then each metric of the answers."""
    categories: Mapping[str, Mapping[str, float]]
    """For each category, its number of `examples` and the loss of `base` and of `run`."""
    remarks: tuple[str, ...]
    """Sentences on the rows, and on what of them was trained on."""

    def __repr__(self) -> str:
        """Counts and losses, and no text of any example."""
        of = self.scored[0]
        return f"<Evaluation: {self.examples:,} examples, loss {of.base.value:.4f} -> {of.run.value:.4f}>"

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "run": self.folder,
            "adapter": self.adapter,
            "data": self.data,
            "examples": self.examples,
            "measures": [each.row() for each in self.scored],
            "categories": {name: dict(row) for name, row in self.categories.items()},
            "says": [each.sentence() for each in self.scored],
            "remarks": list(self.remarks),
        }


def evaluate_run(
    path: str | Path,
    data: str | Path,
    *,
    answers: int = 0,
    round: int | None = None,
    adapter: str | Path | None = None,
    consent: Consent = NOTHING,
) -> Evaluation:
    """Score the run in `path` on the examples of a file, by their loss and by answers to some of them.

    The file has the fields of the run's data, and is rendered as they were. Nothing is written.

    Args:
        data: a file of rows.
        answers: number of examples to answer, drawn evenly over the categories; 0 answers none.
        round: round of a kept checkpoint; None takes the final adapter, else the last checkpoint.
        adapter: a PEFT folder of the same base that is scored in place of the run's own adapter.
        consent: whether code that comes with the base, and metrics from outside the package, may run.

    Raises:
        FolderError: there is no run, or it has no adapter yet.
        DataError: the file cannot be read, or holds no example that can be scored.
        BaseError: the base cannot be loaded, or cannot answer.
    """
    where, settings = Path(path), folder.planned(path)
    test = pipeline.test_set(settings.data, str(data), "--data")
    objective = _compared_by(settings, consent)
    measures = metrics(settings.evaluation.metrics, consent.plugins) if answers else ()
    if adapter is None:
        require_options(where, Options(round=round))
    else:
        settings = settings.model_copy(update={"adapter": files.read_config(Path(adapter))})
    base = load_base(settings, consent)
    if answers and base.proof.mute:
        raise BaseError(f"{base.name} cannot answer ({base.proof.mute}); leave out --answers")
    prepared = pipeline.only_scored(test, settings, base.tokenizer, paired=objective is not None)
    dataset.require_readable(prepared, base)
    scored = adapter_of(where, base, round) if adapter is None else files.read(adapter, base)
    by_loss, categories = _by_loss(base, scored, settings, prepared)
    before = None if objective is None else starting.before(where, folder.read_settings(where), base)
    return Evaluation(
        folder=str(adapter or path),
        adapter=identity(scored),
        data=paths.short(str(data)),
        examples=by_loss.difference.questions,
        scored=(
            by_loss,
            *_by_preference(base, scored, before, objective, settings, prepared),
            *_by_answers(base, scored, settings, prepared, answers, measures),
        ),
        categories=categories,
        remarks=(
            *prepared.notes.sentences(),
            *prepared.dropped,
            *_trained_on(where, prepared.heldout),
        ),
    )


def _by_loss(
    base: Base, adapter: Adapter, settings: RunSettings, prepared: TokenisedData
) -> tuple[Scored, dict[str, dict[str, float]]]:
    tokens = settings.machine.micro_batch_tokens
    counts = predictions(prepared.heldout)
    kept = np.flatnonzero(counts > 0)  # an example without trained tokens has no loss
    if not len(kept):
        raise DataError("no example of the file can be scored; check data.template and data.max_tokens")
    data, counts = prepared.heldout.take(kept), counts[kept].astype(np.float64)
    sums = score.losses(
        base,
        [base.zero, adapter],
        data,
        micro_batch=tokens if isinstance(tokens, int) else PASS_TOKENS,
        what="examples",
    )
    every = dataset.categories(prepared)
    named = np.array([every[place] for place in kept])
    rows = {
        str(name): {
            "examples": int((named == name).sum()),
            **{
                of: float(each[named == name].sum() / counts[named == name].sum())
                for of, each in zip(("base", "run"), sums, strict=True)
            },
        }
        for name in np.unique(named)
    }
    return _scored(LOSS, sums / counts, named.tolist(), counts), rows


def _compared_by(settings: RunSettings, consent: Consent) -> Objective | None:
    """The objective of a run, if it compares two answers and was not given as a value."""
    if local.given(settings):
        return None
    objective = local.local_training(settings.tuning, consent.plugins).objective
    return None if objective.margins is None else objective


def _by_preference(
    base: Base,
    adapter: Adapter,
    before: Adapter | None,
    objective: Objective | None,
    settings: RunSettings,
    prepared: TokenisedData,
) -> list[Scored]:
    """What base and run prefer of each pair, by margins over what the run began from."""
    if objective is None or prepared.heldout_rejected is None:
        return []
    tokens = settings.machine.micro_batch_tokens
    most = tokens if isinstance(tokens, int) else PASS_TOKENS
    pairs = rewards.pairs(base, before, prepared.heldout, prepared.heldout_rejected, micro_batch=most)
    margins = np.array(
        [rewards.margins(base, objective, each, pairs, micro_batch=most) for each in (None, adapter)]
    )
    named = dataset.categories(prepared)
    return [
        _scored(rewards.ACCURACY, rewards.preferred(margins), named, None),
        _scored(rewards.MARGIN, margins, named, None),
    ]


def _by_answers(
    base: Base,
    adapter: Adapter,
    settings: RunSettings,
    prepared: TokenisedData,
    most: int,
    measures: Sequence[Metric],
) -> list[Scored]:
    named = dataset.categories(prepared)
    places = loss.stratified_subset(named, most).tolist() if most else []
    prompts = {
        place: prompt_ids(base, settings.data, prepared.heldout_examples[place].turns[:-1])
        for place in places
    }
    prompts = {place: ids for place, ids in prompts.items() if len(ids) < (base.max_length or len(ids) + 1)}
    if not prompts:
        return []
    longest = settings.evaluation.max_new_tokens
    found = generated(base, settings.data, [None, adapter], list(prompts.values()), max_new_tokens=longest)
    asked = [prepared.heldout_examples[place] for place in prompts]
    values = [
        [scores(measures, each.text, example) for each, example in zip(texts, asked, strict=True)]
        for texts in found
    ]
    scored = []
    for metric in measures:
        name = metric.measure.name
        here = [i for i, row in enumerate(values[0]) if row[name] is not None]
        if here:
            numbers = np.array([[float(rows[i][name] or 0.0) for i in here] for rows in values])
            strata = [named[[*prompts][i]] for i in here]
            scored.append(_scored(metric.measure, numbers, strata, None))
    return scored


def _scored(measure: Measure, values: Any, strata: Sequence[str], weights: Any) -> Scored:
    """Score the values (2, Q) of base and run."""
    drawn = draws(strata)
    before, after = (sample(each, drawn, weights, measure.span) for each in values)
    return Scored(
        measure=measure, base=interval(before), run=interval(after), difference=between(after, before)
    )


def _trained_on(path: Path, tested: Tokens) -> list[str]:
    """Whether the run trained on these examples, or on their prompts, by the tokens in its folder."""
    if hidden.of_folder(path):
        return ["noise hides what the run was trained on, so the examples were not compared with it"]
    if not data_folder.whole(path / "data"):
        return ["the run folder holds no training data, so the examples were not compared with them"]
    trained = [_digests(data) for data in data_folder.load(path / "data").clients.values()]
    wholes, prompts = ({digest for pair in trained for digest in pair[side] if digest} for side in (0, 1))
    own = list(zip(*_digests(tested), strict=True))
    same = sum(whole in wholes for whole, _ in own)
    asked = sum(whole not in wholes and prompt in prompts for whole, prompt in own)
    said = []
    if same:
        said.append(
            f"warning: {many(same, 'example')} of the file {'was' if same == 1 else 'were'} trained on, so"
            " scores are too good; take out of the file what the run was trained on"
        )
    if asked:
        said.append(
            f"warning: {many(asked, 'example')} of the file {'shares' if asked == 1 else 'share'} a prompt"
            " with examples that were trained on, so scores may be too good"
        )
    return said


def _digests(data: Tokens) -> tuple[list[bytes], list[bytes]]:
    """Digests of each example and of its prompt; b"" for a prompt that is trained as well."""
    wholes, prompts = [], []
    for index in range(len(data)):
        ids, trained = data.example(index)
        first = int(np.argmax(trained)) if trained.any() else 0
        wholes.append(_digest(ids))
        prompts.append(_digest(ids[:first]) if first > 1 else b"")
    return wholes, prompts


def _digest(ids: Any) -> bytes:
    return blake2b(np.ascontiguousarray(ids, dtype=np.int32).tobytes(), digest_size=12).digest()
