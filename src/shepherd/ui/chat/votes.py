"""Blind votes between two arms: kept as preference data in the run folder, and summed up.

A vote for one answer becomes a row of `votes/preferences.jsonl` with `prompt`, `chosen` and `rejected` as
lists of turns, and `context`: TRL's conversational preference format, which a run with the objective DPO
reads. An empty answer is nothing to train on. Every vote, also a tie or one against an empty answer, becomes
a row of `votes/votes.jsonl`, without any text. Rows are appended and never changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shepherd.data.examples import Turn
from shepherd.evaluate.draws import draws
from shepherd.evaluate.statistics import Interval, score
from shepherd.io import private
from shepherd.io.atomic import append_line, disk_errors
from shepherd.visible import shown_json

FOLDER, PREFERENCES, VOTES = "votes", "preferences.jsonl", "votes.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """Two answers to one prompt, in the order in which they are shown, with the arms that gave them."""

    prompt: tuple[Turn, ...]
    """It ends with the question; no other turn has a context."""
    arms: tuple[str, str]
    answers: tuple[str, str]
    options: Mapping[str, Any]
    """How the answers were generated: template, seed, temperature and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The votes between two arms; a tie counts as half a win."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    rate: Interval
    """Share of the votes for `first`, with its 95% interval."""

    def __str__(self) -> str:
        """`federated against base: 7 won, 1 tie, 2 lost; 75.0% of the votes (95%: 45.0 to 95.0)`"""
        low, high = 100 * self.rate.low, 100 * self.rate.high
        ties = f"{self.ties} {'tie' if self.ties == 1 else 'ties'}"
        return (
            f"{self.first} against {self.second}: {self.wins} won, {ties}, {self.losses} lost;"
            f" {100 * self.rate.value:.1f}% of the votes (95%: {low:.1f} to {high:.1f})"
        )


def keep(run: Path, ballot: Ballot, choice: int | None) -> Path:
    """Append a vote to the files in a run folder, and return their folder.

    Args:
        choice: 0 or 1, the place of the better answer, or None for a tie.

    Raises:
        FolderError: the disk is full, or the folder cannot be written.
    """
    folder = run / FOLDER
    with disk_errors(folder):
        private.make(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    how = {**ballot.options, "time": now}
    if choice is not None and all(text.strip() for text in ballot.answers):
        said = [[{"role": "assistant", "content": text}] for text in ballot.answers]
        pair = {
            "prompt": [{"role": turn.role, "content": turn.text} for turn in ballot.prompt],
            **({"context": ballot.prompt[-1].context} if ballot.prompt[-1].context else {}),
            "chosen": said[choice],
            "rejected": said[1 - choice],
            "chosen_arm": ballot.arms[choice],
            "rejected_arm": ballot.arms[1 - choice],
        }
        _append(folder / PREFERENCES, {**pair, **how})
    winner = None if choice is None else ballot.arms[choice]
    _append(folder / VOTES, {"arms": list(ballot.arms), "winner": winner, **how})
    return folder


def _append(path: Path, row: Mapping[str, Any]) -> None:
    append_line(path, shown_json(json.dumps(row, ensure_ascii=False)))


def standings(run: Path) -> list[Standing]:
    """Sum up the votes in a run folder by pair of arms, the pair with most votes first.

    The interval takes the votes as independent draws of questions and voters.

    Raises:
        FolderError: the file cannot be read.
    """
    path = run / FOLDER / VOTES
    with disk_errors(path.parent):
        lines = path.read_bytes().splitlines() if path.is_file() else []
    found: dict[tuple[str, str], list[float]] = {}
    for row in filter(None, map(_vote, lines)):
        first, second = sorted(row["arms"], reverse=True)  # "federated against base"
        won = {None: 0.5, first: 1.0, second: 0.0}[row["winner"]]
        found.setdefault((first, second), []).append(won)
    return sorted((_standing(pair, votes) for pair, votes in found.items()), key=_least_first)


def _least_first(standing: Standing) -> int:
    return -(standing.wins + standing.ties + standing.losses)


def _vote(line: bytes) -> dict[str, Any] | None:
    """A row of the votes; None for a line that a crash has cut or that somebody has changed."""
    try:
        row = json.loads(line)
        first, second = row["arms"]
        valid = first != second and row["winner"] in (None, first, second)
    except (ValueError, TypeError, KeyError):
        return None
    return row if valid else None


def _standing(pair: tuple[str, str], votes: Sequence[float]) -> Standing:
    return Standing(
        first=pair[0],
        second=pair[1],
        wins=votes.count(1.0),
        ties=votes.count(0.5),
        losses=votes.count(0.0),
        rate=score(votes, draws([""] * len(votes))),
    )
