"""Show what a template does to the data before any training: samples with their loss masks, and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.core import seed_for
from shepherd.data.examples import Example, by_category
from shepherd.data.template import (
    Dropped,
    LossOn,
    Rendered,
    Template,
    Tokenizer,
    remarks,
    render_all,
    rendered,
)
from shepherd.data.tokens import Counts, outcomes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sample:
    """One example as the model sees it: spans of text, and whether each is trained."""

    where: str
    category: str
    spans: tuple[tuple[str, bool], ...]
    cut: int

    def __repr__(self) -> str:
        """The place only: the text of an example stays out of logs."""
        return f"<Sample: {self.where}, {len(self.spans)} spans, {self.cut} tokens cut>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """Samples and counts that `shepherd data check` shows."""

    samples: tuple[Sample, ...]
    counts: Counts
    by_category: Mapping[str, Counts]
    by_client: Mapping[str, Counts]
    remarks: tuple[str, ...] = ()
    """Sentences on what the template adds that the data do not show."""

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        return f"<Report: {self.counts.examples:,} examples, {len(self.samples):,} samples>"


def report(
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
    drop_refused: bool = False,
    clients: Mapping[str, ArrayLike] | None = None,
    samples: int = 1,
    seed: int = 0,
) -> Report:
    """Render all examples; count them, and draw `samples` kept ones of each category with the seed.

    `clients` maps names to indices into `examples`, as `split` gives them.

    Raises:
        TemplateError: the template cannot render with this tokenizer, or refuses an example and
            `drop_refused` is not set.
    """
    how: _How = {"max_tokens": max_tokens, "loss_on": loss_on, "drop_refused": drop_refused}
    found = outcomes(rendered(examples, template, tokenizer, **how))
    groups = {name: np.asarray(places, np.int64) for name, places in by_category(examples).items()}
    kept = np.isin(np.arange(len(examples)), found.kept)
    drawn = [
        int(place)
        for name, places in groups.items()
        for place in _shuffled(places[kept[places]], seed, name)[:samples]
    ]
    shown = render_all([examples[place] for place in drawn], template, tokenizer, **how)
    shares = {name: np.asarray(places, dtype=np.int64) for name, places in (clients or {}).items()}
    return Report(
        samples=tuple(_sample(examples[p], each, tokenizer) for p, each in zip(drawn, shown, strict=True)),
        counts=found.counts(),
        by_category={name: found.counts(places) for name, places in groups.items()},
        by_client={name: found.counts(places) for name, places in shares.items()},
        remarks=tuple(remarks(template, tokenizer)),
    )


class _How(TypedDict):
    max_tokens: int
    loss_on: LossOn
    drop_refused: bool


def _shuffled(kept: NDArray[np.int64], seed: int, name: str) -> NDArray[np.int64]:
    return np.random.default_rng(seed_for(seed, "samples", name)).permutation(kept)


def _sample(example: Example, outcome: Rendered | Dropped, tokenizer: Tokenizer) -> Sample:
    assert isinstance(outcome, Rendered)  # only kept ones are drawn
    return Sample(
        where=example.where,
        category=example.category,
        spans=spans(outcome, tokenizer),
        cut=outcome.cut,
    )


def spans(rendered: Rendered, tokenizer: Tokenizer) -> tuple[tuple[str, bool], ...]:
    """Spans of tokens with the same loss mask, decoded, with special tokens shown.

    A span is what its tokens add to the decoded text, so that spaces at its borders are right; a character
    whose bytes are in two spans belongs to the later one.
    """
    ids, mask = rendered.ids.tolist(), rendered.loss_mask.tolist()
    borders = [0, *(np.flatnonzero(np.diff(rendered.loss_mask)) + 1).tolist(), len(ids)]
    texts = [_decoded(ids[:border], tokenizer) for border in borders]
    return tuple(
        (after[len(before) :], mask[start])
        for (before, after), (start, _) in zip(pairwise(texts), pairwise(borders), strict=True)
    )


def _decoded(ids: list[int], tokenizer: Tokenizer) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(ids, **options)).rstrip("\ufffd") if ids else ""
