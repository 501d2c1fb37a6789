"""What the sites of a run have trained, as far as the privacy of their examples depends on it.

Kept in the notes of each checkpoint, so that it is never older or newer than the state: the
log at the server may be lost, and a site may be missing from a later job of the run, or have other examples
in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shepherd.privacy import example_level
from shepherd.settings import TuningTable

NOTE = "exposures"
"""Key of the notes of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What one site has trained. A bound, since its number of examples may differ from job to job."""

    fewest: int
    """The fewest examples that it has had: each then has the largest chance to be in a step."""
    most: int
    """The most examples that it has had: delta is below 1 over it."""
    steps: int
    """Steps that it was asked for in all finished rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposures:
    """What all sites of a run have trained, those that have left it included."""

    sites: Mapping[str, Exposure] = field(default_factory=dict)
    unrecorded: int = 0
    """Finished rounds of which nobody knows whom they asked: a site that joins counts as asked in each."""

    def of(self, site: str, examples: int, tuning: TuningTable) -> Exposure:
        """What a site has trained so far that has this many examples now."""
        known = self.sites.get(site)
        if known is None:
            steps = self.unrecorded * example_level.steps(tuning, examples)
            return Exposure(fewest=examples, most=examples, steps=steps)
        return replace(known, fewest=min(known.fewest, examples), most=max(known.most, examples))

    def after_round(
        self, sizes: Mapping[str, int], asked: Collection[str] | None, tuning: TuningTable
    ) -> Exposures:
        """The same after one more round.

        Args:
            sizes: the sites that could be asked, with their numbers of examples.
            asked: those of them that were; None if that is to be known to nobody.
        """
        found = dict(self.sites)
        for site, examples in sizes.items():
            before = self.of(site, examples, tuning)
            more = example_level.steps(tuning, examples) if asked is None or site in asked else 0
            found[site] = replace(before, steps=before.steps + more)
        return Exposures(sites=found, unrecorded=self.unrecorded + (asked is None))

    def note(self) -> dict[str, Any]:
        """The same as JSON's types, for the notes of a checkpoint."""
        return asdict(self)


def of_notes(notes: Mapping[str, Any], finished: int) -> Exposures:
    """What the notes of a checkpoint say after `finished` rounds; without a word, that nobody knows."""
    if NOTE not in notes:
        return Exposures(unrecorded=finished)
    kept = notes[NOTE]
    sites = {str(site): Exposure(**each) for site, each in kept["sites"].items()}
    return Exposures(sites=sites, unrecorded=int(kept["unrecorded"]))
