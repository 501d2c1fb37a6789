"""The round loop: `rounds.loop.rounds` is a generator of server states."""

from shepherd.rounds.loop import context_of, rehearse, rounds, start
from shepherd.rounds.report import RoundReport, report_row

__all__ = ["RoundReport", "context_of", "rehearse", "report_row", "rounds", "start"]
