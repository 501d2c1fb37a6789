"""Executors: where local tuning runs, in this process or in worker processes."""

from shepherd.machine.executors.executor import Executor, Watch
from shepherd.machine.executors.inline import Inline
from shepherd.machine.executors.processes import Processes, processes

__all__ = ["Executor", "Inline", "Processes", "Watch", "processes"]
