"""What a run file's data are, before any training: `shepherd data check` and `shepherd data split`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shepherd import prepare
from shepherd.consent import NOTHING, Consent
from shepherd.data import lint
from shepherd.data.template import Template
from shepherd.prepare import Division
from shepherd.settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inspection:
    """Who gets which examples, and what the template does to them."""

    division: Division
    report: lint.Report

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        counts = self.report.counts
        return (
            f"<Inspection: {counts.examples:,} examples, {counts.cut:,} cut,"
            f" {counts.examples - counts.kept:,} dropped, {len(self.division.clients):,} clients>"
        )


def inspect_data(
    settings: RunSettings, *, samples: int = 1, consent: Consent = NOTHING, rows: Any = None
) -> Inspection:
    """Read, hold out, split and render; `samples` examples of each category are kept to be shown.

    Loads the base's tokenizer and not the base; its code, and a split from outside, only by `consent`. Where
    data.source is "memory", `rows` are the data, as for `open_run`.

    Raises:
        DataError: a row, a file or the split cannot be used.
        TemplateError: the template cannot render with this tokenizer.
        BaseError: the base has no tokenizer that can be used, or asks to run code that nobody agreed to.
    """
    from shepherd.loading import placed  # brings torch: not for `data split`
    from shepherd.model.base import load_tokenizer

    division = prepare.divide(settings, consent.plugins, rows)
    tokenizer = load_tokenizer(placed(settings.model), consent)
    return Inspection(
        division=division,
        report=lint.report(
            division.reading.examples,
            Template.of(settings.data),
            tokenizer,
            max_tokens=settings.data.max_tokens,
            loss_on=settings.tuning.loss_on,
            drop_refused=settings.data.on_bad_row == "skip",
            clients=division.clients,
            samples=samples,
            seed=settings.data_seed,
        ),
    )
