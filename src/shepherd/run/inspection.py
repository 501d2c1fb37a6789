"""Inspect a run file's data before any training: `shepherd data check` and `shepherd data split`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shepherd.consent import NOTHING, Consent
from shepherd.data import lint, pipeline
from shepherd.data.dataset import Partition
from shepherd.data.template import Template
from shepherd.overrides import require_one_stage, require_settings
from shepherd.settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inspection:
    """Result of `inspect_data`: which client gets which examples, and how the template renders them."""

    division: Partition
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
    """Read, hold out, split and render a run file's data, without training.

    Loads the base's tokenizer but not the base. Code of the base, and a split from outside the package, need
    `consent`.

    Args:
        samples: number of rendered examples of each category to keep for display.
        rows: the data where data.source is "memory", as for `open_run`.

    Raises:
        SettingsError: the settings have stages; see `run.stages.settings_of`.
        DataError: a row, a file or the split cannot be used.
        TemplateError: the template cannot render with this tokenizer.
        BaseError: the base has no usable tokenizer, or needs to run code without consent.
    """
    require_settings(settings)
    require_one_stage(settings, "inspect")
    from shepherd.model.base import load_tokenizer
    from shepherd.run.loading import placed  # brings torch: not for `data split`

    division = pipeline.divide(settings, consent.plugins, rows)
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
