"""Consent of the person at the keyboard to what a file from somebody else may ask for (law 12).

A run file, a run folder or an adapter may come from somebody else and ask for any of the things listed here.
None of them happens because a file asks: each needs an option on the command line, or this value in Python.

    shepherd.open_run(settings, consent=shepherd.Consent(remote_code=True))
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """Things that a person has agreed to; by default nothing."""

    remote_code: bool = False
    """Whether code that comes with a base may run, if `model.trust_remote_code` asks for it."""
    plugins: frozenset[str] = frozenset()
    """Dotted names of modules outside the package that may be imported."""
    trackers: frozenset[str] = frozenset()
    """Trackers that may send a run's figures to their service: trackio, wandb, mlflow."""
    base_url: str | None = None
    """Address of the judge, if it is not the default."""
    key_env: str | None = None
    """Environment variable that holds the judge's key, if it is not the default."""
    task_code: bool = False
    """Whether a benchmark's task files may run code: their own functions, and what a model wrote."""
    hub: bool = False
    """Whether benchmarks and their data may be fetched from the Hugging Face hub by name."""
    ray_address: str | None = None
    """Address of the Ray cluster that may tune, HOST:PORT or "auto"; clients' examples are sent to its nodes,
    and what they send back is trusted as this machine's own. None for a Ray on this machine alone."""


NOTHING = Consent()
"""Consent to nothing: the default everywhere."""
