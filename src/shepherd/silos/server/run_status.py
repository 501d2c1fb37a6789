"""The status of a job, which the server reports to the coordinator."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shepherd.core import Adapter, Failure, Update
from shepherd.errors import ShepherdError
from shepherd.rounds.acceptance import MAX_METRIC
from shepherd.silos.protocol.wire import Reply, Trained

Row = dict[str, Any]
MAX_ROWS_PER_ANSWER = 100
"""Log rows in one answer to the coordinator; the next answer continues."""


@dataclass(slots=True)
class RunStatus:
    """Status of a job: the round loop writes it, and another thread reads it."""

    rounds: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: list[Row] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    outcome: Row | None = None
    """{"finished": True} or {"error", "kind"} once the job has ended."""
    opened: bool = False
    """Whether the run's log has been read."""
    replies: list[Reply] = field(default_factory=list)
    """Replies of the round under way, without their tensors."""
    began: float = field(default_factory=time.perf_counter)

    def open(self, rows: Sequence[Row]) -> None:
        """Set the rows of earlier jobs."""
        with self.lock:
            self.rows, self.opened = list(rows), True

    def row(self, row: Row) -> None:
        """Add a finished round's row."""
        with self.lock:
            self.rows.append(row)
            self.replies, self.began = [], time.perf_counter()

    def echo(self, line: str) -> None:
        """Add a sentence for the coordinator to print."""
        with self.lock:
            self.said.append(line)

    def end(self, outcome: Row) -> None:
        """Set how the job ended."""
        with self.lock:
            self.outcome = outcome

    def fail(self, error: ShepherdError) -> None:
        """End the job with an error."""
        self.end({"error": str(error), "kind": type(error).__name__})

    def on_reply(self, reply: Reply) -> None:
        """Count a reply of the round under way."""
        if isinstance(reply, Update | Failure | Trained):
            with self.lock:
                self.replies.append(_without_tensors(reply))

    def snapshot(self, asked: Mapping[str, Any]) -> Row:
        """The status for a coordinator that has `rows` log rows and `said` sentences already."""
        rows, said = int(asked.get("rows", 0)), int(asked.get("said", 0))
        with self.lock:
            last = self.rows[-1]["round"] if self.rows else -1
            # selected by round: a server that lost its disk has no rows of the first rounds
            new = [row for row in self.rows if row["round"] >= rows]
            return {
                "opened": self.opened,
                "round": max(0, last),
                "count": last + 1,
                "rows": new[:MAX_ROWS_PER_ANSWER],
                "said": self.said[said:],
                "progress": self._progress(),
                "outcome": self.outcome if len(new) <= MAX_ROWS_PER_ANSWER else None,
            }

    def _progress(self) -> Row:
        metrics = [_usable_metrics(reply.metrics) for reply in self.replies if isinstance(reply, Update)]
        tokens = sum(each.get("tokens", 0.0) for each in metrics)
        losses = [(each["loss"], each["tokens"]) for each in metrics if "loss" in each and each.get("tokens")]
        return {
            "round": (self.rows[-1]["round"] if self.rows else 0) + 1,
            "rounds": self.rounds,
            "clients_done": len(self.replies),
            "tokens": int(tokens),
            # a single site's loss is not shown before the round is finished
            "loss": _mean(losses) if len(losses) > 1 else 0.0,
            "seconds": time.perf_counter() - self.began,
        }


def _mean(losses: Sequence[tuple[float, float]]) -> float:
    return sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)


def failed_status(error: ShepherdError) -> RunStatus:
    """The status of a job that cannot start: the error alone."""
    book = RunStatus(rounds=0)
    book.fail(error)
    return book


def _without_tensors(reply: Update | Failure | Trained) -> Update | Failure | Trained:
    """The reply without its tensors, so that they can be freed."""
    return replace(reply, delta=Adapter(), extra=Adapter()) if isinstance(reply, Update) else reply


def _usable_metrics(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """The usable metrics of an update that has not been checked yet."""
    return {name: value for name, value in metrics.items() if 0 <= value <= MAX_METRIC}
