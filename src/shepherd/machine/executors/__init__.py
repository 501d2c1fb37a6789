"""Executors: where local tuning runs, in this process, in worker processes, or on Ray."""

from shepherd.machine.executors.executor import Executor, Watch
from shepherd.machine.executors.inline import Inline
from shepherd.machine.executors.processes import Processes, processes
from shepherd.machine.executors.ray import RayActors

__all__ = ["Executor", "Inline", "Processes", "RayActors", "Watch", "processes"]
