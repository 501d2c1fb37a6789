"""What is reported of a round: the figures of the algorithm's observer, and the audit of its updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from shepherd.core import Broadcast, Context, Draws, Method, Observer, Update
from shepherd.core.algorithm import as_aggregated
from shepherd.core.cores import Bases, bases_of, grown
from shepherd.core.round_audit import RoundAudit


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """The observers of one round, which see each update before the aggregation does; possibly none."""

    observer: Observer | None = None
    audit: RoundAudit | None = None
    bases: Bases = field(default_factory=dict)
    settle: Callable[[Update], Update] = as_aggregated
    """The change that an update stands for: products are of this one, and not linear in it."""

    def passing(self, updates: Iterator[Update]) -> Iterator[Update]:
        """Yield the same updates, each once the observers have seen it."""
        for update in updates:
            if self.observer is not None:
                self.observer.add(grown(self.bases, update))
            if self.audit is not None:
                self.audit.add(self._change(update))
            yield update
            del update

    def figures(self, result: Update) -> Mapping[str, float]:
        """The figures of the round, by their column in rounds.jsonl."""
        figures = dict(self.observer.figures()) if self.observer is not None else {}
        if self.audit is not None:
            figures |= self.audit.figures(self._change(result))
        return figures

    def cosines(self, result: Update, fewest: int) -> Mapping[str, float]:
        """The cosine of each client's change with the result's.

        Args:
            fewest: the largest `min_cohort` of the round's clients. Unless all of them allow a mean of one,
                there is none: the mean over all and the others' would give a hidden one away (law 11).
        """
        return self.audit.cosines(self._change(result)) if self.audit is not None and fewest <= 1 else {}

    def _change(self, update: Update) -> Update:
        return grown(self.bases, self.settle(update))


def observers(
    method: Method, broadcast: Broadcast, context: Context, draws: Draws, merges: bool = False
) -> Observers:
    """The observers of a round.

    There are none under noise, since what they report would not be covered by the mechanism, and none where
    updates are merged before they arrive, since they compare single ones.
    """
    if merges or method.algorithm.observe is None or method.transform.mechanism is not None:
        return Observers()
    if method.aggregation.side_rank:  # the adapter is longer than its rank without stacking experts
        context = replace(context, rank=None)
    return Observers(
        observer=method.algorithm.observe(broadcast, context, draws),
        audit=RoundAudit(broadcast.adapter, draws, context.rank),
        bases=bases_of(method.algorithm, broadcast.adapter, broadcast.round),
        settle=method.algorithm.settle,
    )
